r"""Classifiers whose examples leave at the first layer that is sure enough of them.

$$ y = p^{(l)}, \qquad l = \min \{ i : s_i \ge \theta_i \} \text{ or the last}, \qquad p^{(i)} = \text{head}_i(h^{(i)}) $$

with a score $s_i$ of what head i says, such as its confidence $\max_c p^{(i)}_c$.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import ConfigError, Gate, NonNegative, listed
from penstock.core.module import MechanismType
from penstock.gates import check_scores
from penstock.models.classifier import Classifier
from penstock.models.sequence import KINDS
from penstock.models.skipping import affordable
from penstock.models.sockets import Socket
from penstock.ops.linear import Linear
from penstock.ops.plan import plan_rows, put

WARM = 0.5
"""The share of its training in which JEI-DNN has no gates."""


class AbstractExits(nn.Module, metaclass=MechanismType):
    r"""What classifiers with exits share: heads between the layers, and examples that are computed until they leave.

    The examples that go on are gathered into a smaller batch, whatever became of the others. How many there are is data: a
    compiled program stops at each exit and goes on after it.

    Args:
        backbone: a classifier of whole sequences.
        after: the layers, counted from 1, behind which there is a head; by default all but the last.
        frozen: leave the backbone as it is, to the last bit; only what is added to it learns.
    """

    first_level: ClassVar[float] = 0.5
    levels: Tensor

    def __init__(self, backbone: Classifier, after: Sequence[int] | None = None, *, frozen: bool = False) -> None:
        super().__init__()
        depth = len(backbone.layers)
        places = list(range(1, depth)) if after is None else list(after)
        if backbone.per_position:
            raise ConfigError(f"{self.name}: backbone must classify whole sequences, and this one classifies positions")
        if not places or any(b <= a for a, b in zip([0, *places], [*places, depth], strict=True)):
            raise ConfigError(f"{self.name}: after must be rising layers from 1 to {depth - 1}, got {after!r}")
        if any(block.mixer.reads_tokens for block in backbone.blocks()):
            raise ConfigError(f"{self.name}: the backbone's mixers must not read tokens")
        self.backbone = backbone.requires_grad_(False).eval() if frozen else backbone
        self.frozen, self.after = frozen, places
        weight = backbone.head.weight
        place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.norms = nn.ModuleList([nn.RMSNorm(backbone.dim, eps=1e-5, **place) for _ in places])
        self.heads = nn.ModuleList([Linear(backbone.dim, weight.shape[0], **place) for _ in places])
        self.register_buffer("levels", torch.full((len(places),), self.first_level, **place))
        self.leave = Gate()

    @property
    def name(self) -> str:
        """The name in the catalogue."""
        return type(self).card.name  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> "AbstractExits":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def scores(self, logits: Tensor, exit: int) -> Tensor:  # noqa: A002 - what it is
        """Return how ready the examples are to leave, `(B,)`, by the logits of an exit."""
        raise NotImplementedError

    @property
    def costs(self) -> Tensor:
        """What each exit and the end cost, `(exits + 1,)`: the share of the layers computed."""
        return torch.tensor([*self.after, len(self.backbone.layers)]) / len(self.backbone.layers)

    @property
    def least(self) -> float:
        """The share of the layers that the first exit costs."""
        return float(self.costs[0])

    def share(self, x: Tensor) -> float:
        """Return the share of the layers computed, in the mean over the examples of `x`."""
        return float(self.depths(x).mean())

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits of `x`, each example's from the exit that it takes."""
        return self.onwards(self.backbone.enter(x), 0)

    def onwards(self, x: Tensor, exit: int) -> Tensor:  # noqa: A002 - what it is
        """Return the logits of examples whose stream behind the exit before is `x` `(B, T, dim)`."""
        x = self.until(x, exit)
        if exit == len(self.after):
            return self.backbone.conclude(x)
        logits = self.heads[exit](self.norms[exit](x).mean(1))
        scores = check_scores(self.name, self.scores(logits, exit).unsqueeze(-1)).squeeze(-1)
        stays = 1 - self.leave((scores.detach() >= self.levels[exit]).to(x.dtype))
        return put(plan_rows(stays), x, lambda rows: self.onwards(rows, exit + 1), logits)

    def until(self, x: Tensor, exit: int) -> Tensor:  # noqa: A002 - what it is
        """Return the stream at an exit, from that at the exit before."""
        starts, stops = [0, *self.after], [*self.after, len(self.backbone.layers)]
        for block in self.backbone.blocks()[starts[exit] : stops[exit]]:
            x = block(x)
        return x

    def every(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every exit and of the end, each for all examples."""
        x, found = self.backbone.enter(x), []
        for exit in range(len(self.after)):  # noqa: A001 - what it is
            x = self.until(x, exit)
            found.append(self.heads[exit](self.norms[exit](x).mean(1)))
        return [*found, self.backbone.conclude(self.until(x, len(self.after)))]

    def objective(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return what is to be made small, where it is not the loss of the outputs alone: `heads_loss`."""
        return self.heads_loss(x, labels)

    def heads_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of all exits, and of the end where the backbone learns too."""
        logits = self.every(x)
        return sum(
            (F.cross_entropy(one, labels) for one in (logits[:-1] if self.frozen else logits)), logits[0].new_zeros(())
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor, budget: float) -> None:
        """Set one level for all exits so that on examples like `x` the mean share of the layers computed is the budget.

        The nearest share that a level gives is taken; one exit's share is the least there is.

        Raises:
            ConfigError: if the budget is not above 0 and at most 1, or below what the first exit costs.
        """
        affordable(self.name, budget, self.least, "the first exit")
        costs = self.costs.to(self.levels.device)
        training = self.training
        self.eval()
        ready = torch.stack([self.scores(one, n) for n, one in enumerate(self.every(x)[:-1])], 1)
        self.train(training)
        candidates = torch.cat([ready.flatten().unique(), ready.new_full((1,), torch.inf)])
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.spent(ready, candidates[middle], costs) < budget else (low, middle)
        near = candidates[[max(0, low - 1), low]]
        off = torch.stack([(self.spent(ready, level, costs) - budget).abs() for level in near])
        self.levels.fill_(near[off.argmin()])

    @torch.no_grad()
    def depths(self, x: Tensor) -> Tensor:
        """Return which share of the layers each example of `x` takes, `(B,)`, found by computing all of them."""
        ready = torch.stack([self.scores(one, n) >= self.levels[n] for n, one in enumerate(self.every(x)[:-1])], 1)
        leaves = torch.cat([ready, torch.ones_like(ready[:, :1])], 1)
        return self.costs.to(x.device)[leaves.int().argmax(1)]

    @staticmethod
    def spent(ready: Tensor, level: Tensor, costs: Tensor) -> Tensor:
        """Return the mean cost of examples of scores `(B, exits)` that leave where they reach the level."""
        leaves = torch.cat([ready >= level, ready.new_ones(len(ready), 1, dtype=torch.bool)], 1)
        return costs[leaves.int().argmax(1)].mean()


@listed("early-exit", kind="model", paper="kaya2019shallow", at="confidence-based early exits")
class EarlyExit(AbstractExits):
    r"""A classifier whose examples leave where a head's confidence reaches a level: the baseline of early exits.

    $$ s_i = \max_c p^{(i)}_c $$

    Train it by `heads_loss`, and set the level for a budget by `calibrate`.
    """

    first_level = 0.9

    def scores(self, logits: Tensor, exit: int) -> Tensor:  # noqa: A002, ARG002 - what it is
        """Return the confidence."""
        return logits.softmax(-1).amax(-1)


def early_exit(
    classes: int,
    dim: int,
    layers: int,
    mixer: Socket = "attention",
    channel: Socket = "swiglu",
    *,
    after: Sequence[int] | None = None,
    **shape: Any,
) -> EarlyExit:
    """Return a new classifier with exits; the arguments are those of `Classifier` and of `EarlyExit`."""
    return EarlyExit(Classifier(classes, dim, layers, mixer, channel, **shape), after)


KINDS["early-exit"] = early_exit


def uncertainty(logits: Tensor) -> Tensor:
    r"""Return what the gates of JEI-DNN look at, without a gradient: `(B, classes) -> (B, 4)`.

    The highest probability, the entropy, the margin between the two highest, and the entropy of the squared probabilities
    after they are normalized.
    """
    p = logits.detach().softmax(-1)
    best = p.topk(2, dim=-1).values
    sharper = p.square() / p.square().sum(-1, keepdim=True)
    entropies = [torch.special.entr(q).sum(-1) for q in (p, sharper)]
    return torch.stack([best[..., 0], entropies[0], best[..., 0] - best[..., 1], entropies[1]], -1)


def leaving(gates: Tensor) -> Tensor:
    """Return the probability to leave at each exit and at the end, `(B, exits) -> (B, exits + 1)`."""
    stays = torch.cat([torch.ones_like(gates[:, :1]), (1 - gates).cumprod(1)], 1)
    return torch.cat([gates * stays[:, :-1], stays[:, -1:]], 1)


def weighted_loss(logits: Sequence[Tensor], labels: Tensor, leaves: Tensor) -> Tensor:
    """Return the cross-entropies of the exits, the end being last, by how likely examples leave, `(B, exits + 1)`."""
    each = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits[:-1]], 1)
    with torch.no_grad():
        weights = leaves[:, :-1]
        weights = weights * (each.sum(1) / (weights * each).sum(1).clamp_min(1e-12)).unsqueeze(1)
    return (weights * each).sum(1).mean()


def gating_loss(logits: Sequence[Tensor], labels: Tensor, gates: Tensor, costs: Tensor) -> Tensor:
    """Return the gates' cross-entropy with having come to where error and cost together are least.

    Args:
        logits: of each exit and of the end.
        labels: `(B,)`.
        gates: logits of the gates `(B, exits)`.
        costs: what each exit and the end cost, in nats, `(exits + 1,)`.
    """
    with torch.no_grad():
        each = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits], 1)
        best = (each + costs.to(each)).argmin(1)
        wanted = (torch.arange(gates.shape[1], device=best.device) >= best.unsqueeze(1)).to(each.dtype)
        open_share = wanted.mean(0)
        rarity = ((1 - open_share) / open_share.clamp_min(1e-6)).clamp(max=5.0)
    return F.binary_cross_entropy_with_logits(gates, wanted, pos_weight=rarity, reduction="none").sum(1).mean()


@listed("jei-dnn", kind="model", paper="regol2023jeidnn", at="the exit probabilities of gates, and the two losses in turn")
class JEIDNN(AbstractExits):
    r"""A frozen backbone with heads and gates that are trained for each other, under the cost of the layers.

    $$ P(l) = g_l(c_l) \prod_{j < l} (1 - g_j(c_j)), \qquad
       L_\text{heads} = \sum_l P(l) \operatorname{CE}_l, \qquad
       L_\text{gates} = \sum_l \operatorname{BCE}(g_l, \mathbb 1[l \ge l^*]), \quad
       l^* = \operatorname{argmin}_l \operatorname{CE}_l + \lambda \operatorname{cost}_l $$

    with $c_l$ four measures of how uncertain head l is (`uncertainty`). An example leaves where a gate reaches one half, or
    the level that `calibrate` sets. Train all heads by `heads_loss` first, then heads by `joint_loss` and gates by
    `gates_loss`. The paper takes turns of many steps; neither loss has a gradient for what the other trains, and `objective`
    is their sum. The weights of the heads' losses keep their sum, as in the authors' code, and have no gradient, which their
    code lets through and which cancels them there.

    Args:
        backbone: a trained classifier of whole sequences.
        after: the layers, counted from 1, behind which there is an exit; by default all but the last.
        cost: what all layers cost beside the cross-entropy in nats, $\lambda$.
        frozen: leave the backbone as it is from the start; without it, the backbone is trained with the heads, and frozen
            where `anneal` says that training has come to its middle and the gates are trained.
    """

    def __init__(
        self, backbone: Classifier, after: Sequence[int] | None = None, *, cost: NonNegative = 0.7, frozen: bool = True
    ) -> None:
        super().__init__(backbone, after, frozen=frozen)
        weight = backbone.head.weight
        self.cost, self.gated = cost, False
        self.gates = nn.ModuleList([Linear(4, 1, device=weight.device, dtype=weight.dtype) for _ in self.after])

    def scores(self, logits: Tensor, exit: int) -> Tensor:  # noqa: A002 - what it is
        """Return the gate's openness, the probability to leave for those who came here."""
        return torch.sigmoid(self.gates[exit](uncertainty(logits)).squeeze(-1))

    def leaving(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the probability to leave at each exit and at the end, `(B, exits + 1)`, of the logits of all of them."""
        return leaving(torch.stack([self.scores(one, n) for n, one in enumerate(logits[:-1])], 1))

    def anneal(self, share: float) -> None:
        """Freeze the backbone and train the gates from the middle of training on; called before each step."""
        self.gated = share >= WARM
        if self.gated and not self.frozen:
            self.frozen = True
            self.backbone.requires_grad_(False).eval()

    def objective(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return `heads_loss` until the middle of training, and then the losses of heads and gates."""
        if not self.gated:
            return self.heads_loss(x, labels)
        logits = self.every(x)
        return self.weighted(logits, labels) + self.gating(logits, labels)

    def joint_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the heads' cross-entropies, weighted by how likely examples leave there."""
        return self.weighted(self.every(x), labels)

    def gates_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the gates' cross-entropy with having come to the exit where error and cost together are least."""
        with torch.no_grad():
            logits = self.every(x)
        return self.gating(logits, labels)

    def weighted(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return `joint_loss` of the logits of all exits."""
        return weighted_loss(logits, labels, self.leaving(logits))

    def gating(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return `gates_loss` of the logits of all exits."""
        found = torch.cat([self.gates[n](uncertainty(one)) for n, one in enumerate(logits[:-1])], 1)
        return gating_loss(logits, labels, found, self.cost * self.costs)


def jei_dnn(
    classes: int,
    dim: int,
    layers: int,
    mixer: Socket = "attention",
    channel: Socket = "swiglu",
    *,
    after: Sequence[int] | None = None,
    cost: NonNegative = 0.7,
    **shape: Any,
) -> JEIDNN:
    """Return a new classifier with exits and gates, of which nothing is trained; the arguments are those of `early_exit`."""
    return JEIDNN(Classifier(classes, dim, layers, mixer, channel, **shape), after, cost=cost, frozen=False)


KINDS["jei-dnn"] = jei_dnn
