"""The recurrence by chunks: inside a chunk each query meets each key, from chunk to chunk goes the state.

Decays are only ever multiplied, as exponentials of sums over the very steps that lie between, so that no gate is too strong.
"""

import torch
from torch import Tensor

from penstock.ops.linear_recurrence.torch import chunks, linear_recurrence

CHUNK = 16


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state."""
    length = q.shape[1]
    if length == 0:
        return v, state
    q, k, v, log_decay = (chunks(x, CHUNK).transpose(2, 3) for x in (q, k, v, log_decay))  # (B, N, H, C, D)
    between = spans(log_decay)  # (B, N, H, C, C, D): from after step j to step i
    if between.shape[-1] == 1:
        scores = (q @ k.mT) * between.squeeze(-1)
    else:
        scores = torch.einsum("...ik,...jk,...ijk->...ij", q, k, between)
    to_start = log_decay.cumsum(-2).exp()
    added = (k * between[..., -1, :, :]).mT @ v
    ends, last = linear_recurrence(to_start[..., -1, :].unsqueeze(-1), added, state)
    starts = torch.cat([state.unsqueeze(1), ends[:, :-1]], 1)
    o = scores @ v + (q * to_start) @ starts
    return scale * o.transpose(2, 3).flatten(1, 2)[:, :length], last


def spans(log_decay: Tensor) -> Tensor:
    """Return what decay leaves at step i of step j, 0 where j comes after i: `(..., C, D) -> (..., C, C, D)`."""
    steps = torch.ones(log_decay.shape[-2], log_decay.shape[-2], dtype=torch.bool, device=log_decay.device)
    later = log_decay.unsqueeze(-2).masked_fill(~steps.tril(-1).unsqueeze(-1), 0).cumsum(-3)
    return later.exp().masked_fill(~steps.tril().unsqueeze(-1), 0)
