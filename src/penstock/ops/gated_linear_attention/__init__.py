r"""Linear attention whose matrix state decays by a gate, for each channel or for each head.

$$ S_t = \mathrm{Diag}(e^{g_t})\, S_{t-1} + k_t v_t^\top, \qquad o_t = s\, S_t^\top q_t $$
"""

from torch import Tensor

from penstock.core.backend import Backend, Operation
from penstock.ops.checks import check_broadcast, check_shape, computing_dtype
from penstock.ops.gated_linear_attention import reference, torch

NAME = "gated_linear_attention"


def prepare(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Check a call's tensors; return them at one dtype, `log_decay` as `(B, T, H, K)` or `(B, T, H, 1)`."""
    check_shape(NAME, "q", q, "batch time heads key")
    batch, time, heads, key = q.shape
    check_shape(NAME, "k", k, "batch time heads key", batch=batch, time=time, heads=heads, key=key)
    check_shape(NAME, "v", v, "batch time heads value", batch=batch, time=time, heads=heads)
    value = v.shape[3]
    check_broadcast(NAME, "log_decay", log_decay, (batch, time, heads, 1), (batch, time, heads, key))
    if initial_state is not None:
        check_shape(
            NAME, "initial_state", initial_state, "batch heads key value", batch=batch, heads=heads, key=key, value=value
        )
    dtype = computing_dtype(q, k, v, log_decay, initial_state)
    state = q.new_zeros(batch, heads, key, value, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    width = log_decay.shape[-1] if log_decay.dim() else 1
    decay = log_decay.to(dtype).expand(batch, time, heads, width)
    return q.to(dtype), k.to(dtype), v.to(dtype), decay, state, key**-0.5 if scale is None else scale


OPERATION = Operation(
    NAME,
    Backend("torch", torch.gated_linear_attention, refuse=lambda *_: None, pays=lambda q, *_: q.shape[1] > 4),
    Backend("reference", reference.gated_linear_attention, refuse=lambda *_: None),
)


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state: `(B, T, H, K), (B, T, H, K), (B, T, H, V) -> (B, T, H, V), (B, H, K, V)`.

    Float16 and bfloat16 are computed, and the last state returned, in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        log_decay: logarithms of the decays, 0 or less, broadcastable to `(B, T, H, K)` or, one for a head, to
            `(B, T, H, 1)`. `-inf` forgets all that came before.
        initial_state: the state before the first step, zero by default.
        scale: factor of the outputs, `K ** -0.5` by default.
        backend: the implementation to use; chosen by default.

    Raises:
        ShapeError: where the shapes do not fit.
        BackendError: where `backend` cannot serve the call.
    """
    args = prepare(q, k, v, log_decay, initial_state, scale)
    o, state = OPERATION.pick(backend, *args)(*args)
    return o.to(v.dtype), state
