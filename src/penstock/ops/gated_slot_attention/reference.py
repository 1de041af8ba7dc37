"""The recurrence as it is defined, a step at a time."""

import torch
from torch import Tensor


def gated_slot_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last slots."""
    outputs, size = [], k.shape[-1]
    steps = (x.unbind(1) for x in (q, torch.cat([k, v], -1), log_decay))
    for q_t, written, g_t in zip(*steps, strict=True):
        state = g_t.exp().unsqueeze(-1) * state - g_t.expm1().unsqueeze(-1) * written.unsqueeze(-2)
        openness = (scale * (state[..., :size] @ q_t.unsqueeze(-1)).squeeze(-1)).softmax(-1)
        outputs.append((openness.unsqueeze(-2) @ state[..., size:]).squeeze(-2))
    return (torch.stack(outputs, 1) if outputs else v), state
