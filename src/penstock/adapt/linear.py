"""What conversions of attention to a recurrence share: a layer's own maps, a window of keys and values, and the cache."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt.method import Part
from penstock.adapt.places import Place
from penstock.adapt.ties import Ties, hidden
from penstock.core import ConfigError
from penstock.ops.attention import window_attention

State = tuple[Tensor, ...]


@dataclass
class Signals:
    """What a layer computes of the stream: `x` `(B, T, dim)`, heads `(B, T, H, D)`, keys and values of fewer heads.

    `turned` are queries and keys with their rotary positions, `valid` `(B, T)` is False where a token is padding.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    turned: tuple[Tensor, Tensor]
    valid: Tensor | None


class LinearPart(Part):
    """Takes the place of a layer's attention, with its maps: `mix` says what the recurrence gives, `near` what the window.

    It is for attention with three maps and rotary positions, as of Llama, Qwen and Mixtral.

    Args:
        place: of the attention.
        window: number of tokens that a token sees by softmax attention, itself one of them.
    """

    rotary: ClassVar[bool] = True
    """Whether queries and keys of the window have the model's rotary positions."""

    core: Any
    layer_of: Any

    def __init__(self, place: Place, window: int) -> None:
        super().__init__()
        if len(place.maps) != 3 or not place.caches or place.kind != "attention":
            raise ConfigError(
                f"insert: {place.path} must have maps to queries, keys and values, rotary positions and a cache to be "
                "converted"
            )
        self.window, self.heads, self.kv_heads, self.width = window, place.heads, place.kv_heads, place.width

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the calls of the attention."""
        from penstock.adapt.states import layer_of

        self.__dict__.update(core=place.core, layer_of=layer_of)
        names = {id(module): name for name, module in place.core.named_children()}
        *self.maps, self.out = (names[id(module)] for module in (*place.maps, place.out))
        self.index = getattr(place.core, "layer_idx", place.index)
        ties.around(place.core, self.attend, replaces=True)

    def attend(self, inner: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:  # noqa: ARG002 - the attention it replaces
        """Return what the layer gives, after what the cache holds."""
        cache = kwargs.get("past_key_values")
        layer = None if cache is None else self.layer_of(cache, self.index)
        signals, mask = self.project(args, kwargs, 0 if layer is None else layer.seen)
        y, state = self.mix(signals, None if layer is None else layer.states)
        y = y + self.look_back(signals, layer, mask)
        if layer is not None:
            layer.states, layer.seen = state, layer.seen + y.shape[1]
        return getattr(self.core, self.out)(y.to(signals.x.dtype).flatten(2)), None

    def project(self, args: Any, kwargs: dict[str, Any], seen: int = 0) -> tuple[Signals, Tensor | None]:
        """Return queries, keys and values of the tokens after those `seen`, and which of all so far are none `(B, S)`."""
        x, mask = hidden(args, kwargs), kwargs.get("attention_mask")
        positions = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
        if mask is not None:
            mask = mask[:, 0, -1, : seen + x.shape[1]]  # a cache of fixed size asks for room behind
            mask = mask if mask.dtype == torch.bool else mask == 0
        q, k, v = (each(x).unflatten(-1, (-1, self.width)) for each in self.mapping())
        q, k = (getattr(self.core, name, _same)(part) for name, part in (("q_norm", q), ("k_norm", k)))
        cos, sin = (each.unsqueeze(2) for each in positions)
        valid = None if mask is None else mask[:, -x.shape[1] :]
        return Signals(x, q, k, v, (turn(q, cos, sin), turn(k, cos, sin)), valid), mask

    def mapping(self) -> list[nn.Module]:
        """Return the maps to queries, keys and values that the attention has now: LoRA may have taken their places."""
        return [getattr(self.core, name) for name in self.maps]

    def look_back(self, signals: Signals, layer: Any, mask: Tensor | None) -> Tensor:
        """Return what the window gives, and leave its keys and values in the layer of the cache."""
        (q, k), v = signals.turned if self.rotary else (signals.q, signals.k), signals.v
        if layer is not None and layer.is_initialized:
            k, v = torch.cat((layer.keys, k), 1), torch.cat((layer.values, v), 1)
        if layer is not None:
            layer.lazy_initialization(k[:, -self.window + 1 :], v[:, -self.window + 1 :]) if self.window > 1 else None
        return self.near(q, k, v, None if mask is None else mask[:, -k.shape[1] :])

    def mix(self, signals: Signals, state: State | None) -> tuple[Tensor, State]:
        """Return what the recurrence gives `(B, T, H, D)`, and its states, which begin with `state`."""
        raise NotImplementedError

    def near(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the window gives `(B, T, H, D)`: the last queries look at keys and values, but for those masked."""
        raise NotImplementedError

    def shared(self, x: Tensor) -> Tensor:
        """Return keys or values `(B, T, G, D)` once for each head."""
        return x.repeat_interleave(self.heads // self.kv_heads, 2)


def _same(x: Tensor) -> Tensor:
    return x


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` `(B, T, H, D)` with rotary positions on its first channels, halves turned against each other."""
    width = cos.shape[-1]
    first, second = x[..., :width].chunk(2, -1)
    turned = x[..., :width] * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, x[..., width:]), -1)


def banded(q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None = None, sinks: Tensor | None = None) -> Tensor:
    r"""Softmax attention to the last `window` keys, of which some may be masked, beside logits that have no value.

    $$ y_i = \frac{ \sum_{t = i - w + 1}^{i} e^{q_i \cdot k_t / \sqrt d}\, v_t }
                  { \sum_j e^{s_j} + \sum_{t = i - w + 1}^{i} e^{q_i \cdot k_t / \sqrt d} } $$

    Args:
        q: the last queries `(B, T, H, D)`.
        k: keys `(B, S, G, D)` with `S >= T`.
        v: values of the same shape.
        window: $w$.
        mask: False where a key is not to be seen, `(B, S)`.
        sinks: $s$, `(H, sinks)`.
    """
    if mask is None and sinks is None:
        return window_attention(q, k, v, window)
    batch, times, heads, width = q.shape
    size = min(window, times)
    blocks = -(-times // size)
    before, after = max(0, times + window - 1 - k.shape[1]), blocks * size - times
    cut = max(0, k.shape[1] - times - window + 1)
    seen = torch.ones(batch, k.shape[1], dtype=torch.bool, device=q.device) if mask is None else mask
    seen = F.pad(seen[:, cut:], (before, after)).unfold(1, size + window - 1, size)
    k, v = (F.pad(x[:, cut:], (0, 0, 0, 0, before, after)).unfold(1, size + window - 1, size) for x in (k, v))
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    q = F.pad(q, (0, 0, 0, 0, 0, after)).unflatten(1, (blocks, size))
    scores = torch.einsum("bnthd,bnhds->bnhts", q, k).float() * width**-0.5
    query = torch.arange(size, device=q.device).unsqueeze(1)
    key = torch.arange(size + window - 1, device=q.device)
    allowed = ((key >= query) & (key < query + window)) & seen[:, :, None, None]
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None].expand(batch, blocks, heads, size, -1)), -1)
    weights = scores.softmax(-1)[..., : size + window - 1] * allowed
    y = torch.einsum("bnhts,bnhds->bnthd", weights.to(v.dtype), v)
    return y.flatten(1, 2)[:, :times]
