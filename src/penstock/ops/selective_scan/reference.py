"""The recurrence as it is defined, a step at a time."""

import torch
from torch import Tensor


def selective_scan(x: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state."""
    outputs = []
    for x_t, delta_t, b_t, c_t in zip(*(y.unbind(1) for y in (x, delta, b, c)), strict=True):
        state = (delta_t.unsqueeze(-1) * a).exp() * state + (delta_t * x_t).unsqueeze(-1) * b_t.unsqueeze(1)
        outputs.append((state @ c_t.unsqueeze(-1)).squeeze(-1))
    return (torch.stack(outputs, 1) if outputs else x), state
