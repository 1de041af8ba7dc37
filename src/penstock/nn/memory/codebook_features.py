"""Codebook features: a vector becomes the mean of the few codes that are most like it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import Codebook, Codes, ConfigError, Gate, NonNegative, ShapeError, Size, check_divides, mechanism


@mechanism(
    "codebook-features",
    paper="tamkin2023codebook",
    at="sum of the top-k codes by cosine similarity; norm, mean and losses as in the authors' code",
    gates={"gate": "{0, 1}; 1 where a code fires"},
    example={"dim": 6, "codes": 5, "active": 2, "groups": 2},
)
class CodebookFeatures(Codebook):
    r"""The mean of the codes most like a vector, in its place; each of several parts of it may have codes of its own.

    $$ \hat a = \operatorname{LN}(a), \qquad S = \operatorname{top}_k \frac{\hat a \cdot c_j}{\lVert c_j \rVert}, \qquad
       y = \frac 1 k \sum_{j \in S} c_j, \qquad
       L = \lambda \lVert y - \operatorname{sg}(\hat a) \rVert^2 $$

    Shapes: `(..., dim) -> (..., dim)`, with indices `(..., groups, active)`, the most like first, and the loss
    `reconstruction`, a mean over vectors, which moves the codes alone. Nothing of the vector passes but by the choice; codes
    have the gradient of what comes out, and so has the normalized vector, straight through. The paper speaks of the sum,
    which is the mean of longer codes.

    Args:
        dim: width of a vector.
        codes: how many there are in each group; they start normal.
        active: $k$.
        groups: parts that a vector is cut into, as by the heads of attention.
        reconstruction: $\lambda$.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(
        self,
        dim: Size,
        codes: Size = 1000,
        active: Size = 1,
        groups: Size = 1,
        *,
        reconstruction: NonNegative = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_divides(self.name, groups=groups, dim=dim)
        if active > codes:
            raise ConfigError(f"{self.name}: active must be at most codes, got active={active}, codes={codes}")
        self.dim, self.active, self.reconstruction = dim, active, reconstruction
        place, width = {"device": device, "dtype": dtype}, dim // groups
        self.weight = nn.Parameter(torch.ones(groups, width, **place))
        self.bias = nn.Parameter(torch.zeros(groups, width, **place))
        self.codes = nn.Parameter(torch.randn(groups, codes, width, **place))
        self.gate = Gate()

    def forward(self, x: Tensor, forced: Tensor | None = None) -> Codes:
        """Return the codes of `x` `(..., dim)`.

        Args:
            x: the vectors.
            forced: codes to take instead, which broadcast to `(..., groups, active)`; -1 leaves the choice as it is.
        """
        self.check_shape(x, "... dim")
        a = self.normalize(x)
        indices = self.nearest(a)
        if forced is not None:
            sizes = zip(reversed(forced.shape), reversed(indices.shape), strict=False)
            if forced.dim() > indices.dim() or any(one not in (1, other) for one, other in sizes):
                raise ShapeError(
                    f"{self.name}: forced must broadcast to (..., groups, active)={tuple(indices.shape)}, "
                    f"got {tuple(forced.shape)}"
                )
            indices = torch.where(forced >= 0, forced, indices)
        if self.gate.watched:
            self.gate(torch.zeros_like(self.likeness(a)).scatter(-1, indices, 1.0))
        groups, codes, _ = self.codes.shape
        first = codes * torch.arange(groups, device=indices.device).unsqueeze(-1)
        y = F.embedding(indices + first, self.codes.flatten(0, 1)).mean(-2)
        loss = self.reconstruction * (y - a.detach()).square().sum() / max(1, x.numel() // self.dim)
        return Codes((y + (a - a.detach())).flatten(-2), indices, {"reconstruction": loss})

    def normalize(self, x: Tensor) -> Tensor:
        """Return each group normalized: `(..., dim) -> (..., groups, width)`."""
        x = x.unflatten(-1, self.weight.shape)
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias

    def likeness(self, a: Tensor) -> Tensor:
        """Return how much each code is like normalized vectors: `(..., groups, width) -> (..., groups, codes)`."""
        return torch.einsum("...gd,gkd->...gk", a, F.normalize(self.codes, dim=-1))

    @torch.no_grad()
    def nearest(self, a: Tensor) -> Tensor:
        """Return the codes most like normalized vectors: `(..., groups, width) -> (..., groups, active)`."""
        return self.likeness(a).topk(self.active, -1).indices

    def count(self, indices: Tensor) -> Tensor:
        """Return how often each code is among indices: `(..., groups, active) -> (groups, codes)`."""
        groups, codes, _ = self.codes.shape
        rows = indices.movedim(-2, 0).flatten(1)
        return torch.zeros(groups, codes, dtype=torch.long, device=rows.device).scatter_add(1, rows, torch.ones_like(rows))

    @torch.no_grad()
    def fit(self, x: Tensor, rounds: int = 10, generator: torch.Generator | None = None) -> None:
        """Begin from data: take over the length of the vectors `x` `(..., dim)`, and put codes in their middles by K-means.

        The authors' code has K-means too. It leaves the norm at 1, which changes what a trained model passes on much more.

        Args:
            x: at least as many vectors as codes, so that codes differ.
            rounds: of K-means, by likeness; a code that none chooses stays where it was drawn.
            generator: where the first codes are drawn from.
        """
        parts = x.unflatten(-1, self.weight.shape).flatten(0, -3)
        self.weight.copy_(parts.std(-1, correction=0).mean(0).unsqueeze(-1).expand_as(self.weight))
        self.bias.copy_(parts.mean((0, -1)).unsqueeze(-1).expand_as(self.bias))
        a = self.normalize(x).flatten(0, -3)
        for group, codes in enumerate(self.codes):
            order = torch.randperm(len(a), generator=generator, device=a.device)
            codes.copy_(a[order[torch.arange(len(codes), device=a.device) % len(a)], group])
        for _ in range(rounds):
            best = self.nearest(a)[..., :1]
            near = best.transpose(0, 1).expand(-1, -1, a.shape[-1])
            sums = torch.zeros_like(self.codes).scatter_add(1, near, a.transpose(0, 1).to(self.codes.dtype))
            counts = self.count(best).unsqueeze(-1)
            self.codes.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), self.codes))
