r"""Skip-middle: a token whose gates have closed goes around the layers in the middle and comes back behind them.

$$ G^{(\ell)}_t = 1 - \min\Bigl(1, \sum_{j \le \ell} \operatorname{relu}(w_j^\top h^{(j)}_t + b_j)\Bigr), \qquad
   h \leftarrow h + G^{(\ell)} \odot \operatorname{norm}(f(\operatorname{norm} h)) $$

for both branches of the layers $\ell$ and $L - 1 - \ell$, where attention to token $j$ has $\log G_j$ added to its score.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import AuxiliaryLosses, ChannelMixer, ConfigError, Fraction, Gate, Positive, ShapeError, Size, listed
from penstock.models.sequence import SequenceModel
from penstock.models.skipping import affordable
from penstock.models.sockets import Socket, fill
from penstock.ops.attention import Projections, rotary
from penstock.ops.linear import Linear
from penstock.ops.plan import alike, plan_tokens, put

LEAST = 1e-6
BAND = 0.01
GROUPS = 4
"""In how many groups sequences are computed that have different numbers of open tokens."""
FARTHEST, HALVINGS = 2.0**12, 20
"""How far scores may be moved to keep a budget, and how often the range of that is halved."""


class MiddleBlock(nn.Module):
    """A layer with a norm before and after each branch, whose branches are multiplied by a gate for each token."""

    def __init__(self, dim: int, heads: int | None, channel: ChannelMixer, place: Mapping[str, Any]) -> None:
        super().__init__()
        self.project = Projections("SkipMiddle", dim, heads, None, bias=False, **place)
        self.out = Linear(dim, dim, bias=False, **place)
        self.channel = channel
        self.norms = nn.ModuleList([nn.RMSNorm(dim, eps=1e-5, **place) for _ in range(4)])

    def forward(self, x: Tensor, places: Tensor, gate: Tensor) -> Tensor:
        """Return the stream after the layer, for tokens `x` `(B, S, dim)` at `places` `(B, S)` with gates `(B, S)`."""
        before, after, channel_before, channel_after = self.norms
        openness = gate.unsqueeze(-1)
        x = x + openness * after(self.attend(before(x), places, gate))
        return x + openness * channel_after(self.channel(channel_before(x)))

    def attend(self, x: Tensor, places: Tensor, gate: Tensor) -> Tensor:
        """Return causal attention among the tokens, to each as far as its gate is open."""
        q, k, v = self.project(x)
        some = torch.arange(x.shape[1], device=x.device)
        score = gate.clamp(LEAST, 1).log().unsqueeze(1).masked_fill(some > some.unsqueeze(-1), -torch.inf).unsqueeze(1)
        q, k, v = (part.transpose(1, 2) for part in (rotary(q, places), rotary(k, places), v))
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=score.to(q.dtype)).transpose(1, 2).flatten(2))


@listed("skip-middle", kind="model", paper="lawson2025skipping", at="the gates of layers and attention; the adaptive loss")
class SkipMiddle(SequenceModel):
    """A causal language model that lets each token skip layers around the middle: `(B, T) -> (B, T, vocabulary)`.

    Closed tokens take no part in the span: they are not computed, and the others do not see them. The gates' means are held
    to a line from 1 at the first layer to `end` at the middle, and their variances to those of gates that are 0 or 1, by
    losses (`penstock.core.auxiliary_losses`) whose weights follow how far they are off; a weight moves in training, at each
    call. The authors find that this saves no loss at equal work beside a model of fewer layers. Their code adds the
    logarithm of the gate by query, where the softmax ignores it; the paper, and this, by key. How many tokens are open is
    data: `torch.compile` stops at each span and goes on after it. `calibrate` moves the scores of all layers but the first
    by one number, so that data like its inputs keep a budget; that is no part of the paper.

    Args:
        vocabulary: number of tokens.
        dim: width of the stream.
        layers: number of blocks, even.
        heads: of the attention.
        channel: the channel mixers.
        end: mean of the gates wanted at the middle; what is computed then is about `(1 + end) / 2`.
        rate: how far a weight moves at a call for each unit that a moment is off; the paper's runs are long.
        device: where the parameters live.
        dtype: their type.
    """

    kind = "skip-middle"
    weights: Tensor
    moved: Tensor

    def __init__(
        self,
        vocabulary: Size,
        dim: Size,
        layers: Size,
        heads: Size | None = None,
        channel: Socket = "swiglu",
        *,
        end: Fraction = 0.0,
        rate: Positive = 1e-3,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if layers % 2:
            raise ConfigError(f"SkipMiddle: layers must be even, got {layers}")
        place = {"device": device, "dtype": dtype}
        self.dim, self.middle, self.end, self.rate = dim, layers // 2, end, rate
        self.embedding = nn.Embedding(vocabulary, dim, **place)
        channels = fill("SkipMiddle: channel", channel, ChannelMixer, dim, layers, place)
        if None in channels:
            raise ConfigError(f"SkipMiddle: every layer needs a channel mixer, got channel={channel!r}")
        self.layers = nn.ModuleList([MiddleBlock(dim, heads, cast("ChannelMixer", one), place) for one in channels])
        self.first_norm = nn.RMSNorm(dim, eps=1e-5, **place)
        self.norm = nn.RMSNorm(dim, eps=1e-5, **place)
        self.scores = nn.ModuleList([Linear(dim, 1, **place) for _ in range(self.middle)])
        self.gates = nn.ModuleList([Gate() for _ in range(self.middle)])
        self.losses = AuxiliaryLosses()
        self.register_buffer("weights", torch.zeros(2, self.middle, **place))
        self.register_buffer("moved", torch.zeros((), **place))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 * (768 / dim) ** 0.5)
        for score in self.scores:
            nn.init.normal_(cast("Linear", score).weight, std=0.02)
            nn.init.zeros_(cast("Linear", score).bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each of `tokens` `(B, T)`."""
        x, moments = self.passed(tokens)
        if self.training:
            self.hold(moments, tokens.numel())
        return F.linear(self.norm(x), self.embedding.weight)

    def passed(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the stream after all layers, and the sums of each gate, of its square, and of where it is open."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ShapeError(f"SkipMiddle: tokens must be integers (batch time), got {tokens.dtype} {tuple(tokens.shape)}")
        x = self.first_norm(self.embedding(tokens))
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        moments = [x.new_zeros(3) for _ in range(self.middle)]
        return self.span(0, x, places, x.new_zeros(x.shape[:2]), moments), moments

    @property
    def least(self) -> float:
        """The share of the layers that is computed where all but the outer ones are closed to all tokens."""
        return 1 / self.middle

    @torch.no_grad()
    def share(self, tokens: Tensor) -> float:
        """Return the share of the layers computed, in the mean over `tokens` `(B, T)`."""
        opened = sum(float(moment[2]) for moment in self.passed(tokens)[1])
        return opened / max(1, tokens.numel() * self.middle)

    def calibrate(self, tokens: Tensor, budget: float) -> None:
        """Move the scores behind the first layer so that on data like `tokens` the share of the layers is the budget.

        Raises:
            ConfigError: if the budget is not above 0 and at most 1, or below what the outer layers cost.
        """
        affordable("skip-middle", budget, self.least, "the outer layers")
        tried: dict[float, float] = {}

        def over(moved: float) -> float:
            self.moved.fill_(moved)
            tried[moved] = self.share(tokens) - budget
            return tried[moved]

        far = 1.0
        while far < FARTHEST and (over(far) > 0 or over(-far) < 0):
            far *= 4
        low, high = -far, far
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if over(middle) > 0 else (low, middle)
        self.moved.fill_(min(tried, key=lambda moved: abs(tried[moved])))

    def span(self, layer: int, x: Tensor, places: Tensor, closed: Tensor, moments: list[Tensor]) -> Tensor:
        """Return the stream `x` `(B, S, dim)` after `layer` to its mirror image; `closed` is how far tokens are closed."""
        score = self.scores[layer](x).squeeze(-1)
        closed = closed + F.relu(score + self.moved if layer else score)
        gate = self.gates[layer](1 - closed.clamp(0, 1))
        opened = (gate.detach() > 0).to(gate.dtype)
        moments[layer] = moments[layer] + torch.stack([gate.sum(), gate.square().sum(), opened.sum()])
        y = x
        for some in alike(gate.detach() > 0, GROUPS):
            inner = self.inside(layer, x[some], places[some], closed[some], gate[some], moments)
            y = y.index_copy(0, some, inner)
        return y

    def inside(self, layer: int, x: Tensor, places: Tensor, closed: Tensor, gate: Tensor, moments: list[Tensor]) -> Tensor:
        """Return what `span` returns of sequences that have about as many open tokens, which alone are computed."""
        plan, local = plan_tokens(gate.detach() > 0)

        def compute(rows: Tensor) -> Tensor:
            at, some = places.gather(1, local), gate.gather(1, local)
            y = self.layers[layer](rows.unflatten(0, local.shape), at, some)
            if layer + 1 < self.middle:
                y = self.span(layer + 1, y, at, closed.gather(1, local), moments)
            return self.layers[-1 - layer](y, at, some).flatten(0, 1)

        # Tokens that only fill a row up have a gate of 0, which leaves them as they are.
        rows = x.flatten(0, 1)
        return put(plan._replace(weights=None), rows, compute, rows).view_as(x)

    def hold(self, moments: list[Tensor], count: int) -> None:
        """State the losses on the gates' means and variances, and move their weights by how far these are off."""
        mean, square, _ = torch.stack(moments, 1) / max(1, count)
        found = torch.stack([mean, square - mean.square()])
        line = torch.linspace(1, self.end, self.middle, device=found.device, dtype=found.dtype)
        self.losses({"gates": (self.weights.clone() * found).sum() / self.middle})
        off = found.detach() - torch.stack([line, line * (1 - line)])
        self.weights += self.rate * torch.where(off.abs() > BAND, off, 0)
