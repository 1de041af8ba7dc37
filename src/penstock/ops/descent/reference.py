"""The loops over time that are made of steps down a loss.

A state is `(..., H, V, K)`; keys are `(..., H, K)`, values and gates `(..., H, V)`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from penstock.ops.linear_recurrence import linear_recurrence

SMALL = 1e-6


def matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the outer products of two batches of vectors."""
    return rows.unsqueeze(-1) * columns.unsqueeze(-2)


def product(memory: Tensor, vector: Tensor) -> Tensor:
    """Return what the memories `(..., V, K)` say of vectors `(..., K)`."""
    return (memory @ vector.unsqueeze(-1)).squeeze(-1)


def moneta_weight(state: Tensor) -> Tensor:
    """Return the memory, which is what the state holds over the square of its 4-norm."""
    return state / (state.square().square().sum((-2, -1), keepdim=True) + SMALL).sqrt()


def moneta_slope(error: Tensor) -> Tensor:
    """Return the slope of the cubed size of the error."""
    return 3 * error * (error.square() + SMALL).sqrt()


def yaad_slope(error: Tensor, limit: Tensor) -> Tensor:
    """Return the slope of the squared error, no longer than if the error had the length `limit`."""
    length = (error.square().sum(-1, keepdim=True) + SMALL).sqrt()
    return error * (limit / length).clamp_max(1)


def itself(x: Tensor) -> Tensor:
    """Return `x`."""
    return x


def normalized(state: Tensor) -> Tensor:
    """Return the logarithms of rows that sum to 1."""
    return state.log_softmax(-1)


def loop(
    slope: Callable[..., Tensor], weight: Callable[[Tensor], Tensor], settle: Callable[[Tensor], Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a loop over chunks of time, which reads the memory after each token.

    Its arguments are queries, keys, values, gates `(B, T, H, ...)`, what `slope` takes besides the error, the state, the
    length of a chunk, and how many tokens of one are done. The state is `(B, 2, H, V, K)`, now and at the
    chunk's start, where a chunk has more than one token.

    Args:
        slope: from the errors of the memory at the chunk's start to the slopes of the loss.
        weight: from states to memories.
        settle: from states after a step to those that are kept.
    """

    def run(*arguments: Any) -> tuple[Tensor, Tensor]:
        *series, state, chunk, done = arguments
        now, start = state.unbind(1) if chunk > 1 else (state, state)
        outputs = []
        for q, k, v, keep, write, *rest in pieces(series, chunk, done):
            start = now if done == 0 else start
            error = torch.einsum("bhvk,bthk->bthv", weight(start), k) - v
            decay, push = keep.unsqueeze(-1), -matrix(write * slope(error, *rest), k)
            single = k.shape[1] == 1
            states = settle(decay * now.unsqueeze(1) + push if single else linear_recurrence(decay, push, now)[0])
            outputs.append(product(weight(states), q).flatten(2))
            now, done = states[:, -1], (done + k.shape[1]) % chunk
        return torch.cat(outputs, 1), torch.stack((now, start), 1) if chunk > 1 else now

    return run


def pieces(series: Sequence[Tensor], chunk: int, done: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut series `(B, T, ...)` where chunks end, the first of which has `done` tokens behind it."""
    time = series[0].shape[1]
    ends = [*range(chunk - done, time, chunk), time]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return zip(*(part.split(sizes, 1) for part in series), strict=True)


LOOPS = {
    "moneta": loop(moneta_slope, moneta_weight, itself),
    "yaad": loop(yaad_slope, itself, itself),
    "memora": loop(itself, torch.exp, normalized),
}
