r"""Compute only what is let through: gather rows, compute them block by block, and put the results back.

A plan says which rows each of several blocks computes. Experts, skipped layers and tokens, early exits and groups of
channels are all of this form, with $f_i(x_t)$ computed only for the routes $\mathcal R$ that are taken:

$$ y_t = \sum_{i : (t, i) \in \mathcal R} w_{ti}\, f_i(x_t) $$

`add_masked` is the same with every block on every row and a product with zero: what tests compare the plan with.

The number of rows is data, so a compiled program stops at a plan and goes on after it; `fullgraph=True` refuses. Where the
whole must be one graph, mechanisms say in their docstring what they do instead.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Block = Callable[[Tensor], Tensor]
LEAST = 256
"""Fewer tokens are not computed much faster than so many: all weights are read for them, and each call takes its time."""


class Plan(NamedTuple):
    """Which rows each block computes.

    `rows` `(R,)` are the rows of the first block, then those of the second, and so on; block i has those from `bounds[i]`
    to `bounds[i + 1]`. `weights` `(R,)` multiply what is computed, or are None for ones. There are `length` rows in all.
    """

    rows: Tensor
    bounds: list[int]
    weights: Tensor | None
    length: int

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return the rows of `x` `(length, ...)` for each block."""
        if len(self.bounds) == 2:
            return [x.index_select(0, self.rows)]
        sizes = [stop - start for start, stop in zip(self.bounds, self.bounds[1:], strict=False)]
        return list(x.index_select(0, self.rows).split(sizes))

    def weighted(self, results: Tensor) -> Tensor:
        """Return `results` `(R, ...)` times their weights."""
        if self.weights is None:
            return results
        return results * self.weights.to(results.dtype).view(-1, *[1] * (results.dim() - 1))


def plan_routes(weights: Tensor | None, indices: Tensor, blocks: int) -> Plan:
    """Return the plan of routes `(n, k)`: each names its block, or -1 for none, and may have a weight."""
    n, k = indices.shape
    flat = torch.where(indices < 0, blocks, indices).flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=blocks + 1)[:blocks].tolist()
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    order = order[: bounds[-1]]
    return Plan(order // k, bounds, None if weights is None else weights.flatten()[order], n)


def plan_rows(keep: Tensor, weights: Tensor | None = None) -> Plan:
    """Return the plan of one block that computes the rows where `keep` `(n,)` is not zero, times `weights` `(n,)`."""
    rows = keep.nonzero().squeeze(1)
    return Plan(rows, [0, rows.shape[0]], None if weights is None else weights[rows], keep.shape[0])


def plan_tokens(keep: Tensor, count: int | None = None) -> tuple[Plan, Tensor]:
    """Return the plan of one block that computes as many tokens of every sequence, and their places `(B, S)`.

    The rows are those of all sequences, one after another. Kept tokens come in their order; a sequence that keeps fewer than
    `S` is filled up with others behind them, whose weight is 0: a causal block does not see them.

    Args:
        keep: `(B, T)`, not zero for the tokens to be computed.
        count: how many tokens are computed of every sequence; by default as many as the one that keeps most, which is read
            from the data.
    """
    batch, time = keep.shape
    counts = keep.count_nonzero(1)
    starts = time * torch.arange(batch, device=keep.device).unsqueeze(1)
    if count is None:
        known = counts.tolist()
        count = max(known, default=0)
        if min(known, default=0) == count:
            plan = plan_rows(keep.flatten())
            return plan, plan.rows.view(batch, count) - starts
    places = (keep == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    rows = (places + starts).flatten()
    there = (torch.arange(count, device=keep.device) < counts.unsqueeze(1)).flatten()
    return Plan(rows, [0, rows.shape[0]], there, batch * time), places


def alike(keep: Tensor, groups: int) -> list[Tensor]:
    """Return the sequences that keep tokens at all, in groups that keep about as many: what fills them up is little.

    A group has at least `LEAST` tokens, as far as there are so many.

    Args:
        keep: `(B, T)`, not zero for the tokens to be computed.
        groups: how many there are at most; one, where all keep as many.
    """
    counts = keep.count_nonzero(1)
    known = counts.tolist()
    kept = len(known) - known.count(0)
    if kept == 0:
        return []
    if kept == len(known) and min(known) == max(known):
        return [torch.arange(kept, device=keep.device)]
    order = counts.argsort(stable=True)[-kept:]
    return list(order.chunk(1 if len({*known} - {0}) == 1 else max(1, min(groups, sum(known) // LEAST))))


def compute(plan: Plan, x: Tensor, blocks: Sequence[Block]) -> Tensor | None:
    """Return the weighted result of each planned row, `(R, ...)`, or None: no block is called on no rows."""
    parts = [block(rows) for block, rows in zip(blocks, plan.gather(x), strict=True) if rows.shape[0]]
    if not parts:
        return None
    return plan.weighted(parts[0] if len(parts) == 1 else torch.cat(parts))


def add(plan: Plan, x: Tensor, blocks: Sequence[Block], into: Tensor) -> Tensor:
    """Return `into` `(n, ...)` with what the blocks compute of `x` added to its rows."""
    results = compute(plan, x, blocks)
    return into if results is None else into.index_add(0, plan.rows, results.to(into.dtype))


def scatter(plan: Plan, x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Return what the blocks compute of `x`, each row's by the one block that it is planned for; of no rows the first's."""
    results = compute(plan, x, blocks)
    return blocks[0](x) if results is None else torch.empty_like(results).index_copy(0, plan.rows, results)


def put(plan: Plan, x: Tensor, block: Block, into: Tensor) -> Tensor:
    """Return `into` `(n, ...)` with what the one block of the plan computes of `x` in the place of its rows."""
    results = compute(plan, x, [block])
    return into if results is None else into.index_copy(0, plan.rows, results.to(into.dtype))


def add_masked(plan: Plan, x: Tensor, blocks: Sequence[Block], into: Tensor) -> Tensor:
    """Return what `add` returns, with every block computing every row: the definition, which saves nothing."""
    for index, block in enumerate(blocks):
        here = plan.rows[plan.bounds[index] : plan.bounds[index + 1]]
        weights = x.new_ones(len(plan.rows)) if plan.weights is None else plan.weights
        mask = x.new_zeros(plan.length).index_add(0, here, weights[plan.bounds[index] : plan.bounds[index + 1]].to(x.dtype))
        everything = block(x)
        into = into + everything * mask.view(-1, *[1] * (everything.dim() - 1))
    return into
