"""Small mechanisms, at least one of each contract, which pass every check; the tests break them one by one."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from penstock.core import (
    Activation,
    ChannelMixer,
    Codebook,
    Codes,
    FieldInteraction,
    Forecaster,
    Fraction,
    Fusion,
    Gate,
    Halting,
    ImageMixer,
    NonNegative,
    Pooling,
    Positive,
    Router,
    Routing,
    Selection,
    SequenceMixer,
    Size,
    Skip,
    SlotBinder,
    TokenSelector,
    mechanism,
)


class AbstractGated(ChannelMixer):
    """A gated layer, to be broken."""

    def __init__(
        self,
        dim: Size,
        hidden: Size = 6,
        *,
        scale: Positive = 1.0,
        phi: Literal["sigmoid", "tanh"] = "sigmoid",
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.scale, self.phi = dim, hidden, scale, phi
        self.to_gate = nn.Linear(dim, hidden, bias=bias, device=device, dtype=dtype)
        self.to_value = nn.Linear(dim, hidden, bias=bias, device=device, dtype=dtype)
        self.out = nn.Linear(hidden, dim, bias=bias, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "... dim")
        return self.mix(x, self.gate(getattr(torch, self.phi)(self.scale * self.to_gate(x))))

    def mix(self, x, gate):
        return self.out(gate * self.to_value(x))


GATED = {"paper": "toy", "at": "eq. 1", "gates": {"gate": "[-1, 1]"}, "example": {"dim": 4, "hidden": 5}}


@mechanism("toy-gated", paper="toy", at="eq. 1", gates={"gate": "[-1, 1]"}, example={"dim": 4, "hidden": 5})
class Gated(AbstractGated):
    """A gated layer."""


class AbstractDecay(SequenceMixer):
    """A decaying mean of the past, to be broken."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.to_decay = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.decay = Gate()

    def init_state(self, batch, *, device=None, dtype=None):
        return self.to_decay.weight.new_zeros(batch, self.dim, device=device, dtype=dtype)

    def extend(self, x, state):
        self.check_shape(x, "batch time dim")
        state = x.new_zeros(x.shape[0], self.dim) if state is None else state
        decay = self.decay(torch.sigmoid(self.to_decay(x)))
        return self.scan(x, decay, state)

    def scan(self, x, decay, state):
        # A product of all pairs, which exporters can follow at any length; weight[t, s] = decay_s+1 ... decay_t.
        logs = decay.clamp_min(1e-30).log().cumsum(1)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1).unsqueeze(-1)
        weight = (logs.unsqueeze(2) - logs.unsqueeze(1)).masked_fill(later, -torch.inf).exp()
        y = (weight * ((1 - decay) * x).unsqueeze(1)).sum(2) + logs.exp() * state.unsqueeze(1)
        return y, torch.cat([state.unsqueeze(1), y], 1)[:, -1]


DECAY = {
    "paper": "toy",
    "at": "eq. 2",
    "gates": {"decay": "(0, 1)"},
    "traits": {"causal", "steps", "constant-state"},
    "example": {"dim": 4},
}


@mechanism(
    "toy-decay",
    paper="toy",
    at="eq. 2",
    gates={"decay": "(0, 1)"},
    traits={"causal", "steps", "constant-state"},
    example={"dim": 4},
)
class Decay(AbstractDecay):
    """A decaying mean of the past."""


class AbstractSkip(Skip):
    """A gate on a residual branch, to be broken."""

    def __init__(self, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
        self.gate = Gate()

    def forward(self, x, block):
        self.check_shape(x, "batch time dim")
        openness = self.gate(self.alpha)
        return x + openness * block(x), Halting(openness, x.new_ones(()), {})


SKIP = {
    "paper": "toy",
    "at": "eq. 3",
    "gates": {"gate": "(-inf, inf)"},
    "traits": {"identity-at-init", "causal"},
    "example": {},
}


@mechanism("toy-skip", paper="toy", at="eq. 3", gates={"gate": "(-inf, inf)"}, traits={"identity-at-init", "causal"})
class Residual(AbstractSkip):
    """A gate on a residual branch, closed at first."""


class AbstractTokenSkip(Skip):
    """A hard gate for each token, to be broken."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x, block):
        self.check_shape(x, "batch time dim")
        soft = torch.sigmoid(self.score(x))
        hard = (soft > 0.5).to(x.dtype)
        openness = self.gate(hard + (soft - soft.detach()))
        y = x.clone()
        places = openness.squeeze(-1).bool()
        y[places] = block(x[places])
        return x + openness * (y - x), Halting(openness.squeeze(-1), openness.mean(), {})


TOKEN_SKIP = {
    "paper": "toy",
    "at": "eq. 15",
    "gates": {"gate": "{0, 1}"},
    "traits": {"causal", "skips"},
    "example": {"dim": 4},
}


@mechanism(
    "toy-token-skip",
    paper="toy",
    at="eq. 15",
    gates={"gate": "{0, 1}"},
    traits={"causal", "skips"},
    example={"dim": 4},
)
class TokenSkip(AbstractTokenSkip):
    """A hard gate for each token."""


class AbstractNoise(Activation):
    """Noise on a gate in training, to be broken."""

    def __init__(
        self, dim: Size, share: Fraction = 0.5, strength: NonNegative = 1.0, *, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        self.dim, self.share, self.strength = dim, share, strength
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "... dim")
        noise = self.strength * torch.randn_like(x) if self.training else 0.0
        return x * self.gate(torch.sigmoid(x + self.bias + noise)) * (1 + self.share)


NOISE = {"paper": "toy", "at": "eq. 4", "gates": {"gate": "(0, 1)"}, "traits": {"stochastic"}, "example": {"dim": 4}}


@mechanism("toy-noise", paper="toy", at="eq. 4", gates={"gate": "(0, 1)"}, traits={"stochastic"}, example={"dim": 4})
class Noise(AbstractNoise):
    """Noise on a gate in training."""


class AbstractShares(Router):
    """A softmax over experts, to be broken."""

    def __init__(self, dim: Size, experts: Size = 3, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim, self.experts = dim, experts
        self.score = nn.Linear(dim, experts, bias=False, device=device, dtype=dtype)
        self.shares = Gate()

    def forward(self, x):
        self.check_shape(x, "tokens dim")
        logits = self.score(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shares = self.shares(logits.softmax(-1))
        return self.route(shares, shares.argsort(-1, descending=True), logits)

    def route(self, shares, indices, logits):
        return Routing(shares.gather(-1, indices), indices, logits, {"z": logits.logsumexp(-1).square().sum()})


SHARES = {"paper": "toy", "at": "eq. 5", "gates": {"shares": "[0, 1]; sums to 1"}, "example": {"dim": 4}}


@mechanism("toy-shares", paper="toy", at="eq. 5", gates={"shares": "[0, 1]; sums to 1"}, example={"dim": 4})
class Shares(AbstractShares):
    """A softmax over experts."""


class AbstractTop(TokenSelector):
    """The tokens of the highest score, to be broken."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "batch time dim")
        openness = self.gate(torch.sigmoid(self.score(x)))
        indices = openness.squeeze(-1).topk((x.shape[1] + 1) // 2, dim=1).indices
        return self.select(x * openness, indices)

    def select(self, x, indices):
        return Selection(x.gather(1, indices.unsqueeze(-1).expand(-1, -1, self.dim)), indices, x.shape[1])


TOP = {"paper": "toy", "at": "eq. 6", "gates": {"gate": "(0, 1)"}, "example": {"dim": 4}}


@mechanism("toy-top", paper="toy", at="eq. 6", gates={"gate": "(0, 1)"}, example={"dim": 4})
class Top(AbstractTop):
    """The tokens of the highest score."""


class AbstractCodes(Codebook):
    """The nearest of a few vectors, to be broken."""

    def __init__(self, dim: Size, codes: Size = 5, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.book = nn.Parameter(torch.randn(codes, dim, device=device, dtype=dtype))

    def forward(self, x):
        self.check_shape(x, "... dim")
        indices = (x.unsqueeze(-2) - self.book).square().sum(-1).argmin(-1)
        chosen = self.book[indices]
        return self.pass_on(x, chosen, indices)

    def pass_on(self, x, chosen, indices):
        return Codes(chosen + x - x.detach(), indices, {"commit": (x - chosen).square().sum()})


CODES = {"paper": "toy", "at": "eq. 7", "example": {"dim": 4}}


@mechanism("toy-codes", paper="toy", at="eq. 7", example={"dim": 4})
class Nearest(AbstractCodes):
    """The nearest of a few vectors."""


@mechanism("toy-fusion", paper="toy", at="eq. 8", gates={"gate": "(0, 1)"}, example={"dim": 4})
class Both(Fusion):
    """Two streams mixed by a gate."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim, self.dims = dim, (dim, dim)
        self.score = nn.Linear(2 * dim, dim, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, *streams):
        first, second = streams
        self.check_shape(first, "batch time dim", "the first stream")
        self.check_shape(second, "batch time dim", "the second stream")
        openness = self.gate(torch.sigmoid(self.score(torch.cat(streams, -1))))
        return first + openness * (second - first)


class AbstractParts(Fusion):
    """Streams mixed by a gate, which may be absent, to be broken."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim, self.dims = dim, (dim, dim, dim)
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, *streams, present=None):
        parts, here = self.take(streams, present, aligned=True)
        x = torch.stack(parts, -2)
        openness = torch.sigmoid(self.score(x)) * here[:, None, :, None]
        return self.mix(x, self.gate(openness), streams, present)

    def mix(self, x, gate, streams, present):
        return (gate * x).sum(-2)


PARTS = {"paper": "toy", "at": "eq. 16", "gates": {"gate": "[0, 1]"}, "traits": {"partial"}, "example": {"dim": 4}}


@mechanism("toy-parts", paper="toy", at="eq. 16", gates={"gate": "[0, 1]"}, traits={"partial"}, example={"dim": 4})
class Parts(AbstractParts):
    """Streams mixed by a gate, which may be absent."""


class AbstractCross(FieldInteraction):
    """Fields weighed and joined, to be broken."""

    def __init__(self, dim: Size, fields: Size = 3, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim, self.fields, self.width = dim, fields, fields * dim
        self.score = nn.Linear(fields * dim, fields, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "batch fields dim")
        return (x * self.gate(torch.sigmoid(self.score(x.flatten(1)))).unsqueeze(-1)).flatten(1)


CROSS = {"paper": "toy", "at": "eq. 9", "gates": {"gate": "(0, 1)"}, "example": {"dim": 4}}


@mechanism("toy-cross", paper="toy", at="eq. 9", gates={"gate": "(0, 1)"}, example={"dim": 4})
class Cross(AbstractCross):
    """Fields weighed and joined."""


class AbstractAhead(Forecaster):
    """A linear forecast, gated by channel, to be broken."""

    def __init__(self, length: Size, horizon: Size, channels: Size = 2, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.length, self.horizon, self.channels = length, horizon, channels
        self.map = nn.Linear(length, horizon, device=device, dtype=dtype)
        self.score = nn.Linear(channels, channels, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "batch length channels")
        return self.map(x.transpose(1, 2)).transpose(1, 2) * self.gate(torch.sigmoid(self.score(x.mean(1, keepdim=True))))


AHEAD = {"paper": "toy", "at": "eq. 10", "gates": {"gate": "(0, 1)"}, "example": {"length": 6, "horizon": 3}}


@mechanism("toy-ahead", paper="toy", at="eq. 10", gates={"gate": "(0, 1)"}, example={"length": 6, "horizon": 3})
class Ahead(AbstractAhead):
    """A linear forecast, gated by channel."""


@mechanism("toy-squeeze", paper="toy", at="eq. 11", gates={"gate": "(0, 1)"}, example={"channels": 3})
class Squeeze(ImageMixer):
    """Channels of an image gated by their means."""

    def __init__(self, channels: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.channels = channels
        self.score = nn.Linear(channels, channels, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "batch channels height width")
        return x * self.gate(torch.sigmoid(self.score(x.mean((2, 3)))))[..., None, None]


@mechanism("toy-slots", paper="toy", at="eq. 12", gates={"shares": "[0, 1]"}, example={"dim": 4})
class Slots(SlotBinder):
    """Inputs shared out among slots."""

    def __init__(self, dim: Size, slots: Size = 2, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.slots = nn.Parameter(torch.randn(slots, dim, device=device, dtype=dtype))
        self.shares = Gate()

    def forward(self, x):
        self.check_shape(x, "batch inputs dim")
        return self.shares((x @ self.slots.T).softmax(-1)).transpose(1, 2) @ x


class AbstractPool(Pooling):
    """A sum weighed by what the items say, to be broken."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x, mask=None):
        self.check_shape(x, "batch items dim")
        here = torch.ones_like(x[..., :1]) if mask is None else mask.unsqueeze(-1).to(x.dtype)
        return self.total(x, self.gate(torch.sigmoid(self.score(x))), here)

    def total(self, x, gate, here):
        return (x * gate * here).sum(1)


POOL = {"paper": "toy", "at": "eq. 15", "gates": {"gate": "(0, 1)"}, "traits": {"unordered"}, "example": {"dim": 4}}


@mechanism("toy-pool", paper="toy", at="eq. 15", gates={"gate": "(0, 1)"}, traits={"unordered"}, example={"dim": 4})
class Pool(AbstractPool):
    """A sum weighed by what the items say."""


@mechanism("toy-sparse", paper="toy", at="eq. 13", gates={"gate": "{0, 1}"}, traits={"skips"}, example={"dim": 4})
class Sparse(ChannelMixer):
    """A layer that leaves out positions of a low score."""

    def __init__(self, dim: Size, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.gate = Gate()

    def forward(self, x):
        self.check_shape(x, "... dim")
        openness = self.gate((x.detach().sum(-1, keepdim=True) > 0).to(x.dtype))
        y = x.clone()
        places = openness.squeeze(-1).bool()
        y[places] = self.out(x[places])
        return y


class Part(nn.Module):
    """A part with a gate, which is no mechanism."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return x * self.gate(F.softplus(x))


@mechanism("toy-nested", paper="toy", at="eq. 14", gates={"part.gate": "[0, inf); a rectifier"}, example={"dim": 4})
class Nested(Activation):
    """A gate in a part of a mechanism."""

    def __init__(self, dim: Size) -> None:
        super().__init__()
        self.dim = dim
        self.part = Part()

    def forward(self, x):
        self.check_shape(x, "... dim")
        return self.part(x)


GOOD = [
    Gated,
    Decay,
    Residual,
    Noise,
    Shares,
    Top,
    Nearest,
    Both,
    Parts,
    Cross,
    Ahead,
    Squeeze,
    Slots,
    Nested,
    TokenSkip,
    Sparse,
    Pool,
]


def variant(base, changes, **card):
    """Return a mechanism made of `base` with something else in it, or with something else on its card."""
    global Broken  # noqa: PLW0603 - pickle looks for the class here
    Broken = type("Broken", (base,), {**changes, "__module__": __name__})
    return mechanism("toy-broken", **card)(Broken)
