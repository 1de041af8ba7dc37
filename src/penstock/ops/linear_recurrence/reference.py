"""The recurrence as it is defined, a step at a time."""

import torch
from torch import Tensor


def linear_recurrence(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return all states and the last one."""
    states = []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        state = a_t * state + b_t
        states.append(state)
    return (torch.stack(states, 1) if states else b), state
