r"""EViT: a vision transformer that keeps the patches which the class token attends to, and fuses the others into one.

$$ a_j = \frac1H \sum_h \operatorname{softmax}\Bigl(\frac{q_{\text{cls}}^{(h)\top} K^{(h)}}{\sqrt d}\Bigr)_j, \qquad
   x \leftarrow [\,x_{\text{cls}},\; x_j : j \in \mathcal K,\; \textstyle\sum_{j \notin \mathcal K} a_j x_j\,],
   \qquad \mathcal K = \operatorname{top}_k(a), \quad k = \lceil r\,(N - 1) \rceil $$

between the attention and the feed-forward layer of some blocks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import ConfigError, Gate, ShapeError, Share, Size, listed
from penstock.core.module import MechanismType
from penstock.gates import Budget, top_k
from penstock.models.sequence import KINDS
from penstock.models.skipping import affordable
from penstock.ops.attention import Projections
from penstock.ops.linear import Linear
from penstock.ops.plan import plan_tokens

STEPS = 1000
"""Of how many shares `calibrate` takes the best."""


def kept(share: float, patches: int) -> int:
    """Return how many patches a share of them is."""
    return math.ceil(share * patches - 1e-9)


class Patches(nn.Module):
    """A block of a vision transformer which may drop patches between its attention and its feed-forward layer."""

    def __init__(self, dim: int, heads: int | None, hidden: int, place: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm, self.channel_norm = (nn.LayerNorm(dim, eps=1e-6, **place) for _ in range(2))
        self.project = Projections("evit", dim, heads, None, bias=True, **place)
        self.out = Linear(dim, dim, **place)
        self.to_hidden, self.from_hidden = Linear(dim, hidden, **place), Linear(hidden, dim, **place)
        self.keep = Gate()

    def forward(self, x: Tensor, share: float, *, fuse: bool) -> Tensor:
        """Return the stream `(B, S, dim)` of the class token, `share` of the patches and, to `fuse`, one for the others."""
        q, k, v = (part.transpose(1, 2) for part in self.project(self.norm(x)))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        patches = x.shape[1] - 1
        count = kept(share, patches)
        if count < patches:
            seen = (q[:, :, :1] @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0, 1:]
            x = self.reorganize(x, seen, count, fuse=fuse)
        return x + self.from_hidden(F.gelu(self.to_hidden(self.channel_norm(x))))

    def reorganize(self, x: Tensor, seen: Tensor, count: int, *, fuse: bool) -> Tensor:
        """Return the class token, the `count` patches that are `seen` `(B, patches)` most, and the sum of the others."""
        first, patches = x[:, :1], x[:, 1:]
        keep = self.keep(top_k(seen.detach(), count))
        _, places = plan_tokens(keep, count)
        kept = patches.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        if not fuse:
            return torch.cat([first, kept], 1)
        return torch.cat([first, kept, ((1 - keep) * seen).unsqueeze(1) @ patches], 1)


@listed(
    "evit", kind="model", paper="liang2022evit", at="token reorganization between attention and feed-forward; authors' code"
)
class EViT(nn.Module, metaclass=MechanismType):
    """A classifier of patches that drops those the class token does not attend to: `(B, patches, features) -> (B, classes)`.

    Nothing is added that is learned: with `keep=1` it is the vision transformer, to the last bit, and its weights fit. The
    weights with which patches are fused do not sum to one. A fused patch is a patch from then on. Kept patches stay in
    their order, which the authors' do not; the result is the same. `keep` may be set at any time: the paper lowers it in
    training, and sets another for inference. How many patches there are follows from the shape alone, so that compilers see
    one graph, and what is dropped is in no later layer.

    Args:
        classes: number of classes.
        dim: width of the stream.
        layers: number of blocks.
        features: numbers in a patch.
        patches: how many there are.
        drops: the blocks, counted from 0, that drop patches; by default the three at each quarter, as 3, 6 and 9 of 12.
        keep: share of the patches that each of them keeps.
        fuse: put the others into one patch, instead of leaving them out.
        heads: of the attention.
        hidden: units of the feed-forward layers; `4 * dim` by default.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(  # noqa: PLR0913 - sizes and what is dropped, by name
        self,
        classes: Size,
        dim: Size,
        layers: Size,
        *,
        features: Size,
        patches: Size,
        drops: Sequence[int] | None = None,
        keep: Share = 0.7,
        fuse: bool = True,
        heads: Size | None = None,
        hidden: Size | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}
        chosen = sorted({layers * n // 4 for n in (1, 2, 3)}) if drops is None else list(drops)
        if any(not 0 <= layer < layers for layer in chosen):
            raise ConfigError(f"evit: drops must be blocks from 0 to {layers - 1}, got {drops!r}")
        self.features, self.patches, self.drops, self.fuse = features, patches, chosen, fuse
        self.keep = keep
        self.embedding = Linear(features, dim, **place)
        self.first = nn.Parameter(torch.zeros(1, 1, dim, **place))
        self.places = nn.Parameter(torch.empty(1, patches + 1, dim, **place))
        nn.init.normal_(self.places, std=0.02)
        self.layers = nn.ModuleList([Patches(dim, heads, hidden or 4 * dim, place) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-6, **place)
        self.head = Linear(dim, classes, **place)

    @property
    def keep(self) -> float:
        """The share of the patches that is kept where some are dropped."""
        return self._keep.target

    @keep.setter
    def keep(self, share: float) -> None:
        self._keep = Budget(share)

    @property
    def least(self) -> float:
        """The least share of the tokens that a `keep` computes."""
        return self.computed(1 / STEPS)

    def share(self, x: Tensor) -> float:  # noqa: ARG002 - every input costs the same
        """Return what is computed of inputs like `x`: the share of all tokens, in the mean over attention and channels."""
        return self.computed(self.keep)

    def computed(self, keep: float) -> float:
        """Return the share of all tokens that is computed with that `keep`."""
        tokens, total = self.patches + 1, 0
        for number in range(len(self.layers)):
            total += tokens
            count = kept(keep, tokens - 1)
            if number in self.drops and count < tokens - 1:
                tokens = 1 + count + self.fuse
            total += tokens
        return total / (2 * len(self.layers) * (self.patches + 1))

    def calibrate(self, x: Tensor, budget: float) -> None:  # noqa: ARG002 - every input costs the same
        """Set `keep` to where the share of the tokens computed of inputs like `x` comes nearest to the budget.

        Raises:
            ConfigError: if the budget is not above 0 and at most 1, or below what the least `keep` computes.
        """
        affordable("evit", budget, self.least, "the first layers")
        self.keep = min((n / STEPS for n in range(1, STEPS + 1)), key=lambda keep: abs(self.computed(keep) - budget))

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits of the patches `x` `(B, patches, features)`."""
        if x.dim() != 3 or x.shape[1:] != (self.patches, self.features):
            wanted = f"(batch patches={self.patches} features={self.features})"
            raise ShapeError(f"evit: x must be {wanted}, got {tuple(x.shape)}")
        x = torch.cat([self.first.expand(len(x), -1, -1), self.embedding(x)], 1) + self.places
        for number, layer in enumerate(self.layers):
            x = layer(x, self.keep if number in self.drops else 1.0, fuse=self.fuse)
        return self.head(self.norm(x)[:, 0])


KINDS["evit"] = EViT
