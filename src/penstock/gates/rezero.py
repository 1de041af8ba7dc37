"""Residual gates that start at zero."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from penstock.core import Gate, Halting, ShapeError, Skip, mechanism


@mechanism(
    "rezero",
    paper="bachlechner2021rezero",
    at="definition of the gated residual connection",
    gates={"gate": "(-inf, inf); 0 passes the input on, 1 is the plain residual"},
    traits={"causal", "identity-at-init"},
    example={},
)
class ReZero(Skip):
    r"""A residual branch scaled by one number that starts at zero, so that a network of any depth starts as the identity.

    $$ x_{l+1} = x_l + \alpha_l F_l(x_l), \qquad \alpha_l = 0 \text{ at first} $$

    No normalization, no warm-up. At the first step only the gates move; do not start the branch's last layer at zero as
    well, or nothing does. One instance for each branch, or one for the two branches of a transformer layer, as in the
    released code; the paper says one for each layer. It is usual to leave the number out of weight decay.

    Shapes: any; the block must keep it.

    Args:
        device: where the parameter lives.
        dtype: its type.
    """

    def __init__(self, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
        self.gate = Gate()

    def forward(self, x: Tensor, block: Callable[[Tensor], Tensor]) -> tuple[Tensor, Halting]:
        """Return `x` plus the gated `block(x)`; the block is always computed."""
        branch = block(x)
        if branch.shape != x.shape:
            raise ShapeError(f"{self.name}: the block must keep the shape {tuple(x.shape)}, got {tuple(branch.shape)}")
        openness = self.gate(self.alpha)
        return x + openness * branch, Halting(openness, x.new_ones(()), {})
