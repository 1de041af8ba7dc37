"""Building a mechanism: what its constructor refuses and accepts, and whether it can be described, stored and copied."""

import copy
import io
import json
import pickle
from typing import Any

import torch

from penstock.core import Mechanism, PenstockError
from penstock.core.arguments import PLACEMENT, signature
from penstock.core.catalogue import build
from penstock.testing.failure import CheckError, all_same, expect
from penstock.testing.harness import draw, make, run, seeded, tensors
from penstock.testing.variations import accepted, hints, parts, refused


def _refusal(cls: type[Mechanism], argument: str, value: Any) -> str:
    try:
        cls(**{**cls.card.example, argument: value})
    except PenstockError as error:
        return str(error)
    except Exception as error:
        raise CheckError(f"{argument}={value!r} raises {type(error).__name__}, not a PenstockError: {error}") from error
    raise CheckError(f"{argument}={value!r} is accepted")


def check_arguments_refused(cls: type[Mechanism]) -> None:
    """Every unacceptable or unknown argument is an error that names mechanism and argument."""
    name = cls.card.name
    for argument, hint in hints(cls).items():
        expect(hint is not None, f"argument {argument!r} has no annotation")
        expect(
            not {int, float} & set(parts(hint)),
            f"argument {argument!r} is annotated as a bare number: use Size, Count, Fraction, Positive, NonNegative or Real",
        )
        misspelled = argument + argument[-1]
        message = _refusal(cls, misspelled, 1)
        expect(f"did you mean {argument!r}" in message, f"{misspelled!r} is not met with a suggestion: {message}")
    for argument, value in refused(cls):
        message, shown = _refusal(cls, argument, value), f"{argument}={value!r}"
        expect(message.startswith(f"{name}:"), f"{shown}: the error does not begin with the name: {message}")
        expect(argument in message, f"{shown}: the error does not name the argument: {message}")


def check_arguments_accepted(cls: type[Mechanism]) -> None:
    """Every acceptable argument gives a module that runs, or an error that names mechanism and argument."""
    for argument, value in accepted(cls):
        shown = f"{argument}={value!r}"
        try:
            module = make(cls, {argument: value})
        except PenstockError as error:
            message = str(error)
            named = message.startswith(f"{cls.card.name}:") and argument in message
            expect(named, f"{shown}: the error does not name mechanism and argument: {message}")
            continue
        for out in run(module, draw(module)):
            expect(bool(out.isfinite().all()), f"{shown}: an output is not finite")


def check_spec(cls: type[Mechanism]) -> None:
    """`build(**spec)` makes the same module again, from a spec that has been through JSON."""
    module = make(cls)
    spec = module.spec()
    again = build(**json.loads(json.dumps(spec))).to(torch.float64).eval()
    expect(type(again) is cls, f"the spec builds a {type(again).__name__}")
    expect(again.spec() == spec, f"the spec changed from {spec} to {again.spec()}")
    again.load_state_dict(module.state_dict())
    all_same(run(again, draw(module)), run(module, draw(module)), "built from its spec", 0.0)


def check_state_dict(cls: type[Mechanism]) -> None:
    """The state dict holds all there is: stored and loaded into another instance, it gives equal bits."""
    module, other = make(cls, seed=0), make(cls, seed=5)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    all_same(run(other, draw(module)), run(module, draw(module)), "loaded from a state dict", 0.0)


def check_copies(cls: type[Mechanism]) -> None:
    """A deep copy and a pickled copy give equal bits, and share nothing with the first."""
    module = make(cls)
    before = run(module, draw(module))
    for how, other in (("deepcopy", copy.deepcopy(module)), ("pickle", pickle.loads(pickle.dumps(module)))):  # noqa: S301
        all_same(run(other, draw(module)), before, how, 0.0)
        expect(other.spec() == module.spec(), f"{how}: the spec changed")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        all_same(run(module, draw(module)), before, f"{how}: after the copy was changed, the original", 0.0)


def check_placement(cls: type[Mechanism]) -> None:
    """`device` and `dtype` place every parameter, and a module made on `meta` is whole once its state dict is loaded."""
    module = make(cls)
    if not tensors(list(module.parameters())):
        return
    for argument in PLACEMENT:
        expect(argument in signature(cls).parameters, f"the constructor does not take {argument!r}")
    with seeded(0):
        doubled = cls(**cls.card.example, dtype=torch.float64)
        bare = cls(**cls.card.example, device="meta")
    for name, parameter in doubled.named_parameters():
        expect(parameter.dtype in (torch.float64, torch.complex128), f"dtype is not passed on to {name}")
    for name, parameter in [*bare.named_parameters(), *bare.named_buffers()]:
        expect(parameter.device.type == "meta", f"device is not passed on to {name}")
    filled = bare.to_empty(device="cpu").to(torch.float64).eval()
    filled.load_state_dict(module.state_dict())
    all_same(run(filled, draw(module)), run(module, draw(module)), "made on meta and loaded", 0.0)
