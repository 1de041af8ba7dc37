"""Calling a layer, or a branch of one, for some of the tokens of each sequence."""

from typing import Any

import torch
from torch import Tensor

from penstock.adapt.ties import Arguments, hidden, with_hidden


def take(x: Tensor, places: Tensor) -> Tensor:
    """Return what stands at `places` `(B, S)` of `x` `(B or 1, T, ...)`."""
    x = x.expand(places.shape[0], *x.shape[1:])
    at = places.view(*places.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, at)


def some_queries(
    places: Tensor, args: Arguments, kwargs: dict[str, Any], *, causal: bool, layer: int
) -> tuple[Arguments, dict[str, Any]]:
    """Return the arguments of a call with attention in it, for the tokens at `places` `(B, S)` alone.

    Args:
        places: which tokens, in rising order.
        args: of the call for all tokens.
        kwargs: of the call for all tokens, cache, mask and positions by the names of `transformers`.
        causal: whether attention without a mask sees no later token.
        layer: its number in the cache.
    """
    x, cache, mask = hidden(args, kwargs), kwargs.get("past_key_values"), kwargs.get("attention_mask")
    args, kwargs = with_hidden(take(x, places), args, kwargs)
    if kwargs.get("position_embeddings") is not None:
        kwargs["position_embeddings"] = tuple(take(each, places) for each in kwargs["position_embeddings"])
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = take(kwargs["position_ids"], places)
    if mask is not None and mask.shape[-2] > 1:
        kwargs["attention_mask"] = take(mask.transpose(1, 2), places).transpose(1, 2)
    elif mask is None and causal:
        past = 0 if cache is None else int(cache.get_seq_length(layer))
        count = past + x.shape[1] if cache is None else cache.get_mask_sizes(x.shape[1], layer)[0]
        keys = torch.arange(count, device=x.device)  # those that a cache of fixed size has no tokens for come last
        kwargs["attention_mask"] = (keys <= past + places.unsqueeze(-1)).unsqueeze(1)
    return args, kwargs
