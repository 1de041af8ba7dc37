"""The steps down a loss that a memory takes for each key and value, and the loops over time that are made of them.

A state is `(B, H, V, K)`; keys are `(B, H, K)`, values and gates `(B, H, V)`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from penstock.ops.stepwise import stepwise

POWER, NORM = 3, 4
SMALL = 1e-6


def matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the outer products of two batches of vectors."""
    return rows.unsqueeze(-1) * columns.unsqueeze(-2)


def product(memory: Tensor, vector: Tensor) -> Tensor:
    """Return what the memories `(..., V, K)` say of vectors `(..., K)`."""
    return (memory @ vector.unsqueeze(-1)).squeeze(-1)


def moneta_weight(state: Tensor) -> Tensor:
    """Return the memory, which is what the state holds over a power of its norm."""
    return state / (state.abs().pow(NORM).sum((-2, -1), keepdim=True) + SMALL).pow((NORM - 2) / NORM)


def moneta(state: Tensor, k: Tensor, v: Tensor, keep: Tensor, write: Tensor) -> Tensor:
    """Take a step down the cubed error."""
    error = product(moneta_weight(state), k) - v
    slope = POWER * error * (error.square() + SMALL).pow((POWER - 2) / 2)
    return keep.unsqueeze(-1) * state - matrix(write * slope, k)


def yaad(state: Tensor, k: Tensor, v: Tensor, keep: Tensor, write: Tensor, limit: Tensor) -> Tensor:
    """Take a step down the squared error, no longer than if the error had the length `limit`."""
    error = product(state, k) - v
    length = (error.square().sum(-1, keepdim=True) + SMALL).sqrt()
    return keep.unsqueeze(-1) * state - matrix(write * error * (limit / length).clamp_max(1), k)


def memora(state: Tensor, k: Tensor, v: Tensor, keep: Tensor, write: Tensor) -> Tensor:
    """Take a step down the squared error in the logarithms of a memory whose rows sum to 1."""
    error = product(state.exp(), k) - v
    return (keep.unsqueeze(-1) * state - matrix(write * error, k)).log_softmax(-1)


def loop(step: Callable[..., Tensor], weight: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a loop over time of inputs `(B, T, H, ...)`, the queries first, that reads after each step."""

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *series, state = inputs
        outputs = []
        for q, *rest in zip(*(part.unbind(1) for part in series), strict=True):
            state = step(state, *rest)
            outputs.append(product(weight(state), q).flatten(1))
        return torch.stack(outputs, 1), state

    return run


def _width(_: Tensor, __: Tensor, v: Tensor, *___: Tensor) -> int:
    return v.shape[2] * v.shape[3]


MONETA = stepwise("moneta", loop(moneta, moneta_weight), _width)
YAAD = stepwise("yaad", loop(yaad, lambda state: state), _width)
MEMORA = stepwise("memora", loop(memora, torch.exp), _width)
