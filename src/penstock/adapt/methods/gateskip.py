r"""GateSkip in a trained model: gates on what its branches add to the stream, by which tokens go past a branch.

$$ o_t = g_t \odot f(h)_t \text{ if } \bar g_t \text{ reaches the level, else } 0, \qquad g_t = \sigma(W h_t + b) $$

A token that goes past the attention of a layer takes its key and value from the layer below, so that later tokens find one.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt.calibrate import pooled
from penstock.adapt.method import BudgetPart, Method, Part, Passing
from penstock.adapt.places import Place
from penstock.adapt.ties import PREFIX, Ties, first, hidden, with_first, with_hidden
from penstock.adapt.tokens import some_queries
from penstock.core import Gate, NonNegative, Share
from penstock.ops.linear import Linear, linear
from penstock.ops.plan import plan_tokens

PLAIN = ("sdpa", "eager")
"""Attention functions that take a mask of any tokens, so that queries can be computed for some."""
CLOSED = 0.0
"""The gate of a token that goes past a branch."""


class GateSkipPart(BudgetPart):
    """The gate of one branch of one layer."""

    below: Any
    config: Any
    mates: Sequence["GateSkipPart"] = ()
    """All branches, where they share one budget."""

    gates: ClassVar = {"gate": "(0, 1)", "keep": "{0, 1}"}

    def __init__(self, place: Place, what: "GateSkip", below: "GateSkipPart | None") -> None:
        super().__init__()
        self.sparsity = what.sparsity / (2 * place.layers)
        self.to_gate = Linear(place.dim, place.dim if what.grain == "channel" else 1)
        nn.init.normal_(self.to_gate.weight, std=0.01)
        nn.init.constant_(self.to_gate.bias, 5.0)
        self.gate, self.keep = Gate(), Gate()
        self.start_budget(what.budget)
        self.attends = place.kind == "attention"
        self.__dict__["below"] = below
        self.free = not self.attends or below is not None
        self.kept, self.squares, self.put, self.scores = Passing(), Passing(), Passing(), Passing()

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the calls of the branch."""
        self.causal = bool(getattr(place.core, "is_causal", False))
        self.__dict__["config"] = getattr(place.core, "config", None)
        self.layer = getattr(place.core, "layer_idx", place.index)
        begin, end = place.branch.first, place.branch.last
        whole = begin is end
        if self.attends:
            ties.around(begin, self.attend)
        else:
            ties.around(begin, self.channels if whole else self.begin)
        if not whole:
            ties.around(end, self.end)
        self.whole = whole
        self.cost = float(sum(p.numel() for each in {begin, end} for p in each.parameters()))

    def decide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gate `(B, T, dim or 1)` of what the branch reads, and the mask `(B, T)` of tokens computed."""
        gate = self.gate(torch.sigmoid(self.to_gate(x.detach())))
        if self.training:
            self.squares.value = gate.square().mean()
        keep = self.keep(self.choose(gate.mean(-1)))
        if self.ungated:
            gate = torch.ones_like(gate)
        return gate, keep

    def choose(self, scores: Tensor) -> Tensor:
        """Return the mask of what is computed; in training with one budget for the model, by the level of the batch before.

        A branch is called before those above it have scores, in training as in decoding.
        """
        if not (self.training and self.mates):
            return super().choose(scores)
        if self is self.mates[0]:
            self.share_out()
        self.scores.value = scores = scores.detach().float()
        return scores >= self.level if self.free else torch.ones_like(scores, dtype=torch.bool)

    def share_out(self) -> None:
        """Set the level of all branches to that which would have kept the budget on the batch before, if there was one."""
        seen = [mate.scores.value for mate in self.mates]
        if any(each is None for each in seen):
            return
        level = pooled(self.mates, [each.flatten() for each in seen], self.budget) if self.budget < 1 else -torch.inf
        for mate in self.mates:
            mate.level.fill_(level)

    def penalty(self) -> Tensor | None:
        """Return the weighted mean squared gate of the latest call."""
        return None if self.squares.value is None else self.sparsity * self.squares.value

    def dense(self) -> bool:
        """Whether to compute all and multiply by zeros: in training, where one graph is compiled."""
        return self.training or torch.compiler.is_compiling()

    def count(self, keep: Tensor) -> int:
        """Return how many tokens are computed, and add to the account."""
        run = int(keep.sum())
        self.seen += keep.numel()
        self.run += run
        return run

    def single(self, x: Tensor) -> Tensor | float | None:
        """Return the gate of a single token in decoding, 0 where it goes past the branch, or None where it is not so.

        What is looked at is computed the long way: where a gate is watched, or levels are set.
        """
        if x.shape[:-1].numel() != 1 or self.dense() or self.observe is not None or self.random or self.ungated:
            return None
        parts: Any = self._modules
        counts = self.__dict__  # a module's attributes would take as long again, in each branch
        if parts["gate"]._forward_hooks or parts["keep"]._forward_hooks:
            return None
        weight, bias = parts["to_gate"]._parameters.values()
        gate: Any
        if bias.numel() > 1:
            gate = linear(x, weight, bias).sigmoid()
            mean = gate.mean().item()
        else:
            mean = gate = 1 / (1 + math.exp(-min(80.0, max(-80.0, F.linear(x, weight, bias).item()))))
        open_ = not self.free or mean >= self.level.item()
        counts["seen"], counts["run"] = self.seen + 1, self.run + open_
        return gate if open_ else CLOSED

    def channels(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute a feed-forward layer for the tokens that are kept."""
        x = hidden(args, kwargs)
        one = self.single(x)
        if one is not None:
            if one is CLOSED:
                return torch.zeros_like(x)
            output = inner(*args, **kwargs)
            return with_first(first(output) * one, output)
        gate, keep = self.decide(x)
        if self.dense():
            output = inner(*args, **kwargs)
            return with_first(first(output) * (gate * keep.unsqueeze(-1)), output)
        run = self.count(keep)
        if run == keep.numel():
            output = inner(*args, **kwargs)
            return with_first(first(output) * gate, output)
        if run == 0:
            return torch.zeros_like(x)
        rows = keep.flatten().nonzero().squeeze(1)
        args, kwargs = with_hidden(x.flatten(0, 1)[rows].unsqueeze(0), args, kwargs)
        y = first(inner(*args, **kwargs)).squeeze(0) * gate.flatten(0, 1)[rows]
        return torch.zeros_like(x).flatten(0, 1).index_copy(0, rows, y.to(x.dtype)).view_as(x)

    def begin(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the first module of a feed-forward branch that has several, for the tokens that are kept."""
        x = hidden(args, kwargs)
        gate, keep = self.decide(x)
        if self.dense() or self.count(keep) == keep.numel():
            self.put.value = partial(torch.mul, gate * keep.unsqueeze(-1))
        else:
            rows = keep.flatten().nonzero().squeeze(1)
            self.put.value = partial(_put_rows, gate.flatten(0, 1)[rows], rows, x.shape)
            args, kwargs = with_hidden(x.flatten(0, 1)[rows].unsqueeze(0), args, kwargs)
        return inner(*args, **kwargs)

    def end(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the last module of a branch that has several, and put tokens back where they were."""
        put = self.put.take()
        return put(inner(*args, **kwargs))

    def attend(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute attention for the queries that are kept; the others take keys and values from the layer below."""
        x = hidden(args, kwargs)
        cache = kwargs.get("past_key_values")
        one = self.single(x) if self.whole else None
        if one is not None:
            merged = Merged(cache, self, None)
            if one is CLOSED:
                merged.carry()
                return torch.zeros_like(x), None
            kwargs["past_key_values"] = merged
            output = inner(*args, **kwargs)
            return with_first(first(output) * one, output)
        gate, keep = self.decide(x)
        if self.dense():
            kwargs["past_key_values"] = Merged(cache, self, keep)
            return self.finish(inner(*args, **kwargs), partial(torch.mul, gate * keep.unsqueeze(-1)))
        run = self.count(keep)
        if run == keep.numel() or self.config._attn_implementation.removeprefix(PREFIX) not in PLAIN:
            kwargs["past_key_values"] = Merged(cache, self, None if run == keep.numel() else keep)
            return self.finish(inner(*args, **kwargs), partial(torch.mul, gate * keep.unsqueeze(-1)))
        if run == 0 and self.whole:
            Merged(cache, self, None).carry()
            return torch.zeros_like(x), None
        plan, places = plan_tokens(keep, None if run else 1)
        there = torch.ones_like(places) if plan.weights is None else plan.weights.view_as(places)
        args, kwargs = some_queries(places, args, kwargs, causal=self.causal, layer=self.layer)
        kwargs["past_key_values"] = Merged(cache, self, there, places)
        weights = gate.gather(1, places.unsqueeze(-1).expand(-1, -1, gate.shape[-1])) * there.unsqueeze(-1)
        return self.finish(inner(*args, **kwargs), partial(_put_tokens, weights, places, x.shape))

    def finish(self, output: Any, put: Callable[[Tensor], Tensor]) -> Any:
        """Return what attention gave, or leave it to `end` where a map to the stream follows."""
        if self.whole:
            return with_first(put(first(output)), output)
        self.put.value = put
        return output


class Merged:
    """The cache that an attention is given: keys and values of tokens it does not compute are those of the layer below."""

    def __init__(self, cache: Any, part: GateSkipPart, keep: Tensor | None, places: Tensor | None = None) -> None:
        self.cache, self.part, self.keep, self.places = cache, part, keep, places

    def update(self, k: Tensor, v: Tensor, *rest: Any, **words: Any) -> tuple[Tensor, Tensor]:
        """Return all keys and values `(B, H, T, width)`, those of tokens before included."""
        if self.keep is not None and self.part.below is not None:
            k, v = (self.merge(new, old) for new, old in zip((k, v), self.part.below.kept.value, strict=True))
        self.part.kept.value = (k, v)
        return (k, v) if self.cache is None else self.cache.update(k, v, *rest, **words)

    def merge(self, new: Tensor, old: Tensor) -> Tensor:
        """Return `old` with `new` where tokens were computed."""
        keep = cast("Tensor", self.keep).bool()[:, None, :, None]
        if self.places is None:
            return torch.where(keep, new, old)
        at = self.places[:, None, :, None].expand_as(new)
        return old.scatter(2, at, torch.where(keep, new, old.gather(2, at)))

    def carry(self) -> None:
        """Take all keys and values from the layer below."""
        self.part.kept.value = self.part.below.kept.value
        if self.cache is not None:
            self.cache.update(*self.part.kept.value, self.part.layer)


class GateSkip(Method):
    """GateSkip: residual gates that begin nearly open, by which tokens go past branches once levels are calibrated.

    In training each branch computes the share `budget` of the tokens of a sequence that have the highest gates; in
    evaluation the tokens whose gate reaches a level that `Adapter.calibrate` sets, so that it needs no later token, and
    nothing is skipped before. Where branches share out one budget for the model, training too goes by a level, that which
    would have kept the budget on the batch before. The attention of the lowest layer always runs. Traced by `torch.compile`
    all is computed and multiplied by 0 and 1: compiled, it saves nothing. The paper trains the model's own weights too:
    insert it with `freeze=False`.

    Args:
        budget: share of the tokens that each branch computes.
        grain: a gate for each channel, as in the paper's main runs, or one for each token, a variant of theirs that costs
            nothing to speak of: a square matrix for each branch takes back two thirds of what a LLaMA saves at 0.75.
        sparsity: weight of the mean squared gate in the loss.
        share: keep the budget in each `branch`, as in the paper, or in the whole `model`, so that branches share it out.
    """

    name, kinds = "gateskip", ("attention", "mlp")

    def __init__(
        self,
        budget: Share = 0.75,
        *,
        grain: Literal["channel", "token"] = "channel",
        sparsity: NonNegative = 0.1,
        share: Literal["branch", "model"] = "branch",
    ) -> None:
        self.budget, self.grain, self.sparsity, self.share = budget, grain, sparsity, share

    def keep(self, places: Sequence[Place]) -> list[Place]:
        """Return the feed-forward branches, and the attention that can be given a cache."""
        return [place for place in places if place.kind == "mlp" or place.caches]

    def parts(self, chosen: Sequence[Place], model: nn.Module) -> list[Part]:  # noqa: ARG002 - as the method says
        """Return the gates; that of an attention knows the one below."""
        made: list[Part] = []
        attention: dict[int, tuple[Place, GateSkipPart]] = {}
        for place in chosen:
            before, below = attention.get(place.index - 1, (place, None))
            same = (before.kv_heads, before.width) == (place.kv_heads, place.width)
            part = GateSkipPart(place, self, below if same else None)
            made.append(part)
            if place.kind == "attention":
                attention[place.index] = (place, part)
        for part in made:
            part.__dict__["mates"] = made if self.share == "model" else ()
        return made


def _put_rows(gate: Tensor, rows: Tensor, shape: torch.Size, y: Tensor) -> Tensor:
    y = (y.squeeze(0) * gate).to(y.dtype)
    return y.new_zeros(shape).flatten(0, 1).index_copy(0, rows, y).view(shape)


def _put_tokens(weights: Tensor, places: Tensor, shape: torch.Size, y: Tensor) -> Tensor:
    y = (y * weights).to(y.dtype)
    return y.new_zeros(shape).scatter_add(1, places.unsqueeze(-1).expand_as(y), y)
