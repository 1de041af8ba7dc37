r"""The mixture of experts: each token goes through the few two-layer networks that a router sends it to.

$$ y_t = \sum_{i \in \mathcal I_t} g_{ti} \left(V_i\, \phi(W_i x_t + b_i) + c_i\right) $$

No token is dropped, padded or copied for an expert that does not want it: tokens are sorted by expert, and each expert
multiplies as many rows as it has. For gated activations (`swiglu`, `geglu`, `reglu`) the first half of the inner units is
the gate of the second.
"""

from typing import Any

from torch import Tensor

from penstock.core.backend import Backend, Operation
from penstock.core.errors import ConfigError, ShapeError, unknown
from penstock.core.outputs import Routing
from penstock.ops.calls import traced
from penstock.ops.checks import check_shape
from penstock.ops.expert_mlp import reference, torch
from penstock.ops.expert_mlp.activation import ACTIVATIONS, GATED
from penstock.ops.expert_mlp.maps import Maps
from penstock.ops.expert_mlp.packed import Packed

NAME = "expert_mlp"


def prepare(
    x: Tensor,
    routing: Routing,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    *,
    activation: str = "swiglu",
    packed: Packed | None = None,
) -> tuple[Any, ...]:
    """Check a call and bring it into the form of the backends."""
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{NAME}: {unknown('activation', activation, ACTIVATIONS)}")
    check_shape(NAME, "x", x, "tokens dim")
    n, dim = x.shape
    check_shape(NAME, "w_out", w_out, "experts dim hidden", dim=dim)
    experts, _, hidden = w_out.shape
    inner = 2 * hidden if activation in GATED else hidden
    check_shape(NAME, "w_in", w_in, "experts inner dim", experts=experts, inner=inner, dim=dim)
    if b_in is not None:
        check_shape(NAME, "b_in", b_in, "experts inner", experts=experts, inner=inner)
    if b_out is not None:
        check_shape(NAME, "b_out", b_out, "experts dim", experts=experts, dim=dim)
    weights, indices = routing.weights, routing.indices
    check_shape(NAME, "routing.indices", indices, "tokens routes", tokens=n)
    check_shape(NAME, "routing.weights", weights, "tokens routes", tokens=n, routes=indices.shape[1])
    if not traced() and indices.numel() and not -1 <= int(indices.min()) <= int(indices.max()) < experts:
        raise ShapeError(
            f"{NAME}: routing.indices must name one of {experts} experts, or be -1 for none, "
            f"got {int(indices.min())} to {int(indices.max())}"
        )
    return x, weights, indices, Maps(w_in, b_in), Maps(w_out, b_out), activation, packed


OPERATION = Operation(
    NAME,
    Backend("torch", torch.expert_mlp, refuse=lambda *_: None),
    Backend("reference", reference.expert_mlp, refuse=lambda *_: None),
)


def expert_mlp(
    x: Tensor,
    routing: Routing,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    *,
    activation: str = "swiglu",
    packed: Packed | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return the weighted sum of what its experts make of each token: `(n, dim) -> (n, dim)`.

    A token without a route gets zeros. An expert without tokens gets a gradient of zeros.

    Args:
        x: tokens.
        routing: of which `weights` and `indices` `(n, k)` are read; an index of -1 is no route.
        w_in: inner weights W, `(experts, hidden, dim)`, or `(experts, 2 * hidden, dim)` for a gated activation.
        w_out: outer weights V, `(experts, dim, hidden)`.
        b_in: added inside, `(experts, hidden)` or `(experts, 2 * hidden)`.
        b_out: added to what each expert returns, `(experts, dim)`.
        activation: `swiglu`, `geglu`, `reglu`, `silu`, `gelu` or `relu`.
        packed: the same weights in the order that the matrix library reads them in, from `pack_experts`; used where no
            gradient is asked for.
        backend: the implementation to use; chosen by default.

    Raises:
        ShapeError: where the shapes do not fit, or an index names no expert.
        ConfigError: where the activation is unknown.
        BackendError: where `backend` cannot serve the call.
    """
    arguments = prepare(x, routing, w_in, w_out, b_in, b_out, activation=activation, packed=packed)
    return OPERATION.pick(backend, *arguments)(*arguments)
