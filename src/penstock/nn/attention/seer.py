"""SeerAttention: a small gate that foresees which blocks of the attention map matter, and leaves the others out."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import AuxiliaryLosses, ConfigError, Gate, NonNegative, SequenceMixer, Share, Size, mechanism
from penstock.ops.attention import Cache, Projections, append, attend, attention_weights, block_attention, rotary
from penstock.ops.attention.block.patterns import Band, Pattern
from penstock.ops.linear import Linear


@mechanism(
    "seer-attention",
    paper="gao2024seer",
    at="AttnGate and its distillation from 2D max-pooled attention maps; modes and defaults of the authors' code",
    gates={"gate": "[0, 1]; sums to 1 over the blocks of keys"},
    traits={"causal", "steps"},
    example={"dim": 8, "heads": 2, "block": 2},
)
class SeerAttention(SequenceMixer):
    r"""Causal softmax attention that visits the blocks of keys which a gate of pooled queries and keys finds worth it.

    $$ G = \operatorname{softmax}\!\left( d_g^{-1/2} (R\, \bar Q W_q)(R\, [\max K, \min K, \bar K] W_k)^\top \right), \quad
       \mathcal{L} = \lambda\, \overline{T \log \frac{T}{G}}, \qquad
       T_{uv} \propto \max_{i \in u,\, j \in v} \operatorname{softmax}(Q K^\top / \sqrt d)_{ij} $$

    Pools are over the blocks of queries and keys before their rotation, G is rotated by the places of blocks. In training
    attention is dense, and the stated loss trains the gate alone. Otherwise a block of queries visits its most open blocks,
    itself always among them, and the last two all; a token that comes to a state is dense. What is selected for a block is
    read from all its tokens: with a density below 1 a token's output depends on later tokens of its block, by that choice.

    Args:
        dim: width of the stream.
        heads: number of heads; by default as many as divide `dim` and are 32 wide, or 64 wide from `dim=512` on.
        kv_heads: number of key and value heads, each shared by a group of query heads; `heads` by default.
        block: tokens of a block, a power of two of at most 128.
        density: share of the blocks of the causal triangle to visit.
        threshold: visit the blocks whose gate is above this, whatever the density.
        gate_width: width of the gate's queries and keys; by default that of the heads, and only keys are mapped.
        weight: of the stated loss.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(
        self,
        dim: Size,
        heads: Size | None = None,
        kv_heads: Size | None = None,
        *,
        block: Size = 64,
        density: Share = 1.0,
        threshold: NonNegative | None = None,
        gate_width: Size | None = None,
        weight: NonNegative = 10.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if block > 128 or block & (block - 1):
            raise ConfigError(f"{self.name}: block must be a power of two of at most 128, got {block}")
        self.dim, self.block, self.density, self.threshold, self.weight = dim, block, density, threshold, weight
        place = {"device": device, "dtype": dtype}
        self.project = Projections(self.name, dim, heads, kv_heads, bias=False, **place)
        self.out = Linear(dim, dim, bias=False, **place)
        heads, width = self.project.heads, self.project.width
        mapped = heads if gate_width is None else self.project.kv_heads
        self.gate_key = nn.Parameter(torch.empty(mapped, 3 * width, gate_width or width, **place))
        self.gate_query = None if gate_width is None else nn.Parameter(torch.empty(heads, width, gate_width, **place))
        for each in (*self.gate_key, *(() if self.gate_query is None else self.gate_query)):
            nn.init.xavier_uniform_(each)
        self.pattern = Pattern((Band(None, 0),), block)
        self.gate, self.losses = Gate(), AuxiliaryLosses()

    def init_state(self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cache:
        """Return an empty key-value cache."""
        return self.project.empty_cache(batch, device, dtype)

    def extend(self, x: Tensor, state: Cache | None) -> tuple[Tensor, Cache]:
        """Return the outputs for `x` `(batch, time, dim)` after the tokens in the cache, and the cache with them."""
        self.check_shape(x, "batch time dim")
        q, k, v = self.project(x)
        if state is not None and (x.shape[1] == 1 or state.keys.shape[1]):
            y, state = attend(q, k, v, state)
            return self.out(y.flatten(2)), state
        scores = self.scores(q.detach(), k.detach())
        openness = self.gate(scores.softmax(-1))
        q, k = rotary(q), rotary(k)
        if self.training:
            self.losses({"distillation": self.weight * self.distance(scores, q.detach(), k.detach())})
        full = self.training or (self.density == 1 and self.threshold is None)
        keep = None if full else visited(scores, openness, self.density, self.threshold)
        y = block_attention(q, k, v, self.pattern, keep=keep)
        return self.out(y.flatten(2)), append(state, k, v)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the scores of blocks, minus infinity for later ones: `(B, T, H, D), (B, T, G, D) -> (B, H, n, n)`."""
        query, key, group = pools(q, self.block)[2], torch.cat(pools(k, self.block), -1), q.shape[2] // k.shape[2]
        if self.gate_query is None:
            key = torch.einsum("bnhi,hio->bnho", key.repeat_interleave(group, 2), self.gate_key)
        else:
            query = torch.einsum("bnhi,hio->bnho", query, self.gate_query)
            key = torch.einsum("bnhi,hio->bnho", key, self.gate_key).repeat_interleave(group, 2)
        places = self.block * torch.arange(query.shape[1], device=q.device)
        scores = torch.einsum("bnho,bmho->bhnm", rotary(query, places), rotary(key, places)) * key.shape[-1] ** -0.5
        return scores.masked_fill(places.unsqueeze(1) < places, -torch.inf)

    def distance(self, scores: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Return how far the gate is from the map of rotated `q` and `k`, its largest weight in each block, row by row."""
        return distance(scores, largest(attention_weights(q, k, causal=True), self.block))


def pools(x: Tensor, block: int, there: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the greatest, the least and the mean of each block; the last one may be shorter: `3 x (B, n, H, D)`.

    Args:
        x: `(B, T, H, D)`.
        block: tokens of a block.
        there: False for tokens that are none, `(B, T)`; a block of those gives zeros.
    """
    blocks = -(-x.shape[1] // block)
    padding = (0, 0, 0, 0, 0, blocks * block - x.shape[1])
    real = x.new_ones(1, x.shape[1], 1, 1) if there is None else there[..., None, None].to(x.dtype)
    real = F.pad(real, padding).unflatten(1, (blocks, block))
    x = F.pad(x, padding).unflatten(1, (blocks, block))
    high, low = (x.masked_fill(real == 0, end).amax(2) for x, end in ((x, -torch.inf), (-x, -torch.inf)))
    count = real.sum(2)
    some = count > 0
    return high.where(some, 0), -low.where(some, 0), (x * real).sum(2) / count.clamp_min(1)


def visited(
    scores: Tensor,
    openness: Tensor,
    density: float,
    threshold: float | Tensor | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Return which blocks are visited, `(B, H, n, n)`; later ones count as visited where nothing is of them.

    Args:
        scores: of the gate.
        openness: their softmax.
        density: share of the blocks of the causal triangle to visit.
        threshold: visit those whose gate is above it instead.
        blocks: how many a sequence has, `(B,)`; all by default.
    """
    most = scores.shape[-1]
    place = torch.arange(most, device=scores.device)
    count = most if blocks is None else blocks[:, None, None, None]
    if threshold is not None:
        keep = openness > threshold
    else:
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        keep = (rank == 0) | (rank + 1 <= (1 - (1 - density) ** 0.5) * count + 1e-9)
    return keep | (place.unsqueeze(1) == place) | (place.unsqueeze(1) >= count - 2)


def largest(weights: Tensor, block: int) -> Tensor:
    """Return the largest weight in each block: `(B, H, T, S) -> (B, H, blocks of T, blocks of S)`."""
    blocks = [-(-size // block) for size in weights.shape[2:]]
    missing = [n * block - size for n, size in zip(blocks, weights.shape[2:], strict=True)]
    weights = F.pad(weights, (0, missing[1], 0, missing[0]))
    return weights.unflatten(3, (blocks[1], block)).unflatten(2, (blocks[0], block)).amax((3, 5))


def distance(scores: Tensor, most: Tensor) -> Tensor:
    """Return the mean distance of the gate from the map, after the first quarter of the rows.

    Args:
        scores: of the gate, minus infinity for later blocks, `(B, H, n, n)`.
        most: the largest weight in each block, of the same shape; a row of zeros does not count.
    """
    target = most / most.sum(-1, keepdim=True).clamp_min(1e-30)
    later = scores == -torch.inf
    apart = target * (target.clamp_min(1e-30).log() - scores.log_softmax(-1).masked_fill(later, 0))
    return apart[:, :, scores.shape[-1] // 4 :].mean()
