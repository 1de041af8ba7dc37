r"""SeerAttention in a trained model: gates that foresee which blocks of an attention map matter, learnt from the map itself.

$$ G = \operatorname{softmax}\!\left( d^{-1/2} (R\, \bar Q) (R\, [\max K, \min K, \bar K]\, W)^\top \right), \quad
   \mathcal{L} = \lambda\, \overline{T \log \frac{T}{G}}, \qquad
   T_{uv} \propto \max_{i \in u,\, j \in v} \operatorname{softmax}(Q K^\top / \sqrt d)_{ij} $$

with pools of $Q$ and $K$ over blocks before their rotary positions $R$, which blocks have by their first tokens.
"""

import sys
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt.linear import turn
from penstock.adapt.method import BudgetPart, Method, Passing
from penstock.adapt.places import Place
from penstock.adapt.ties import Ties
from penstock.core import ConfigError, Gate, NonNegative, Share, Size
from penstock.nn.attention.seer import distance, largest, pools, visited
from penstock.ops.attention import attention_weights, block_attention
from penstock.ops.attention.block.patterns import Band, Pattern

MOST = 2**24
"""How many weights of the attention map are computed at once, where one row of blocks has not more."""
ADDED = ("softcap", "s_aux", "position_bias")
"""What some families do to their scores, and the kernel does not."""


class Given(NamedTuple):
    """What attention is given, each sequence from its first token on.

    Args:
        q: queries `(B, T, H, D)`.
        k: keys `(B, T, G, D)`.
        v: values.
        turns: cosines and sines of the positions, `(B or 1, T, D)`, or None where there are none.
        there: False for padding, `(B, T)`, which comes last; None where there is none.
        back: where each token stands here, `(B, T)`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    turns: tuple[Tensor, Tensor] | None = None
    there: Tensor | None = None
    back: Tensor | None = None


class SeerPart(BudgetPart):
    """The gate of one layer."""

    gates: ClassVar = {"gate": "[0, 1]; sums to 1 over the blocks of keys"}

    def __init__(self, place: Place, what: "SeerAttention") -> None:
        super().__init__()
        self.block, self.threshold, self.weight = what.block, what.threshold, what.weight
        self.key_map = nn.Parameter(torch.empty(place.heads, 3 * place.width, place.width))
        for each in self.key_map:
            nn.init.xavier_uniform_(each)
        self.gate = Gate()
        self.start_budget(what.budget)
        self.turns, self.far = Passing(), Passing()

    def attach(self, place: Place, ties: Ties) -> None:
        """Note the positions that the attention is given, and take over the attention function."""
        if not getattr(place.core, "is_causal", False):
            raise ConfigError(f"seer-attention: the attention must be causal, and that of {place.path} is not")
        rotate = getattr(sys.modules[type(place.core).__module__], "rotate_half", None)
        if rotate is not None and rotate(torch.arange(4)).tolist() != [-2, -3, 0, 1]:
            raise ConfigError(f"seer-attention: rotary positions must pair halves of a head, and {place.path} does not")
        self.rotates = bool(getattr(place.core, "use_rope", True))
        ties.before(place.core, self.listen)
        ties.attention(place.core, self.attend)

    def listen(self, args: tuple, kwargs: dict) -> None:
        """Note the cosines and sines of the positions."""
        positions = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
        self.turns.value = positions if self.rotates and isinstance(positions, tuple) else None

    def penalty(self) -> Tensor | None:
        """Return the weighted distance of the gate from the attention map at the latest call in training."""
        return None if self.far.value is None else self.weight * self.far.value

    def attend(
        self, inner: Callable[..., Any], core: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **words: Any
    ) -> tuple[Tensor, Any]:
        """Attend to the blocks that the gate opens, in training to all: `(B, H, T, D) -> (B, T, H, D)`."""
        turns, self.far.value = self.turns.take(), None
        asked = self.training or self.observe is not None or self.budget < 1 or self.threshold is not None
        if not asked or q.shape[2] == 1 or k.shape[2] != q.shape[2]:
            return inner(core, q, k, v, mask, **words)
        size, scale = words.get("sliding_window"), words.get("scaling")
        pattern = Pattern((Band(None if size is None else size - 1, 0),), self.block)
        check(mask, pattern, words)
        given = align(q, k, v, mask, turns)
        scores = self.scores(given)
        openness = self.gate(scores.softmax(-1))
        if self.training:
            most = largest_by_block(given.q.detach(), given.k.detach(), pattern, scale, given.there)
            self.far.value = distance(scores, most)
            return inner(core, q, k, v, mask, **words)
        keep = self.visits(scores, openness, given.there)
        y = block_attention(given.q, given.k, given.v, pattern, keep=keep, scale=scale)
        return (y if given.back is None else y.take_along_dim(given.back[..., None, None], 1)), None

    def scores(self, given: Given) -> Tensor:
        """Return the scores of blocks, minus infinity for later ones, `(B, H, n, n)`."""
        q, k = given.q.detach(), given.k.detach()
        cos, sin = (each.unsqueeze(2) for each in given.turns or (q.new_ones(1, q.shape[1], 0),) * 2)
        length = cos.square() + sin.square()
        q, k = (turn(each, cos / length, -sin / length) for each in (q, k))
        query, key = pools(q, self.block, given.there)[2], torch.cat(pools(k, self.block, given.there), -1)
        key = torch.einsum("bnhi,hio->bnho", key.repeat_interleave(q.shape[2] // k.shape[2], 2), self.key_map)
        query, key = (turn(each, cos[:, :: self.block], sin[:, :: self.block]) for each in (query, key))
        scores = torch.einsum("bnho,bmho->bhnm", query, key) * key.shape[-1] ** -0.5
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(later, -torch.inf)

    def visits(self, scores: Tensor, openness: Tensor, there: Tensor | None) -> Tensor:
        """Return which blocks are visited, `(B, H, n, n)`, and add to the account."""
        blocks = None if there is None else -(-there.sum(1) // self.block)
        triangle = scores > -torch.inf
        if self.observe is not None:
            always = visited(scores, openness, 1.0, 1.0, blocks)
            self.observe.append(openness.detach().masked_fill(always, 2.0)[triangle].float())
        if self.random:
            keep = visited(scores, torch.rand_like(openness), 1.0, 1 - self.budget, blocks)
        else:
            keep = visited(scores, openness, self.budget, self.threshold, blocks)
            keep = torch.where(self.level > -torch.inf, visited(scores, openness, 1.0, self.level, blocks), keep)
        keep = keep & triangle
        if blocks is not None:
            keep = keep & (torch.arange(keep.shape[2], device=keep.device) < blocks.unsqueeze(1))[:, None, :, None]
        if self.observe is None and not torch.compiler.is_compiling():
            self.seen += int(triangle.sum())
            self.run += int(keep.sum())
        return keep


def check(mask: Any, pattern: Pattern, words: dict[str, Any]) -> None:
    """Refuse what is more than causal attention, in a window or not, with padding."""
    added = next((name for name in ADDED if words.get(name) is not None), None)
    if added is not None:
        raise ConfigError(f"seer-attention: scores must be plain products, and this attention has {added}")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ConfigError("seer-attention: the attention function must be sdpa or eager, whose masks are of all pairs")
    if torch.compiler.is_compiling():
        return
    seen = shown(mask)
    there, times = seen.diagonal(dim1=1, dim2=2), mask.shape[-1]
    usual = pattern.allowed((times,), (times,), mask.device) & there.unsqueeze(1)
    if not torch.equal(seen & there.unsqueeze(2), usual & there.unsqueeze(2)):
        raise ConfigError("seer-attention: a mask may leave out padding at either end, and nothing else")


def shown(mask: Tensor) -> Tensor:
    """Return what is seen by a mask, `(B, T, T)`."""
    return mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0


def align(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, turns: tuple[Tensor, Tensor] | None) -> Given:
    """Return what attention is given, with padding behind the tokens: blocks begin where a sequence does."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    if mask is None:
        return Given(q, k, v, turns)
    there = shown(mask).diagonal(dim1=1, dim2=2).expand(q.shape[0], -1)
    place, first = torch.arange(q.shape[1], device=q.device), there.int().argmax(1, keepdim=True)
    order, back = (place + first) % q.shape[1], (place - first) % q.shape[1]
    q, k, v = (each.take_along_dim(order[..., None, None], 1) for each in (q, k, v))
    if turns is not None:
        cos, sin = (each.take_along_dim(order.unsqueeze(-1), 1) for each in turns)
        turns = cos, sin
    return Given(q, k, v, turns, there.gather(1, order), back)


@torch.no_grad()
def largest_by_block(
    q: Tensor, k: Tensor, pattern: Pattern, scale: float | None = None, there: Tensor | None = None
) -> Tensor:
    """Return the largest weight of causal attention in each block, of some rows of blocks after others.

    Args:
        q: queries `(B, T, H, D)`.
        k: keys `(B, T, G, D)`.
        pattern: with the size of a block.
        scale: of the products.
        there: False for queries that are none, `(B, T)`.

    Returns:
        `(B, H, n, n)`.
    """
    block, times = pattern.block, q.shape[1]
    blocks = -(-times // block)
    rows = max(1, MOST // max(1, q.shape[0] * q.shape[2] * block * times))
    found = []
    for start in range(0, blocks, rows):
        begin, end = start * block, min(times, (start + rows) * block)
        seen = pattern.allowed((end - begin,), (end,), q.device)
        weights = attention_weights(q[:, begin:end], k[:, :end], seen, scale=scale)
        if there is not None:
            weights = weights * there[:, None, begin:end, None]
        found.append(F.pad(part := largest(weights, block), (0, blocks - part.shape[3])))
    return torch.cat(found, 2)


class SeerAttention(Method):
    """SeerAttention: a gate beside each attention that foresees which blocks of keys a block of queries needs.

    Train it by `adapt.train` or any loop: in training attention is the model's own, and each gate learns to foresee the map
    that it has, which is computed some rows of blocks at a time; the distance is the `penalty` of the loss. In evaluation
    a text that is read at once visits the most open blocks, each block itself and for the last two all, and the others are
    not computed. What is open is read from all tokens of a block: below a budget of 1 an output depends on later tokens of
    its block, by that choice. After `Adapter.calibrate` all blocks are visited whose gate reaches a level, which then keeps
    the budget; the paper has both ways.

    Tokens that come to a cache attend to all, as in the released code of this gate: decoding is dense, and equals
    decoding without a cache at a budget of 1 or up to two blocks of text. It is for causal attention that is called through
    the registry of `transformers`, with sdpa or eager, rotary positions that pair halves of a head or none, and sequences
    that are padded at their ends or not at all. Padding needs its mask: what is visited depends on where a text ends.

    Args:
        budget: share of the blocks of the causal triangle that are visited.
        block: tokens of a block, a power of two of at most 128; the kernels take 16 or more.
        threshold: visit the blocks whose gate is above this instead, until levels are calibrated.
        weight: of the distance in the loss.
    """

    name = "seer-attention"
    excludes = ("liger", "lizard", "norga", "sf-attention", "skip-middle")

    def __init__(
        self, budget: Share = 1.0, *, block: Size = 64, threshold: NonNegative | None = None, weight: NonNegative = 10.0
    ) -> None:
        if block > 128 or block & (block - 1):
            raise ConfigError(f"{self.name}: block must be a power of two of at most 128, got {block}")
        self.budget, self.block, self.threshold, self.weight = budget, block, threshold, weight

    def part(self, place: Place) -> SeerPart:
        """Return the gate of a layer."""
        return SeerPart(place, self)
