r"""A cache of fixed size, which keeps the latest tokens and those that attention has gone to most.

$$ S_t = S_{t-1} \cup \{t\} \setminus \{u\}, \qquad
   u = \operatorname{argmin}_{s \in S_{t-1},\, s \le t - r} \sum_{t' = s}^{t-1} \sum_{h} a_{h,t',s}, \qquad
   a_{h,t} = \operatorname{softmax}_{s \in S_t} q_{h,t} \cdot k_s $$
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor

from penstock.adapt.method import Method, Part, Passing
from penstock.adapt.places import Place
from penstock.adapt.ties import Ties
from penstock.core import ConfigError, Count, Size, listed


class HeavyHittersPart(Part):
    """The cache of one layer's attention. It has no parameters."""

    def __init__(self, place: Place, what: "HeavyHitters") -> None:
        super().__init__()
        core = place.core
        if not place.caches or not getattr(core, "is_causal", False) or getattr(core, "sliding_window", None):
            raise ConfigError(f"{what.name}: {place.path} must be causal attention to all tokens, with a cache")
        self.index = getattr(core, "layer_idx", place.index)
        self.sizes = (what.size, max(1, what.size // 2) if what.recent is None else what.recent, what.sinks)
        self.layer = Passing()

    def attach(self, place: Place, ties: Ties) -> None:
        """Find the cache before the layer's attention, and take over its attention function."""
        ties.before(place.core, self.find)
        ties.attention(place.core, self.attend)

    def find(self, args: tuple, kwargs: dict) -> None:  # noqa: ARG002 - what a hook is given
        """Put a layer of fixed size into a new cache, before keys and values go there."""
        from penstock.adapt.heavy import HeavyLayer
        from penstock.adapt.states import layer_of

        cache = kwargs.get("past_key_values")
        if cache is not None and not self.training:
            self.layer.value = layer = layer_of(cache, self.index, partial(HeavyLayer, *self.sizes))
            cast("HeavyLayer", layer).expected = True

    def attend(
        self, inner: Callable[..., Any], core: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **words: Any
    ) -> tuple[Tensor, None]:
        """Attend to what the cache has kept, and as the model does where there is no cache."""
        layer = self.layer.take()
        if layer is None:
            return inner(core, q, k, v, mask, **words)
        if any(words.get(name) is not None for name in ("softcap", "s_aux")):
            raise ConfigError("heavy-hitters: attention must be a plain softmax, without capped scores or learned sinks")
        return layer.attend(q, k, v, mask, words.get("scaling") or q.shape[-1] ** -0.5).transpose(1, 2), None


@listed("heavy-hitters", kind="adapter", paper="zhang2023h2o", at="sec. 4.1, alg. 1; half of the cache for recent tokens")
class HeavyHitters(Method):
    r"""Decode in a cache of fixed size: for each head of keys, the latest tokens and those that got most attention so far.

    Nothing is trained, and `generate` needs no other argument. A new token takes the slot of the one that got least: a step
    copies nothing, and memory does not grow. Queries that share a head of keys vote together. A prompt is read in full, and
    then the best of it are kept. While a text is no longer than the cache, the model is what it was, up to rounding. Tokens
    keep the positions that they had. In training, and without a cache, the model is its own. It cannot stand beside what
    takes tokens or attention away from a layer, or gives it other keys.

    Args:
        size: tokens that a query sees, itself one of them.
        recent: how many of them are the latest, `r`; by default half, as in the paper.
        sinks: how many of them are the first of the text, whatever they get. With `recent=size - sinks` the cache has a
            window and sinks alone, and attention decides nothing.
    """

    name, kinds = "heavy-hitters", ("attention",)
    excludes = ("gateskip", "liger", "lizard", "norga", "seer-attention", "skip-middle")

    def __init__(self, size: Size = 512, recent: Size | None = None, sinks: Count = 0) -> None:
        if sinks + (recent or 1) > size:
            raise ConfigError(f"{self.name}: recent and sinks must be at most size={size} in all, got {recent} and {sinks}")
        self.size, self.recent, self.sinks = size, recent, sinks

    def part(self, place: Place) -> HeavyHittersPart:
        """Return the cache of a layer."""
        return HeavyHittersPart(place, self)
