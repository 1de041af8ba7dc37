"""What a layer of a cache holds where its attention has become a recurrence: states, and a few keys and values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from penstock.core import ConfigError


class StateLayer(CacheLayerMixin):
    """Holds the states of a recurrence and the keys and values of a window, none of which grows with the text."""

    is_sliding = True

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        self.states: tuple[Tensor, ...] | None = None
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take over the first keys and values."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Refuse: a layer that is not converted cannot go on from here."""
        raise ConfigError("the cache holds the states of a converted model: softmax attention cannot read it")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens a mask is about, the new ones with them, and where they begin."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many tokens were seen."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: there is no longest text."""
        return -1

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what `change` makes of it."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = change(self.keys), change(self.values)
        if self.states is not None:
            self.states = tuple(change(state) for state in self.states)

    def reset(self) -> None:
        """Forget what was seen."""
        self.keys = self.values = self.states = None
        self.is_initialized, self.seen = False, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each beam the state of another."""
        self.each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat the state of every text."""
        self.each(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the states of some texts."""
        self.each(lambda x: x[indices])


def layer_of(cache: Cache, index: int, make: Callable[[], StateLayer] = StateLayer) -> StateLayer:
    """Return the layer of a cache, which `make` makes in the place of an empty one that holds keys and values.

    Raises:
        ConfigError: if the layer holds keys and values already.
    """
    while len(cache.layers) <= index:
        cache.layers.append(make())
    layer: Any = cache.layers[index]
    if isinstance(layer, StateLayer):
        return layer
    if torch.as_tensor(layer.get_seq_length()).item():
        raise ConfigError("the cache holds keys and values of before: a converted model must read the text from its start")
    cache.layers[index] = made = make()
    return made
