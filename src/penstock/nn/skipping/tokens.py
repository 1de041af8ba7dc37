"""What mechanisms that skip tokens share: which tokens are computed, and computing them alone."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from penstock.core import AuxiliaryLosses, Gate, Share, Skip
from penstock.gates import Budget, check_scores
from penstock.ops.plan import Plan, add, alike, plan_rows, plan_tokens

Block = Callable[[Tensor], Tensor]
Select = Literal["top", "level"]
Keys = Literal["kept", "all"]
GROUPS = 4
"""In how many groups sequences are computed that keep different numbers of tokens."""
STEPS, STRIDE = 65536, 40503
"""In how many steps tokens that tie are told apart by their places, and how many from one place to the next: near the
golden section, which spreads them evenly."""


def order(places: Tensor) -> Tensor:
    """Return numbers from 0 to 1, evenly spread over any run of places, by which tokens of equal scores are told apart."""
    return (places * STRIDE % STEPS) / STEPS


class AbstractTokenSkip(Skip):
    """A skip that computes its block for the tokens with the highest scores, and for no others.

    The tokens are gathered, computed as shorter sequences, and put back. `select="top"` computes the same share of every
    sequence, which looks at all of its tokens; `level` computes the tokens whose score reaches a level that
    `penstock.models.calibrate` sets on data, so that it needs no later token; training always takes the top. Of the tokens
    whose score is at the level, equal words say, a share is computed, spread evenly over their places. Under
    `torch.compile` the top is a fixed number of tokens, and all stays one graph; how many reach a level is data, so that
    the program stops there and goes on after it, and `fullgraph=True` refuses.

    Args:
        budget: share of the tokens that is computed; it may be set to another at any time.
        select: how tokens are chosen in evaluation.
        keys: whether tokens that are skipped are `kept` out of attention too, or `all` give keys and values.
    """

    first_level: ClassVar[float] = -torch.inf
    trained_for_budget: ClassVar[bool] = False
    level: Tensor
    ties: Tensor
    wanted: float | None = None
    reached: float = 1.0

    def __init__(self, budget: Share, select: Select, keys: Keys, *, device: Any, dtype: Any) -> None:
        super().__init__()
        self.budget, self.select, self.keys = budget, select, keys
        place = {"device": device, "dtype": dtype}
        self.register_buffer("level", torch.full((), self.first_level, **place))
        self.register_buffer("ties", torch.tensor([self.first_level, 0.0], **place))
        self.keep = Gate()
        self.losses = AuxiliaryLosses()

    @property
    def budget(self) -> float:
        """The share of the tokens that is computed."""
        return self._budget.target

    @budget.setter
    def budget(self, share: float) -> None:
        self._budget = Budget(share)

    def choose(self, scores: Tensor, start: int = 0) -> Tensor:
        """Return the mask of the tokens that are computed, of their scores `(B, T)`; the first is at place `start`."""
        scores = check_scores(self.name, scores.detach())
        if self.training or self.select == "top":
            return self.keep(self._budget.select(scores))
        spread = order(torch.arange(start, start + scores.shape[1], device=scores.device)).to(scores.dtype)
        if self.wanted is not None:
            self.calibrate(scores, spread, self.wanted)
        return self.keep(self.reach(scores, spread).to(scores.dtype))

    def reach(self, scores: Tensor, spread: Tensor) -> Tensor:
        """Return whether scores `(B, T)` are above the level, or at it with a place in the order that is."""
        top, share = self.ties
        return (scores >= self.level) & ((scores >= top) | (spread >= share))

    def calibrate(self, scores: Tensor, spread: Tensor, share: float) -> None:
        """Set the level that comes nearest to computing `share` of data with scores `(B, T)`, and note what it comes to.

        Equal scores differ in their last digits from one batch to another: a level has a width, and the scores within it are
        taken for equal.
        """
        step = torch.maximum(1e-3 * scores.std(correction=0), 1e-6 * scores.abs().amax()).clamp_min(1e-30)
        levels, ranks = (scores / step).round().unique(return_inverse=True)
        cut = Budget(share).threshold(ranks + spread.double())
        if cut == float("inf"):
            self.level.fill_(cut)
        else:
            self.level.copy_((levels[int(cut)] - 0.5) * step)
            self.ties[0], self.ties[1] = self.level + step, cut % 1 - 0.5 / STEPS
        self.reached = float(self.reach(scores, spread).double().mean())

    def compute(self, x: Tensor, block: Block, keep: Tensor, weights: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return `x` `(B, T, D)` with what the block gives for the kept tokens, times `weights` `(B, T, 1 or D)`, added.

        A block of single positions gets all kept tokens as one sequence. Where sequences keep different numbers, those that
        keep about as many are computed together, since the shorter ones of them are filled up. `seen` is what the block has
        read of `x` (`read`), if it has.
        """
        if hasattr(block, "extend"):
            return block.extend(x, keep, weights)
        seen = x if seen is None else seen
        if torch.compiler.is_compiling() and (self.training or self.select == "top"):
            return self.put(x, block, plan_tokens(keep, self._budget.count(x.shape[1])), weights, seen)
        if getattr(block, "pointwise", False):
            plan = plan_rows(keep.flatten())
            return self.put(x, block, (plan, plan.rows.unsqueeze(0)), weights, seen)
        y = x
        for rows in alike(keep, GROUPS):
            if len(rows) == len(x):
                return self.put(x, block, plan_tokens(keep), weights, seen)
            some = block.of(rows) if hasattr(block, "of") else block
            y = y.index_copy(0, rows, self.put(x[rows], some, plan_tokens(keep[rows]), weights[rows], seen[rows]))
        return y

    def put(self, x: Tensor, block: Block, planned: tuple[Plan, Tensor], weights: Tensor, seen: Tensor) -> Tensor:
        """Return what `compute` returns, of a plan and the places `(B, S)` of the tokens that are computed."""
        plan, places = planned
        at = getattr(block, "at", None)

        def some(rows: Tensor) -> Tensor:
            tokens = rows.unflatten(0, places.shape)
            y = block(tokens) if at is None else at(tokens, places, seen if self.keys == "all" else None)
            return y.flatten(0, 1) * weights.flatten(0, 1).index_select(0, plan.rows)

        return add(plan, seen.flatten(0, 1), [some], x.flatten(0, 1)).view_as(x)


def read(block: Block, x: Tensor) -> Tensor:
    """Return what the block makes of the stream `x` before it computes, or `x` where it does not say."""
    reads = getattr(block, "read", None)
    return x if reads is None else reads(x)
