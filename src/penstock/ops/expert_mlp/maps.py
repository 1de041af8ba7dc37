"""Linear maps of which each expert has one."""

from typing import NamedTuple

import torch
from torch import Tensor


class Maps(NamedTuple):
    """The weights of all experts' maps, `(experts, out, in)`, and what each adds, `(experts, out)`, or None."""

    weight: Tensor
    bias: Tensor | None

    def of(self, expert: int) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of an expert."""
        return self.weight[expert], None if self.bias is None else self.bias[expert]

    def unbind(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias of every expert."""
        biases = [None] * len(self.weight) if self.bias is None else self.bias.unbind()
        return list(zip(self.weight.unbind(), biases, strict=True))

    def to(self, dtype: torch.dtype) -> "Maps":
        """Return the maps in another dtype."""
        return Maps(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))
