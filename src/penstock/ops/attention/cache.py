"""The key-value cache: a value that is never changed, on storage that grows in place."""

from typing import NamedTuple

import torch
from torch import Tensor


class _KeysAndValues(NamedTuple):
    keys: Tensor
    values: Tensor


class Storage:
    """Room for more keys and values than there are yet. Only the newest cache on it may append in place."""

    def __init__(self, cache: "Cache", capacity: int) -> None:
        batch, self.used, heads, width = cache.keys.shape
        self.keys = cache.keys.new_empty(batch, capacity, heads, width)
        self.values = cache.values.new_empty(batch, capacity, heads, cache.values.shape[-1])
        self.keys[:, : self.used] = cache.keys
        self.values[:, : self.used] = cache.values

    def append(self, keys: Tensor, values: Tensor) -> "Cache":
        """Write `keys` and `values` behind what is there and return the cache of all of it."""
        start, self.used = self.used, self.used + keys.shape[1]
        self.keys[:, start : self.used] = keys
        self.values[:, start : self.used] = values
        cache = Cache(self.keys[:, : self.used], self.values[:, : self.used])
        cache.storage = self
        return cache


class Cache(_KeysAndValues):
    """The keys `(B, T, G, D)` and values `(B, T, G, E)` of the tokens so far.

    A cache keeps its contents when another is made from it, so one prompt can be continued in several ways. A tree map
    gives a cache without storage, which is copied at its next append.
    """

    storage: Storage | None = None


def append(cache: Cache | None, keys: Tensor, values: Tensor) -> Cache:
    """Return the cache of what `cache` holds followed by `keys` `(B, T, G, D)` and `values` `(B, T, G, E)`.

    Where gradients are recorded, and in a traced program, it is a concatenation. Otherwise the storage grows by doubling, so
    that a token costs no copy of its past.
    """
    if cache is None:
        return Cache(keys, values)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Cache(torch.cat((cache.keys, keys), dim=1), torch.cat((cache.values, values), dim=1))
    length = cache.keys.shape[1]
    storage = cache.storage
    if storage is None or storage.used != length or length + keys.shape[1] > storage.keys.shape[1]:
        storage = Storage(cache, 2 * (length + keys.shape[1]))
    return storage.append(keys, values)
