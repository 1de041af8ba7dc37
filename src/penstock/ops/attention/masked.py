"""Softmax attention with any mask and any bias: the one dense core, whole or in its steps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.core import Probe
from penstock.ops.native import FLOPS

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"  # torch counts those for GPUs alone


def _flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _flops_back(_: Any, q: Sequence[int], k: Sequence[int], v: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (3 * q[-1] + 2 * v[-1])


FLOPS[FUSED], FLOPS[f"{FUSED}_backward"] = _flops, _flops_back


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    causal: bool = False,
    blind: bool = True,
    probe: Probe | None = None,
) -> Tensor:
    r"""Attend from queries to the keys that each may see; a query that may see none is given 0.

    $$ y_t = \sum_{s:\, m_{ts}} \operatorname{softmax}_s\!\left( c\, q_t \cdot k_s + b_{ts} \right) v_s $$

    Args:
        q: queries `(B, T, H, D)`.
        k: keys `(B, S, G, D)`; `G` divides `H`, and each key head serves `H / G` neighbouring query heads.
        v: values `(B, S, G, E)`.
        mask: True where a query may see a key; fits `(B, H, T, S)`.
        bias: finite, added to the scores; fits `(B, H, T, S)`.
        scale: factor of the scores, `D ** -0.5` by default.
        causal: the queries are the last `T` positions of the `S`, and none sees a later one.
        blind: a query may be there that sees no key, by `mask` or for want of keys; it takes time to see to that.
        probe: where the weights can be seen.

    Returns:
        `(B, T, H, E)`.
    """
    if probe is not None:
        q = probe(q, k, mask, bias, scale, causal)
    times, length, grouped = q.shape[1], k.shape[1], q.shape[2] != k.shape[2]
    whole, some, added = False, None, bias
    if causal and mask is None and bias is None and times == length:
        whole = True
    elif mask is not None or causal:
        any_empty = blind and (mask is not None or times > length)
        mask = visible(mask, times, length, q.device, causal=causal)
        if mask is not None and any_empty:
            some = mask.any(-1, keepdim=True)
            mask = mask | ~some
        if mask is not None:
            added = mask if bias is None else torch.where(mask, bias, -torch.inf)
    if added is not None:
        added = (added if added.dtype == torch.bool else added.to(q.dtype))[(None,) * (4 - added.dim())]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=added, is_causal=whole, scale=scale, enable_gqa=grouped)
    return (y if some is None else y.masked_fill(~some, 0)).transpose(1, 2)


def visible(mask: Tensor | None, times: int, length: int, device: torch.device, *, causal: bool) -> Tensor | None:
    """Return `mask`, and with `causal` no later keys for the last `times` positions of `length`; None where all is seen."""
    if not causal or (times == 1 and length >= 1):
        return mask
    past = torch.ones(times, length, dtype=torch.bool, device=device).tril(length - times)
    return past if mask is None else mask & past


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Return the weights by which `masked_attention` reads the values, `(B, H, T, S)`, in float32 at least."""
    scores = attention_scores(q, k, scale)
    seen = visible(mask, q.shape[1], k.shape[1], q.device, causal=causal)
    return masked_softmax(scores if bias is None else scores + bias, seen)


def attention_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Return the products `(B, H, T, S)` of queries `(B, T, H, D)` and keys `(B, S, G, D)`, times `scale`."""
    groups = q.unflatten(2, (k.shape[2], -1)).permute(0, 2, 3, 1, 4)
    scores = (groups * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.permute(0, 2, 3, 1).unsqueeze(2)
    return scores.flatten(1, 2)


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax over the last axis, in float32 at least, of what `mask` shows; a row that shows nothing is 0."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is None:
        return scores.softmax(-1)
    some = mask.any(-1, keepdim=True)
    return scores.masked_fill(~(mask | ~some), -torch.inf).softmax(-1).masked_fill(~some, 0)


def read_values(weights: Tensor, v: Tensor) -> Tensor:
    """Return the values `(B, S, G, E)` read by weights `(B, H, T, S)`, as `(B, T, H, E)` of the values' type."""
    groups = weights.to(v.dtype).unflatten(1, (v.shape[2], -1))
    return (groups @ v.transpose(1, 2).unsqueeze(2)).flatten(1, 2).transpose(1, 2)
