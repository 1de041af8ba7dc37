"""The recurrence as it is defined, a step at a time."""

import torch
from torch import Tensor


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state."""
    outputs = []
    for q_t, k_t, v_t, decay in zip(q.unbind(1), k.unbind(1), v.unbind(1), log_decay.exp().unbind(1), strict=True):
        state = decay.unsqueeze(-1) * state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return (scale * torch.stack(outputs, 1) if outputs else v), state
