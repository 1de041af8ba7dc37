"""The mixture as it is defined: each expert on its tokens, times its openness for each."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.ops.expert_mlp.activation import activate
from penstock.ops.expert_mlp.maps import Maps


def expert_mlp(
    x: Tensor, weights: Tensor, indices: Tensor, inner: Maps, outer: Maps, activation: str, _: Any = None
) -> Tensor:
    """Return the weighted sums."""
    y = torch.zeros_like(x)
    for expert, (first, second) in enumerate(zip(inner.unbind(), outer.unbind(), strict=True)):
        rows = (indices == expert).any(-1).nonzero().squeeze(1)
        openness = (weights[rows] * (indices[rows] == expert)).sum(-1, keepdim=True)
        made = F.linear(activate(F.linear(x[rows], *first), activation), *second)
        y = y.index_add(0, rows, openness.to(x.dtype) * made)
    return y
