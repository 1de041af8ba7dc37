"""The recurrence as it is defined, a step at a time."""

import torch
from torch import Tensor


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state."""
    outputs = []
    steps = (x.unbind(1) for x in (q, k, v, log_decay.exp(), beta))
    for q_t, k_t, v_t, decay, beta_t in zip(*steps, strict=True):
        state = decay.unsqueeze(-1) * state
        error = v_t - (k_t.unsqueeze(-2) @ state).squeeze(-2)
        state = state + k_t.unsqueeze(-1) * (beta_t.unsqueeze(-1) * error).unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return (scale * torch.stack(outputs, 1) if outputs else v), state
