r"""The elementwise linear recurrence.

$$ h_t = a_t \odot h_{t-1} + b_t $$
"""

from torch import Tensor

from penstock.core.backend import Backend, Operation
from penstock.ops.checks import check_broadcast, check_shape, computing_dtype
from penstock.ops.linear_recurrence import reference, torch

NAME = "linear_recurrence"


def prepare(a: Tensor, b: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Check a call's tensors; return `a`, `b` and the state at one dtype."""
    check_shape(NAME, "b", b, "batch time ...")
    check_broadcast(NAME, "a", a, tuple(b.shape))
    rest = (b.shape[0], *b.shape[2:])
    if initial_state is not None and initial_state.shape != rest:
        check_broadcast(NAME, "initial_state", initial_state, rest)
    dtype = computing_dtype(a, b, initial_state)
    state = b.new_zeros(rest, dtype=dtype) if initial_state is None else initial_state.to(dtype).expand(rest)
    return a.to(dtype).expand(b.shape), b.to(dtype), state


OPERATION = Operation(
    NAME,
    Backend("torch", torch.linear_recurrence, refuse=lambda *_: None, pays=lambda _, b, *__: b.shape[1] > 4),
    Backend("reference", reference.linear_recurrence, refuse=lambda *_: None),
)


def linear_recurrence(
    a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return every `h_t = a_t * h_{t-1} + b_t`, and the last: `(B, T, ...) -> (B, T, ...), (B, ...)`.

    Float16 and bfloat16 are computed, and the last state returned, in float32.

    Args:
        a: the decays, real or complex, broadcastable to `b`.
        b: the inputs, real or complex.
        initial_state: the state before the first step, zero by default.
        backend: the implementation to use; chosen by default.

    Raises:
        ShapeError: where the shapes do not fit.
        BackendError: where `backend` cannot serve the call.
    """
    args = prepare(a, b, initial_state)
    h, state = OPERATION.pick(backend, *args)(*args)
    return (h.to(b.dtype) if h.is_complex() == b.is_complex() else h), state
