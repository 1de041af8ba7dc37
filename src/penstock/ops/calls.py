"""How an operation's backends are called: `call(inputs, state, offsets, *options)`.

`inputs` have batch and time as their first axes, `state` is what comes before the first step. Where `offsets` is a tensor,
the batch is 1 and sequences lie one after another on the time axis, sequence n from `offsets[n]` to `offsets[n + 1]`.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from penstock.core.backend import Operation
from penstock.core.errors import ShapeError
from penstock.core.threads import HAS_NUMBA

Inputs = tuple[Tensor, ...]
Call = Callable[..., tuple[Tensor, Tensor]]
NUMBA_PAYS, TORCH_PAYS = 2, 32


def run(operation: Operation, backend: str | None, *args: Any) -> tuple[Tensor, Tensor]:
    """Run a call on the backend asked for or chosen, in the precision of its tensors whatever autocast says."""
    call = operation.pick(backend, *args)
    device = args[1].device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return call(*args)
    return call(*args)


def ragged(dense: Call, fixed: int = 0) -> Call:
    """Make `dense(*inputs, state, *options)` a backend, which takes packed sequences one at a time.

    Args:
        dense: the implementation for a batch of equal lengths.
        fixed: how many of the inputs, the last ones, have neither batch nor time.
    """

    def call(inputs: Inputs, state: Tensor, offsets: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
        if offsets is None:
            return dense(*inputs, state, *options)
        bounds = checked_offsets(offsets, inputs[0].shape[1])
        moving = len(inputs) - fixed
        results = [
            dense(*(x[:, start:stop] for x in inputs[:moving]), *inputs[moving:], state[n : n + 1], *options)
            for n, (start, stop) in enumerate(pairwise(bounds))
        ]
        outputs, states = zip(*results, strict=True)
        return torch.cat(outputs, 1), torch.cat(states)

    return call


def checked_offsets(offsets: Tensor, length: int) -> list[int]:
    """Return `offsets` as numbers; raise a `ShapeError` unless they rise from 0 to `length`."""
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != length or any(a > b for a, b in pairwise(bounds)):
        raise ShapeError(f"cu_seqlens must rise from 0 to the packed length {length}, got {bounds}")
    return bounds


def refuse_numba(inputs: Inputs, *_: Any, complex_too: bool = False) -> str | None:
    """Say why the numba backend cannot serve a call: its devices and dtypes."""
    if not HAS_NUMBA:
        return "numba is not installed"
    if inputs[0].device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {inputs[0].device}"
    if inputs[0].dtype in (torch.float32, torch.float64) or (complex_too and inputs[0].dtype.is_complex):
        return None
    return f"it does not compute in {inputs[0].dtype}"


def traced() -> bool:
    """Tell whether a program is being made for any number of steps: then a backend that loops in Python never pays."""
    return torch.compiler.is_compiling()


def numba_pays(inputs: Inputs, *_: Any) -> bool:
    """Tell whether there are enough steps to be worth the call into a kernel."""
    return inputs[0].shape[1] >= NUMBA_PAYS


def torch_pays(inputs: Inputs, *_: Any) -> bool:
    """Tell whether there are enough steps for few large operations to beat many small ones."""
    return inputs[0].shape[1] >= TORCH_PAYS


def differentiate(call: Call, inputs: Inputs, state: Tensor, rest: tuple[Any, ...], grads: tuple[Tensor, Tensor]) -> Inputs:
    """Return the gradients of a call for inputs and state in a form that can be differentiated again."""
    with torch.enable_grad():
        variables = [x if x.requires_grad else x.detach().requires_grad_() for x in (*inputs, state)]
        outputs = call(tuple(variables[:-1]), variables[-1], *rest)
        return torch.autograd.grad(outputs, variables, grads, create_graph=True, materialize_grads=True)
