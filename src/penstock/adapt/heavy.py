"""What a layer of a cache holds where few tokens are kept: those that attention has gone to most, and the latest."""

from typing import Any

import torch
from torch import Tensor

from penstock.adapt.states import StateLayer
from penstock.core import ConfigError

ROWS = 256
"""Queries of a prompt whose attention is in memory at once."""


class HeavyLayer(StateLayer):
    """Holds keys and values of `size` tokens for each head of keys, in slots that are filled anew.

    `states` are the place of each slot's token in the text, -1 where there is none, the attention it got so far, infinite
    where it is to be kept for good, and how many tokens were padding, `(batch)`.

    Args:
        size: tokens that a query sees, itself one of them.
        recent: how many of them are the latest.
        sinks: how many of them are the first of the text.
    """

    states: Any
    keys: Any
    values: Any

    def __init__(self, size: int, recent: int, sinks: int) -> None:
        super().__init__()
        self.size, self.recent, self.sinks = size, recent, sinks
        self.expected = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return that a mask is about the new tokens alone."""
        return query_length, self.seen

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the new keys and values as they are: `attend` keeps them, once it knows what they got.

        Raises:
            ConfigError: if `attend` will not be called, since the method is off or gone.
        """
        if not self.expected:
            raise ConfigError("the cache holds what heavy-hitters kept, and only a model with that method in it can read it")
        self.expected = False
        return key_states, value_states

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Return what attention gives to the new tokens `(B, H, T, D)`, and keep the tokens that it went to.

        Args:
            q: queries `(B, H, T, D)`.
            k: keys of the new tokens `(B, G, T, D)`.
            v: their values.
            mask: which of the new tokens each of them sees, `(B, 1, T, T)`, or None for all up to itself.
            scale: of the products.
        """
        if self.states is None:
            slots = (*k.shape[:2], self.size)
            self.lazy_initialization(k.new_zeros(*slots, k.shape[3]), v.new_zeros(*slots, v.shape[3]))
            places = torch.full(slots, -1, device=k.device)
            self.states = places, torch.zeros(slots, device=k.device), places.new_zeros(len(k))
        q = q.unflatten(1, (k.shape[1], -1))
        y = self.step(q, k, v, scale) if q.shape[3] == 1 else self.read(q, k, v, mask, scale)
        self.seen += q.shape[3]
        return y.flatten(1, 2)

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Return what one token is given, `(B, G, R, 1, D)`; it takes the slot of the token that got least."""
        places, got, padding = self.states
        order = got.masked_fill(places > self.seen - self.recent, torch.inf).masked_fill(places < 0, -torch.inf)
        slot = order.argmin(-1, keepdim=True)
        start = torch.where(self.seen - padding < self.sinks, torch.inf, 0.0)
        places.scatter_(-1, slot, self.seen)
        got.scatter_(-1, slot, start[:, None, None].expand_as(slot))
        for whole, new in ((self.keys, k), (self.values, v)):
            whole.scatter_(2, slot.unsqueeze(-1).expand_as(new), new.detach())
        scores = _scores(q, self.keys, scale)
        weights = scores.masked_fill((places < 0)[:, :, None, None], -torch.inf).softmax(-1)
        got += weights.detach().sum((2, 3))
        return weights.to(v.dtype) @ self.values.unsqueeze(2)

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Return what several tokens are given, `(B, G, R, T, D)`, and keep the best of them and of those before."""
        places, got, padding = self.states
        groups, times, old = k.shape[1], k.shape[2], self.size if self.seen else 0
        if mask is not None:
            mask = (mask if mask.dtype == torch.bool else mask == 0)[..., :times]  # a static cache asks for room behind
        there = torch.ones(len(k), times, dtype=torch.bool, device=k.device) if mask is None else mask[:, 0, -1]
        new = torch.arange(self.seen, self.seen + times, device=k.device).masked_fill(~there, -1)
        rank = self.seen - padding.unsqueeze(1) + there.cumsum(1)
        start = torch.where(rank <= self.sinks, torch.inf, 0.0)
        tokens = [
            torch.cat((whole[:, :, :old], each), 2)
            for whole, each in (
                (self.keys, k),
                (self.values, v),
                (places, new.unsqueeze(1).expand(-1, groups, -1)),
                (got, start.unsqueeze(1).expand(-1, groups, -1)),
            )
        ]
        y, given = _attention(q, tokens[0], tokens[1], tokens[2][:, :, :old] >= 0, mask, scale)
        tokens[3] = tokens[3] + given
        order = tokens[3].masked_fill(tokens[2] >= self.seen + times - self.recent, torch.inf)
        order = order.masked_fill(tokens[2] < 0, -torch.inf)
        kept = order.topk(min(self.size, old + times), -1).indices
        for whole, each in zip((self.keys, self.values, places, got), tokens, strict=True):
            index = kept if each.dim() == 3 else kept.unsqueeze(-1).expand(-1, -1, -1, each.shape[-1])
            whole[:, :, : kept.shape[2]] = each.detach().gather(2, index)
        padding += (~there).sum(1)
        return y


def _attention(q: Tensor, k: Tensor, v: Tensor, held: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Return what queries `(B, G, R, T, D)` are given, and the attention that each key got of those that are no padding.

    Keys begin with those of slots, of which some are `held`, `(B, G, slots)`.
    """
    parts, given, (times, old) = [], torch.zeros(k.shape[:3], device=k.device), (q.shape[3], held.shape[2])
    for begin in range(0, times, ROWS):
        end = min(times, begin + ROWS)
        scores = _scores(q[:, :, :, begin:end], k[:, :, : old + end], scale)
        lowest = torch.finfo(scores.dtype).min
        scores[..., :old].masked_fill_(~held[:, :, None, None], lowest)
        if mask is None:  # all before these rows is seen: a pass over it is spared
            later = held.new_ones(end - begin, end - begin).triu(1)
            scores[..., old + begin :].masked_fill_(later, lowest)
            there = scores.new_ones(1, 1, 1, end - begin)
        else:
            scores[..., old:].masked_fill_(~mask[:, :, None, begin:end, :end], lowest)
            there = mask[:, :, None, -1, begin:end].to(scores.dtype)
        weights = scores.softmax(-1)
        given[:, :, : old + end] += (there.unsqueeze(3) @ weights.detach()).sum((2, 3))
        parts.append(weights.to(v.dtype) @ v[:, :, : old + end].unsqueeze(2))
    return torch.cat(parts, 3), given


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    scores = (q * scale) @ k.unsqueeze(2).mT
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
