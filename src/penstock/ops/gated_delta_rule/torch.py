"""The recurrence by chunks: inside a chunk the corrections solve a triangular system, from chunk to chunk goes the state.

Decays are only ever multiplied, as exponentials of sums over the very steps that lie between, so that no gate is too strong.
"""

import torch
from torch import Tensor

from penstock.ops.gated_linear_attention.torch import CHUNK, spans
from penstock.ops.linear_recurrence.torch import chunks


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state."""
    length = q.shape[1]
    if length == 0:
        return v, state
    q, k, v, log_decay, beta = (chunks(x, CHUNK).transpose(2, 3) for x in (q, k, v, log_decay, beta.unsqueeze(-1)))
    between = spans(log_decay)  # (B, N, H, C, C, D): from after step j to step i
    attended, overlap = weights(q, k, between), weights(k, k, between)
    to_start = log_decay.cumsum(-2).exp()
    right = torch.cat([beta * v, beta * k * to_start], -1)
    solved = torch.linalg.solve_triangular(beta * overlap.tril(-1), right, upper=False, unitriangular=True)
    alone, seen = solved.split([v.shape[-1], k.shape[-1]], -1)  # the corrections are `alone - seen @ state`
    to_end, kept = (k * between[..., -1, :, :]).mT, to_start[..., -1, :].unsqueeze(-1)
    states = []
    for n in range(q.shape[1]):
        states.append(state)
        state = kept[:, n] * state + to_end[:, n] @ (alone[:, n] - seen[:, n] @ state)
    starts = torch.stack(states, 1)
    o = attended @ (alone - seen @ starts) + (q * to_start) @ starts
    return scale * o.transpose(2, 3).flatten(1, 2)[:, :length], state


def weights(x: Tensor, y: Tensor, between: Tensor) -> Tensor:
    """Return the product of each row of `x` with each row of `y` that came no later, decayed."""
    if between.shape[-1] == 1:
        return (x @ y.mT) * between.squeeze(-1)
    return torch.einsum("...ik,...jk,...ijk->...ij", x, y, between)
