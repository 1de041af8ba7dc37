r"""Skip-middle in a trained decoder: a token whose gates have closed goes around the layers in the middle.

$$ G^{(\ell)}_t = 1 - \min\Bigl(1, \sum_{j \le \ell} \operatorname{relu}(w_j^\top \hat h^{(j)}_t + b_j)\Bigr), \qquad
   h \leftarrow h + G^{(\ell)} \odot f(h) $$

for both branches of the layers $\ell$ and $L - 1 - \ell$, where attention to token $j$ has $\log G_j$ added to its score.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt.method import BudgetPart, Method, Part, Passing
from penstock.adapt.methods.norga import additive
from penstock.adapt.places import Place, child
from penstock.adapt.places import places as places_of
from penstock.adapt.ties import PREFIX, Ties, first, with_first
from penstock.adapt.tokens import some_queries, take
from penstock.core import ConfigError, Gate, Positive, Share
from penstock.ops.linear import Linear
from penstock.ops.plan import plan_tokens

LEAST, HIDDEN = 1e-6, -1e4
"""What a gate counts for at least where all is computed, and what is added to the score of a token that is not computed."""
BAND = 0.01
PLAIN = ("sdpa", "eager")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
"""Norms of what branches give, in families that have both: the gate stands behind them."""


class Decision(NamedTuple):
    """How far tokens are open: `gate` `(B, T)`, 0 where `keep` is not, and what is added to their score as keys."""

    gate: Tensor
    keep: Tensor
    score: Tensor
    run: int


class SkipMiddlePart(BudgetPart):
    """The gate before one layer of the first half, which that layer, those behind it and their mirror images obey."""

    above: Any
    gates: ClassVar = {"gate": "[0, 1]; 1 runs the layers", "keep": "{0, 1}"}
    weights: Tensor

    def __init__(self, place: Place, what: "SkipMiddle", layers: list[Place], above: "SkipMiddlePart | None") -> None:
        super().__init__()
        self.to_gate = Linear(place.dim, 1)
        nn.init.zeros_(self.to_gate.weight)
        nn.init.zeros_(self.to_gate.bias)
        self.gate, self.keep = Gate(), Gate()
        self.register_buffer("weights", torch.zeros(2))
        self.start_budget(what.budget)
        self.rate, self.depth, self.count = what.rate, 0.0, 1
        self.__dict__["above"], self.__dict__["layers"] = above, layers
        self.sums, self.decision, self.moments = Passing(), Passing(), Passing()

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the layers that obey the gate."""
        modules: set[nn.Module] = set()
        for each in self.__dict__.pop("layers"):
            modules.update(end for side in each.stack for end in (side.branch.first, side.branch.last))
            _Layer(self, each, decides=each.index == place.index).attach(each, ties)
        self.cost = float(sum(p.numel() for part in modules for p in part.parameters()))

    def dense(self) -> bool:
        """Whether to compute all and multiply by gates: in training, and where one graph is compiled."""
        return self.training or torch.compiler.is_compiling()

    def choose(self, scores: Tensor) -> Tensor:
        """Return the mask of what is computed; in training all is, and the gates' means are held to the budget."""
        scores = scores.detach().float()
        if self.observe is not None:
            self.observe.append(scores.flatten())
        return torch.ones_like(scores, dtype=torch.bool) if self.training else scores >= self.level

    def decide(self, x: Tensor) -> None:
        """Settle how far the tokens of the stream `x` `(B, T, dim)` are open from here to the layer's mirror image."""
        closing = self.to_gate(F.rms_norm(x, x.shape[-1:], eps=1e-5)).squeeze(-1)
        start = torch.zeros_like(closing)
        closed, most, through, order = self.above.sums.value if self.above else (start, start - torch.inf, start, None)
        if self.random and not self.training:
            order = torch.randperm(closing.numel(), device=x.device) if order is None else order
            closing = closing.flatten()[order].view_as(closing)
        closed, most, through = closed + closing.clamp_min(0), most.maximum(closing), through + closing
        self.sums.value = (closed, most, through, order)
        gate = self.gate(1 - closed.clamp(max=1))
        if self.training:
            self.moments.value = self.moment(gate, through)
        # Tokens that no gate closes are told apart by how near the nearest came to it.
        keep = self.keep(self.choose(1 - closed.maximum(most)) & ((gate > 0) | self.training))
        self.decision.value = self.outcome(gate, keep)

    def outcome(self, gate: Tensor, keep: Tensor) -> Decision:
        """Return what layers are told."""
        score = gate.clamp_min(LEAST).log()
        if self.training:
            return Decision(gate, keep, score, keep.numel())
        if self.ungated:
            gate, score = torch.ones_like(gate), torch.zeros_like(score)
        run = keep.numel() if self.dense() else int(keep.sum())
        self.seen += keep.numel()
        self.run += run
        return Decision(gate * keep, keep, torch.where(keep, score, HIDDEN), run)

    def moment(self, gate: Tensor, through: Tensor) -> Tensor:
        """Return the weighted mean and variance of the gates, and move the weights by how far these are off.

        All gates have a gradient in it, those that are 0 or 1 throughout too, or an open gate could not begin to close.
        """
        mean_wanted = self.wanted()
        smooth = gate.detach() - (through - through.detach())
        found = torch.stack([smooth.mean(), smooth.var(correction=0)])
        loss = (self.weights.clone() * found).sum() / self.count
        off = found.detach() - found.new_tensor([mean_wanted, mean_wanted * (1 - mean_wanted)])
        self.weights += self.rate * torch.where(off.abs() > BAND, off, 0)
        return loss

    def wanted(self) -> float:
        """Return the mean of this gate wanted: on a line from the first to the middle whose mean is the budget."""
        start, end = min(1.0, 2 * self.budget), max(0.0, 2 * self.budget - 1)
        return start + (end - start) * self.depth

    def penalty(self) -> Tensor | None:
        """Return the weighted moments of the latest call in training."""
        return self.moments.value


class _Layer:
    """One layer that obeys a gate: it runs for the open tokens, which alone are seen in it."""

    def __init__(self, part: SkipMiddlePart, place: Place, *, decides: bool) -> None:
        attention = place.inside("attention")
        self.part, self.decides = part, decides
        self.index = getattr(attention.core, "layer_idx", place.index)
        self.shape = (attention.kv_heads, attention.width)
        self.names = list(inspect.signature(type(place.host).forward).parameters)[1:]
        self.gate, self.score = Passing(), Passing()

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the layer, what its branches give, and its attention."""
        norms = [child(place.host, [name]) for name in AFTER]
        ties.around(place.host, self.run)
        for side, norm in zip(place.stack, norms, strict=True):
            ties.after(norm if norm is not None and None not in norms else side.branch.last, self.scale)
        ties.attention(place.inside("attention").core, self.attend)

    def run(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the layer for the tokens that are open."""
        kwargs |= dict(zip(self.names, args, strict=False))
        x = kwargs.pop(self.names[0])
        if self.decides:
            self.part.decide(x)
        gate, keep, score, run = self.part.decision.value
        cache = kwargs.get("past_key_values")
        if self.part.dense() or run == keep.numel():
            self.gate.value = gate.unsqueeze(-1)
            return inner(x, **kwargs | {"past_key_values": _Scored(cache, self, score)})
        if run == 0:
            _Scored(cache, self, score).fill(x)
            return x
        plan, places = plan_tokens(keep)
        self.gate.value = take(gate, places).unsqueeze(-1)
        given, kwargs = some_queries(places, (x,), kwargs, causal=True, layer=self.index)
        output = inner(*given, **kwargs | {"past_key_values": _Scored(cache, self, score, places)})
        y = first(output)
        if plan.weights is not None:  # a token that only fills a row up stays as it is
            y = torch.where(plan.weights.view(*places.shape, 1), y, given[0])
        return with_first(x.scatter(1, places.unsqueeze(-1).expand_as(y), y), output)

    def scale(self, output: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - what a hook is given
        """Multiply what a branch gives by the gates."""
        return with_first(first(output) * self.gate.value, output)

    def attend(self, inner: Any, core: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **words: Any) -> Any:
        """Attend to each token as far as its gate is open."""
        if mask is None:  # as transformers has it, where queries stand at the first of the keys, or there is one
            mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask = mask.tril() if q.shape[2] > 1 else mask
        seen = additive(core, q, k, mask)
        seen = seen[:, :1] if mask.shape[1] == 1 else seen
        least = torch.finfo(q.dtype).min
        return inner(core, q, k, v, (seen + self.score.take().to(q.dtype)).clamp_min(least), **words)


class _Scored:
    """The cache that an attention is given: it keeps the scores of tokens as one channel more of their keys.

    So they are reordered, cut and repeated with the keys. A token that is not computed has a place there and nothing in it.
    """

    def __init__(self, cache: Any, layer: _Layer, score: Tensor, places: Tensor | None = None) -> None:
        self.cache, self.layer, self.score, self.places = cache, layer, score, places

    def update(self, k: Tensor, v: Tensor, *rest: Any, **words: Any) -> tuple[Tensor, Tensor]:
        """Return all keys and values `(B, H, T, width)`, those of tokens before included."""
        if self.places is not None:
            at = self.places[:, None, :, None].expand_as(k)
            k, v = (x.new_zeros(*x.shape[:2], self.score.shape[1], x.shape[3]).scatter(2, at, x) for x in (k, v))
        k = torch.cat((k, self.score.to(k.dtype)[:, None, :, None].expand(-1, k.shape[1], -1, -1)), -1)
        if self.cache is not None:
            self.check(k.shape[-1])
            k, v = self.cache.update(k, v, *rest, **words)
        self.layer.score.value = k[:, :1, :, -1].unsqueeze(2)
        return k[..., :-1], v

    def check(self, width: int) -> None:
        """Raise a `ConfigError` where the cache has keys without scores."""
        layers = getattr(self.cache, "layers", ())
        held = getattr(layers[self.layer.index], "keys", None) if len(layers) > self.layer.index else None
        if held is not None and held.numel() and held.shape[-1] != width:
            raise ConfigError(f"{SkipMiddle.name}: the cache was filled without the gates: it must begin anew")

    def fill(self, x: Tensor) -> None:
        """Keep places for tokens none of which are computed."""
        if self.cache is not None:
            heads, width = self.layer.shape
            nothing = x.new_zeros(x.shape[0], heads, x.shape[1], width)
            self.update(nothing, nothing, self.layer.index)


class SkipMiddle(Method):
    r"""Let each token of a trained decoder skip layers around the middle.

    Before each layer of the first half that `where` matches stands a gate; what it adds up with those before closes the
    token from that layer to its mirror image. Tokens that are closed are not computed there, and have no keys for the
    others. Inserted, all gates are open. In training all is computed, and the gates' means are held to a line from the first
    layer to the middle whose mean is the budget, their variances to those of gates that are 0 or 1, by losses whose weights
    follow how far they are off. In evaluation a token is skipped where its gate is 0 or, once `Adapter.calibrate` has set
    it, below one level for all layers.

    The trained model keeps its own norms; the paper's stand before and behind each branch. The gates read a stream $\hat h$
    brought to one size, as norms of the paper keep it. Compiled in one graph it saves nothing. A cache has a place for each
    token in each layer. The authors find no gain in loss at equal work beside a model of fewer layers, trained so.

    Args:
        budget: mean share of the layers under gates that tokens run.
        rate: how far a loss's weight moves at a step for each unit that a moment is off; the paper's is 0.001, in long runs.
    """

    name, kinds = "skip-middle", ("layer",)
    excludes = ("codebook-features", "gateskip", "liger", "lizard", "norga", "pill", "sf-attention")
    share = "model"
    """One level for all parts, so that spans are one inside the other."""

    def __init__(self, budget: Share = 0.75, *, rate: Positive = 0.05) -> None:
        self.budget, self.rate = budget, rate

    def keep(self, places: Sequence[Place]) -> list[Place]:
        """Return the layers of the first half."""
        for place in places:
            core = place.inside("attention").core
            if not getattr(core, "is_causal", False) or not place.inside("attention").caches:
                raise ConfigError(
                    f"{self.name}: it is for causal decoders with a cache, and {place.path} has other attention"
                )
            if core.config._attn_implementation.removeprefix(PREFIX) not in PLAIN:
                raise ConfigError(f"{self.name}: the attention function must be {' or '.join(PLAIN)}")
        return [place for place in places if place.index <= (place.layers - 1) // 2]

    def parts(self, chosen: Sequence[Place], model: nn.Module) -> list[Part]:
        """Return the gates, each with the layers from its own to the next gate's, and their mirror images."""
        stack = [place for place in places_of(model) if place.kind == "layer"]
        middle, above = (len(stack) + 1) // 2, None
        made: list[SkipMiddlePart] = []
        stops = [place.index for place in chosen[1:]] + [middle]
        for place, stop in zip(chosen, stops, strict=True):
            indices = range(place.index, stop)
            mirrored = {len(stack) - 1 - index for index in indices}
            above = SkipMiddlePart(place, self, [stack[i] for i in sorted({*indices, *mirrored})], above)
            made.append(above)
        for index, part in enumerate(made):
            part.depth, part.count = index / (len(made) - 1) if len(made) > 1 else 0.5, len(made)
        return list(made)
