"""Softmax attention of queries to the keys up to their own position."""

import torch
from torch import Tensor

from penstock.core import Probe
from penstock.ops.attention.cache import Cache, append
from penstock.ops.attention.masked import masked_attention
from penstock.ops.attention.rotary import angles, rotary, turn


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attend from the last `T` positions to all `S` before and at them.

    Args:
        q: queries `(B, T, H, D)`.
        k: keys `(B, S, G, D)` with `S >= T`; `G` divides `H`, and each key head serves `H / G` neighbouring query heads.
        v: values `(B, S, G, E)`.
        scale: factor of the scores, `D ** -0.5` by default.

    Returns:
        `(B, T, H, E)`.
    """
    return masked_attention(q, k, v, scale=scale, causal=True)


def attend(q: Tensor, k: Tensor, v: Tensor, cache: Cache | None = None, probe: Probe | None = None) -> tuple[Tensor, Cache]:
    """Attend causally with rotary positions, after the tokens in `cache`, and return the cache that includes these.

    Shapes as in `causal_attention`, with `S = T`; the cache holds keys that are rotated already. The weights can be seen at
    `probe`.
    """
    offset = 0 if cache is None else cache.keys.shape[1]
    cache = append(cache, rotary(k, offset), v)
    return masked_attention(rotary(q, offset), cache.keys, cache.values, causal=True, probe=probe), cache


def attend_at(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Tensor,
    cache: Cache | None = None,
    *,
    whole: bool,
    probe: Probe | None = None,
) -> tuple[Tensor, Cache]:
    """Attend causally with rotary positions from some tokens of a sequence to those tokens, or to the whole sequence.

    Args:
        q: queries `(B, S, H, D)`.
        k: keys `(B, S, G, D)` of the same tokens, or `(B, T, G, D)` of all tokens.
        v: values, of the same tokens as the keys.
        places: where the queries' tokens stand, `(B, S)`, as in `SequenceMixer.extend_at`; among the tokens of `whole` keys.
        cache: of the tokens before, some or all of them.
        whole: the keys and values are those of all tokens.
        probe: where the weights can be seen.

    Returns:
        `(B, S, H, E)`, and the cache with these keys and values.
    """
    if not whole:
        cache = append(cache, rotary(k, places), v)
        return masked_attention(rotary(q, places), cache.keys, cache.values, causal=True, probe=probe), cache
    before = 0 if cache is None else cache.keys.shape[1]
    cos, sin = angles(torch.arange(before, before + k.shape[1], device=k.device), k)
    cache = append(cache, turn(k, cos, sin), v)
    here = places - before
    q = turn(q, cos[here], sin[here])
    seen = places.unsqueeze(-1) >= torch.arange(cache.keys.shape[1], device=k.device)
    return masked_attention(q, cache.keys, cache.values, seen.unsqueeze(1), blind=False, probe=probe), cache
