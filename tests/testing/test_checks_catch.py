"""Each general check fails on a layer that is broken in the way it looks for, and says what is wrong."""

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from broken import Broken, hold

from penstock.core import ConfigError, Size
from penstock.testing.checks import compiling, construction, gradients, values
from toys import AbstractAhead, AbstractCross, AbstractDecay, AbstractGated, AbstractShares, AbstractSkip

CASES = Broken()
BASE = {"example": {"dim": 4}}


def plain(self, x, gate):
    return self.out(gate * self.to_value(x))


def building(*, place="device dtype", after=lambda self: None):
    """Return a constructor of the gated layer that passes on part of its placement, and does something afterwards."""

    def init(self, dim: Size, hidden: Size = 4, *, device: Any = None, dtype: Any = None) -> None:
        given = {"device": device, "dtype": dtype}
        AbstractGated.__init__(self, dim, hidden, **{key: given[key] for key in place.split()})
        after(self)

    return init


def bare(self, dim: int) -> None:
    AbstractGated.__init__(self, dim)


def silent(self, dim) -> None:
    AbstractGated.__init__(self, dim)


def greedy(self, dim: Size, **words: Any) -> None:
    AbstractGated.__init__(self, dim)


def abrupt(self, dim: Size, **words: Any) -> None:
    AbstractGated.__init__(self, dim, words["width"] if words else 4)


def unhelpful(self, dim: Size, **words: Any) -> None:
    if words:
        raise ConfigError("toy-broken: there is an argument too many")
    AbstractGated.__init__(self, dim)


def curt(self, dim: Size, hidden: Size = 4) -> None:
    if hidden == 1:
        raise ConfigError("toy-broken: too narrow")
    AbstractGated.__init__(self, dim, hidden)


def unplaced(self, dim: Size, hidden: Size = 4) -> None:
    AbstractGated.__init__(self, dim, hidden)


CASES.add("arguments_refused", "argument 'dim' is annotated as a bare number", card=BASE, __init__=bare)
CASES.add("arguments_refused", "argument 'dim' has no annotation", card=BASE, __init__=silent)
CASES.add("arguments_refused", "dimm=1 is accepted", card=BASE, __init__=greedy)
CASES.add("arguments_refused", "dimm=1 raises KeyError, not a PenstockError", card=BASE, __init__=abrupt)
CASES.add("arguments_refused", "'dimm' is not met with a suggestion", card=BASE, __init__=unhelpful)
CASES.add("arguments_accepted", "hidden=1: the error does not name mechanism and argument", __init__=curt)
CASES.add(
    "arguments_accepted",
    "hidden=1: an output is not finite",
    mix=lambda self, x, gate: plain(self, x, gate) / (self.hidden - 1),
)
CASES.add("spec", "the spec builds a Gated", spec=lambda self: {"mechanism": "toys:Gated", **self.arguments})
CASES.add(
    "state_dict",
    "loaded from a state dict: they differ",
    __init__=building(after=lambda self: setattr(self, "shift", torch.rand(()))),
    mix=lambda self, x, gate: plain(self, x, gate) + self.shift,
)
CASES.add("copies", "after the copy was changed, the original: they differ", __deepcopy__=lambda self, memo: self)
CASES.add("placement", "the constructor does not take 'device'", __init__=unplaced)
CASES.add("placement", "dtype is not passed on to to_gate.weight", __init__=building(place="device"))
CASES.add("placement", "device is not passed on to to_gate.weight", __init__=building(place="dtype"))
CASES.add(
    "placement",
    "made on meta and loaded: they differ",
    __init__=building(
        after=lambda self: self.register_buffer("one", torch.ones_like(self.out.bias), persistent=False),
    ),
    mix=lambda self, x, gate: plain(self, x, gate) * self.one,
)


def count(self):
    self.register_buffer("calls", torch.zeros_like(self.out.bias))


def counted(self, x, gate):
    self.calls += 1
    return plain(self, x, gate)


def narrowing(self, x):
    x = x[..., :4]
    return self.out(self.gate(torch.sigmoid(self.to_gate(x))) * self.to_value(x))


def lenient(self, x, state):
    self.check_shape(x, "... dim")
    return x, state


def unchecked(self, x):
    return self.out(self.gate(torch.sigmoid(self.to_gate(x))) * self.to_value(x))


def ungated(self, x):
    self.check_shape(x, "... dim")
    return self.out(torch.sigmoid(self.to_gate(x)) * self.to_value(x))


def writing(self, x, gate):
    y = plain(self, x, gate)
    x.mul_(2)
    return y


def hooking(self, x, gate):
    self.out.register_forward_hook(lambda *_: None)
    return plain(self, x, gate)


def drawing(self, x, gate):
    torch.rand(1)
    return plain(self, x, gate)


def stopping(self, x, gate):
    y = plain(self, x, gate)
    torch.set_default_dtype(torch.bfloat16)
    return y


CASES.add("output", "(1, 1, 4) goes in, (1, 1, 5) comes out", mix=lambda self, x, gate: gate * self.to_value(x))
CASES.add("output", "returns tuple, the contract says a tensor", mix=lambda self, x, gate: (x, gate))
CASES.add("output", "returns Tensor, the contract says Routing", AbstractShares, forward=lambda self, x: x)
CASES.add("output", "does not return (y, Halting)", AbstractSkip, forward=lambda self, x, block: x)
CASES.add(
    "output", "returns float beside y, the contract says Halting", AbstractSkip, forward=lambda self, x, block: (x, 0.0)
)
CASES.add("output", "(1, 6, 2) goes in, (1, 6, 2) comes out instead of (1, 3, 2)", AbstractAhead, forward=lambda self, x: x)
CASES.add("output", "comes out instead of", AbstractCross, forward=lambda self, x: x)
CASES.add("dtypes", "torch.float32 goes in, torch.float64", mix=lambda self, x, gate: plain(self, x, gate).double())
CASES.add(
    "dtypes",
    "an output is not finite",
    mix=lambda self, x, gate: plain(self, x, gate) / (x.dtype != torch.bfloat16),
)
CASES.add(
    "dtypes",
    "float32 against float64: they differ",
    mix=lambda self, x, gate: self.out(gate * self.to_value(x) + 1e5) - self.out(torch.full_like(gate, 1e5)),
)
CASES.add("wrong_shape", "too wide: accepted", forward=narrowing)
CASES.add("wrong_shape", "too wide: RuntimeError, not a ShapeError", forward=unchecked)
CASES.add("wrong_shape", "an axis too many: accepted", AbstractDecay, extend=lenient)
CASES.add("empty_batch", "RuntimeError: max()", mix=lambda self, x, gate: plain(self, x, gate) / x.max())
CASES.add(
    "batch_invariance", "example 0 alone against in a batch", mix=lambda self, x, gate: plain(self, x - x.mean(0), gate)
)
CASES.add(
    "gates",
    "lists the gates ['gate', 'other'], the module has ['gate']",
    card={"gates": dict.fromkeys(("gate", "other"), "(0, 1)")},
)
CASES.add("gates", "lists the gates [], the module has ['gate']", card={"gates": {}})
CASES.add("gates", "nothing passes the gate 'gate'", forward=ungated)
CASES.add("gates", "its range is (0.4, 1)", card={"gates": {"gate": "(0.4, 1)"}})
CASES.add("gates", "its range is {0, 1}", card={"gates": {"gate": "{0, 1}"}})
CASES.add("gates", "the sum of the gate 'gate': they differ", card={"gates": {"gate": "(0, 1); sums to 1"}})
CASES.add("gates", "a gate's range reads", card={"gates": {"gate": "positive"}})
CASES.add("repeatable", "evaluation with another seed", mix=lambda self, x, gate: plain(self, x, F.dropout(gate, 0.5)))
CASES.add("repeatable", "evaluation changes calls in the state dict", __init__=building(after=count), mix=counted)
CASES.add(
    "repeatable",
    "training with the same seed",
    mix=lambda self, x, gate: plain(self, x, gate) + (random.random() if self.training else 0),
)
CASES.add("leaves_no_trace", "a call in evaluation changes torch's random state", mix=drawing)
CASES.add("leaves_no_trace", "the input after the call: they differ", mix=writing)
CASES.add("leaves_no_trace", "a hook is left on out", mix=hooking)
CASES.add("leaves_no_trace", "a call in evaluation changes the default dtype", mix=stopping)
CASES.add("autocast", "RuntimeError: expected", mix=lambda self, x, gate: torch.lerp(x, plain(self, x, gate), 0.5))
CASES.add(
    "autocast",
    "autocast against float32: they differ",
    mix=lambda self, x, gate: self.out(gate * self.to_value(x) + 100) - self.out(torch.full_like(gate, 100)),
)


def unused(self):
    self.idle = torch.nn.Parameter(torch.zeros_like(self.out.bias))


CASES.add("gradcheck", "gradcheck, training=False", mix=lambda self, x, gate: plain(self, x, gate) * x.detach())
CASES.add("gradcheck", "no output depends", mix=lambda self, x, gate: plain(self, x, gate).detach())
CASES.add(
    "gradcheck",
    "gradcheck, training=True",
    mix=lambda self, x, gate: plain(self, x, gate.detach() if self.training else gate),
)
CASES.add(
    "every_parameter_learns", "to_gate.weight gets no gradient", mix=lambda self, x, gate: plain(self, x, gate.detach())
)
CASES.add(
    "every_parameter_learns",
    "to_gate.weight gets no gradient with phi='tanh'",
    mix=lambda self, x, gate: plain(self, x, gate.detach() if self.phi == "tanh" else gate),
)
CASES.add("every_parameter_learns", "idle gets no gradient", __init__=building(after=unused))
CASES.add(
    "every_parameter_learns",
    "the gradient of to_gate.weight is zero",
    mix=lambda self, x, gate: plain(self, x, 0 * gate + 1),
)
CASES.add(
    "every_parameter_learns",
    "the gradient of to_value.weight is not finite",
    mix=lambda self, x, gate: plain(self, x, gate) + (0 * self.to_value(x)).abs().sqrt().sum(-1, keepdim=True),
)


CASES.add(
    "compile",
    "torch.compile, backend 'aot_eager'",
    mix=lambda self, x, gate: plain(self, x, gate) * (1 if x.sum() > 0 else 2),
)
CASES.add(
    "compile",
    "compiled with 'aot_eager': they differ",
    mix=lambda self, x, gate: plain(self, x, gate) * (2 if torch.compiler.is_compiling() else 1),
)
CASES.add(
    "export",
    "torch.export: ",
    mix=lambda self, x, gate: torch.stack([plain(self, *pair) for pair in zip(x.unbind(1), gate.unbind(1), strict=True)], 1),
)
CASES.add(
    "export",
    "exported, at batch 2 and time 4: they differ",
    mix=lambda self, x, gate: plain(self, x, gate) * (2 if torch.compiler.is_exporting() else 1),
)


@pytest.mark.parametrize(("check", "message", "base", "card", "changes"), CASES)
def test_a_broken_layer_is_caught(check, message, base, card, changes):
    default = torch.get_default_dtype()
    try:
        hold(check, message, base, card, changes)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize(
    "module", [construction, values, gradients, compiling], ids=lambda module: module.__name__.split(".")[-1]
)
def test_every_check_is_seen_to_fail(module):
    checks = {name.removeprefix("check_") for name in vars(module) if name.startswith("check_")} - {"inductor"}
    assert checks <= {case.values[0] for case in CASES}
