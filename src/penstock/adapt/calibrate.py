"""Levels that keep a budget, found by running a model on data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from penstock.adapt.method import SLOTS, BudgetPart
from penstock.adapt.running import call, evaluating
from penstock.core import ConfigError, DataError
from penstock.gates import Budget

MOST = 2**24
"""More scores than these torch takes no quantile of."""
ROUNDS = 3
"""What is skipped in a layer changes the scores in the next: levels are set, and set again on what they made of the data."""


@torch.no_grad()
def calibrate(
    model: nn.Module, parts: Sequence[BudgetPart], data: list[Any], budgets: tuple[float, ...], *, together: bool = False
) -> None:
    """Set the levels at which each of `budgets` is kept on `data`.

    Args:
        model: with the parts in it.
        parts: whose levels are set.
        data: batches that the model is called with.
        budgets: shares above 0 and at most 1.
        together: one level for all parts, so that the budget goes where scores are high, instead of one for each part.
    """
    if not data:
        raise DataError("calibrate: data must have a batch, and has none")
    if not budgets or not all(0 < share <= 1 for share in budgets):
        raise ConfigError(f"calibrate: budgets must be shares above 0 and at most 1, got {budgets!r}")
    grid = sorted({*map(float, budgets), 1.0})
    if len(grid) > SLOTS:
        raise ConfigError(f"calibrate: at most {SLOTS - 1} budgets besides 1, got {len(grid) - 1}")
    table = [_levels(model, parts, data, share, together=together) for share in grid]
    for part, column in zip(parts, zip(*table, strict=True), strict=True):
        part.set_levels(grid, column)


def _levels(model: nn.Module, parts: Sequence[BudgetPart], data: list[Any], share: float, *, together: bool) -> list[float]:
    before = [part.level.clone() for part in parts]
    found = [-torch.inf] * len(parts)
    try:
        for _ in range(ROUNDS if share < 1 else 0):
            for part, level in zip(parts, found, strict=True):
                part.level.fill_(level)
            scores = _scores(model, parts, data)
            if together:
                found = [pooled(parts, scores, share)] * len(parts)
            else:
                found = [float(torch.quantile(each[:MOST].double(), 1 - share)) for each in scores]
    finally:
        for part, level in zip(parts, before, strict=True):
            part.level.copy_(level)
    return found


def pooled(parts: Sequence[BudgetPart], scores: list[torch.Tensor], share: float) -> float:
    """Return the one level at which all parts together keep a share of their cost, for what each of them scored `(n,)`."""
    costs = [torch.full_like(each, part.cost / max(1, len(each))) for part, each in zip(parts, scores, strict=True)]
    free = [i for i, part in enumerate(parts) if part.free]
    fixed = sum(part.cost for part in parts if not part.free)
    return Budget(share, fixed=fixed).threshold([scores[i] for i in free], [costs[i] for i in free])


def _scores(model: nn.Module, parts: Sequence[BudgetPart], data: list[Any]) -> list[torch.Tensor]:
    for part in parts:
        part.observe = []
    try:
        with evaluating(model):
            for batch in data:
                call(model, batch)
        seen = [torch.cat(part.observe or []) for part in parts]
    finally:
        for part in parts:
            part.observe = None
    if not all(len(each) for each in seen):
        raise DataError("calibrate: the model did not call every part on the data")
    return seen
