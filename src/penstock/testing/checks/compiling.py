"""Whether compilers and exporters see all of a mechanism."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from penstock.core import Mechanism
from penstock.testing.failure import CheckError, all_same
from penstock.testing.harness import Whole, draw, make, run, tensors, total


def _gradients(whole: Callable[..., Any], module: Mechanism, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs, and the gradients of every input and parameter."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    module.zero_grad()
    out = whole(*inputs)
    loss = total(out)
    if loss.requires_grad:
        loss.backward()
    grads = [leaf.grad for leaf in (*inputs, *module.parameters()) if leaf.grad is not None]
    return [leaf.detach() for leaf in (*tensors(out), *grads)]


def compiles(cls: type[Mechanism], backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """Raise unless the whole mechanism is one graph, whose outputs and gradients equal eager ones, at two lengths."""
    import torch._dynamo

    whole = Whole(make(cls, dtype=dtype))
    torch._dynamo.reset()
    try:
        compiled = torch.compile(whole, fullgraph=True, backend=backend)
        for time in (3, 4):
            inputs = draw(whole.module, time=time, dtype=dtype)
            expected = _gradients(whole, whole.module, inputs)
            try:
                actual = _gradients(compiled, whole.module, inputs)
            except Exception as error:
                raise CheckError(f"torch.compile, backend {backend!r}: {error}") from error
            all_same(actual, expected, f"compiled with {backend!r}", tolerance)
    finally:
        torch._dynamo.reset()


def check_compile(cls: type[Mechanism]) -> None:
    """`torch.compile` makes one graph of it, forward and backward, and the graph computes the same."""
    compiles(cls, "aot_eager", torch.float64, 1e-9)


def check_inductor(cls: type[Mechanism]) -> None:
    """The code that `torch.compile` generates computes the same; slow, so not one of the usual checks."""
    compiles(cls, "inductor", torch.float32, 1e-4)


def check_export(cls: type[Mechanism]) -> None:
    """`torch.export` takes it with batch and time left open, and what it exports computes the same at other sizes."""
    whole = Whole(make(cls))
    inputs = draw(whole.module, batch=3, time=6)
    axes = {"FieldInteraction": (0,), "Forecaster": (0,), "Router": (0,), "ImageMixer": (0, 2, 3)}
    free = dict.fromkeys(axes.get(cls.card.contract, (0, 1)), torch.export.Dim.DYNAMIC)
    try:
        program = torch.export.export(whole, inputs, dynamic_shapes=((free,) * len(inputs),)).module()
    except Exception as error:
        raise CheckError(f"torch.export: {error}") from error
    for batch, time in ((2, 4), (5, 9)):
        other = draw(whole.module, batch=batch, time=time)
        with torch.no_grad():
            all_same(tensors(program(*other)), run(whole.module, other), f"exported, at batch {batch} and time {time}")
