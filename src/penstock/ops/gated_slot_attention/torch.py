"""The recurrence in two passes by chunks: scores of all slots, then, after the softmax, gated linear attention."""

import torch
from torch import Tensor

from penstock.ops.gated_linear_attention.torch import CHUNK, gated_linear_attention, spans
from penstock.ops.linear_recurrence.torch import chunks, linear_recurrence


def gated_slot_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last slots."""
    if q.shape[1] == 0:
        return v, state
    keys, values = state.split([k.shape[-1], v.shape[-1]], -1)
    write = -log_decay.expm1()
    scores, last_keys = slot_scores(q, k, write, log_decay, keys.mT)
    openness = (scale * scores).softmax(-1)
    o, last_values = gated_linear_attention(openness, write, v, log_decay, values, 1.0)
    return o, torch.cat([last_keys.mT, last_values], -1)


def slot_scores(q: Tensor, k: Tensor, write: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the product of each query with each slot's key, and the last keys, transposed: linear attention to `write`."""
    length = q.shape[1]
    q, k, write, log_decay = (chunks(x, CHUNK).transpose(2, 3) for x in (q, k, write, log_decay))
    between = spans(log_decay)
    to_start = log_decay.cumsum(-2).exp()
    added = k.mT @ (write * between[..., -1, :, :])
    ends, last = linear_recurrence(to_start[..., -1, :].unsqueeze(-2), added, state)
    starts = torch.cat([state.unsqueeze(1), ends[:, :-1]], 1)
    scores = torch.einsum("...ij,...ijm,...jm->...im", q @ k.mT, between, write) + to_start * (q @ starts)
    return scores.transpose(2, 3).flatten(1, 2)[:, :length], last
