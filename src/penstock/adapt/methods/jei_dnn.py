r"""Early exits in a trained classifier: heads behind its layers, by gates or by confidence, on a backbone that stays.

$$ P(l) = g_l \prod_{j < l} (1 - g_j), \qquad g_l = \sigma(w_l^\top c_l + b_l) $$

with $c_l$ measures of how uncertain head l is. An example that has left is computed no further.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt.method import BudgetPart, Method, Part, Passing
from penstock.adapt.places import Place
from penstock.adapt.places import places as places_of
from penstock.adapt.ties import Ties, first, with_first
from penstock.core import ConfigError, Count, Gate, NonNegative, Share
from penstock.models.exits import gating_loss, leaving, uncertainty, weighted_loss
from penstock.ops.linear import Linear

KINDS = ("ForSequenceClassification", "ForImageClassification")


class _State:
    """What one call of the model has come to: who is still there, and what those say who have left."""

    def __init__(self, labels: Tensor | None) -> None:
        self.labels = labels
        self.size = 0
        self.rows: Tensor | None = None
        """The examples that are computed, where some have left."""
        self.answers: Tensor | None = None
        self.logits: list[Tensor] = []
        self.gates: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.stays: Tensor | None = None
        self.order: Tensor | None = None


class ExitPart(BudgetPart):
    """The exit behind one layer; `level` is how unready an example must be to stay."""

    gates: ClassVar = {"gate": "(0, 1); 1 leaves", "leave": "{0, 1}"}
    exits: Any
    steps: Tensor

    def __init__(self, place: Place, what: "AbstractExits", classes: int, model: "_Exits") -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(place.dim), Linear(place.dim, classes)
        self.to_gate = Linear(4, 1) if what.gated else None
        self.gate, self.leave = Gate(), Gate()
        self.start_budget(what.budget)
        self.register_buffer("steps", torch.tensor(0))
        self.__dict__["exits"] = model

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the layers from this exit to the next; the first exit begins and ends a call of the model."""
        if self is self.exits.parts[0]:
            ties.before(ties.model, self.exits.begin)
            ties.after(ties.model, self.exits.conclude)
        ties.around(place.host, _Layer(self.exits, place, self).run)
        behind = self.exits.behind.pop(place.index)
        for each in behind:
            if each.index not in self.exits.indices:
                ties.around(each.host, _Layer(self.exits, each, None).run)
        self.cost = float(sum(p.numel() for each in behind for p in each.host.parameters()))

    def dense(self) -> bool:
        """Whether to compute all examples to the end: in training, in calibration, and where one graph is compiled."""
        return self.training or self.observe is not None or self.random or torch.compiler.is_compiling()

    def choose(self, scores: Tensor) -> Tensor:
        """Return the mask of the examples that stay."""
        scores = scores.detach().float()
        if self.observe is not None:
            self.observe.append(scores)
        return torch.ones_like(scores, dtype=torch.bool) if self.training else scores >= self.level

    def decide(self, y: Tensor, state: _State) -> Tensor:
        """Return what goes on of the stream `y` `(R, T, dim)` behind the layer: all of it, or the examples that stay."""
        logits = self.head(self.norm(y[:, 0].detach()))
        found = None if self.to_gate is None else self.to_gate(uncertainty(logits)).squeeze(-1)
        ready = self.gate(logits.detach().softmax(-1).amax(-1) if found is None else found.sigmoid())
        stays = (1 - ready) if state.stays is None else torch.minimum(state.stays, 1 - ready)
        stay = self.choose(stays if state.order is None else stays[state.order])
        leave = self.leave((~stay).to(logits.dtype))
        state.logits.append(logits)
        state.gates.append(ready if found is None else found)
        if self.dense():
            state.stays = stays
            state.leaves.append(leave)
            self.add(state.size, stay)
            return y
        self.add(state.size, stay)
        rows = torch.arange(state.size, device=y.device) if state.rows is None else state.rows
        answers = logits.new_zeros(state.size, logits.shape[1]) if state.answers is None else state.answers
        state.answers = answers.index_copy(0, rows[~stay], logits[~stay])
        state.rows, state.stays = rows[stay], stays[stay]
        return y[stay]

    def add(self, size: int, stay: Tensor) -> None:
        """Add to the account."""
        if not (self.training or self.observe is not None or torch.compiler.is_compiling()):
            self.seen += size
            self.run += int(stay.sum())

    def penalty(self) -> Tensor | None:
        """Return the losses of all exits for the latest call in training, once."""
        return self.exits.loss.value if self is self.exits.parts[0] else None


class _Exits:
    """All exits of a model, and what they hand on during a call."""

    def __init__(self, what: "AbstractExits", chosen: Sequence[Place], stack: Sequence[Place]) -> None:
        self.parts: list[ExitPart] = []
        self.cost, self.warm, self.gated = what.cost, what.warm, what.gated
        self.indices = [place.index for place in chosen]
        stops = [*self.indices[1:], len(stack) - 1]
        self.behind = {i: stack[i + 1 : stop + 1] for i, stop in zip(self.indices, stops, strict=True)}
        self.shares = torch.tensor([*(i + 1 for i in self.indices), len(stack)]) / len(stack)
        self.state, self.loss = Passing(), Passing()

    def begin(self, args: Any, kwargs: Any) -> Any:
        """Begin a call of the model, which is not given labels in evaluation: it will not have all examples."""
        self.state.value = _State(kwargs.get("labels"))
        self.loss.value = None
        return None if self.parts[0].training else (args, {**kwargs, "labels": None})

    def conclude(self, output: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - what a hook is given
        """Return what the model gives, with the logits of the exits that examples took."""
        state, whole = self.state.take(), isinstance(output, tuple)
        if self.parts[0].training:
            if state.labels is not None:
                last = output[1] if whole else output.logits
                self.loss.value = self.losses([*state.logits, last.detach()], state.gates, state.labels)
            return None
        logits = output[0] if whole else output.logits
        if state.rows is not None:
            logits = state.answers.index_copy(0, state.rows, logits)
        for found, leave in zip(reversed(state.logits), reversed(state.leaves), strict=False):
            logits = torch.where(leave.unsqueeze(1) > 0, found, logits)
        loss = None if state.labels is None else F.cross_entropy(logits, state.labels)
        if whole:
            return (logits, *output[1:]) if loss is None else (loss, logits, *output[1:])
        return type(output)(**{"loss": loss, **output, "logits": logits})

    def losses(self, logits: list[Tensor], found: list[Tensor], labels: Tensor) -> Tensor:
        """Return the loss of the heads and that of the gates, each of which has a gradient for its own alone."""
        count, steps = len(self.parts), self.parts[0].steps
        steps += 1
        plain = torch.stack([(count - i) * F.cross_entropy(logits[i], labels) for i in range(count)]).sum()
        if not self.gated:
            return plain
        gates = torch.stack(found, 1)
        weighted = weighted_loss(logits, labels, leaving(gates.detach().sigmoid()))
        heads = torch.where(steps > self.warm, weighted, plain)
        return heads + gating_loss(logits, labels, gates, self.cost * self.shares)


class _Layer:
    """One layer that runs for the examples that have not left."""

    def __init__(self, exits: _Exits, place: Place, part: ExitPart | None) -> None:
        self.exits, self.part = exits, part
        self.names = list(inspect.signature(type(place.host).forward).parameters)[1:]

    def run(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the layer, and let examples leave behind it where it has an exit."""
        state = self.exits.state.value
        if state is None:
            return inner(*args, **kwargs)
        kwargs |= dict(zip(self.names, args, strict=False))
        x = kwargs.pop(self.names[0])
        state.size = state.size or len(x)
        if self.part is not None and self.part.random and state.order is None and not self.part.training:
            state.order = torch.randperm(len(x), device=x.device)
        if not len(x):
            return x
        if state.rows is not None:
            kwargs = {name: _some(value, state.rows, state.size) for name, value in kwargs.items()}
        output = inner(x, **kwargs)
        return output if self.part is None else with_first(self.part.decide(first(output), state), output)


def _some(value: Any, rows: Tensor, size: int) -> Any:
    """Return what belongs to some of the examples, where there is something for each of them."""
    if isinstance(value, tuple):
        return tuple(_some(each, rows, size) for each in value)
    return value[rows] if isinstance(value, Tensor) and value.dim() > 2 and len(value) == size else value


class AbstractExits(Method):
    """Heads behind the layers of a trained classifier."""

    kinds, excludes = ("layer",), ("norga", "jei-dnn", "early-exit")
    share = "model"
    """One level for all exits."""
    gated: ClassVar[bool]
    cost: float = 0.0
    warm: int = 0
    budget: float

    def keep(self, places: Sequence[Place]) -> list[Place]:
        """Return all layers but the last."""
        if any(getattr(place.inside("attention").core, "is_causal", False) for place in places):
            raise ConfigError(f"{self.name}: it is for encoders that classify, and this model is a decoder")
        return [place for place in places if place.index < place.layers - 1]

    def parts(self, chosen: Sequence[Place], model: nn.Module) -> list[Part]:
        """Return the exits, which know of each other."""
        config: Any = getattr(model, "config", None)
        if not type(model).__name__.endswith(KINDS) or config.num_labels < 2 or (config.problem_type or "single")[0] != "s":
            raise ConfigError(f"{self.name}: the model must choose one of several classes, got {type(model).__name__}")
        exits = _Exits(self, chosen, [place for place in places_of(model) if place.kind == "layer"])
        exits.parts = [ExitPart(place, self, config.num_labels, exits) for place in chosen]
        return list(exits.parts)


class JEIDNN(AbstractExits):
    r"""Give a trained classifier early exits, whose heads and gates are trained for each other under the cost of the layers.

    Behind each layer but the last that `where` matches stand a norm and a linear head on the first token, and a gate that
    looks at four measures of how uncertain the head is. The model itself stays, and nothing leaves until `Adapter.calibrate`
    has set one level for all gates; the budget is the share of the layers behind the first exit that is computed. An example
    that has left is taken out of the batch.

    In training all exits are computed, and the model's loss has those of heads and gates in it, so a Trainer does as well as
    `adapt.train`. The heads' losses first have weights that fall from exit to exit, and then those of the paper, how likely
    examples leave there, with their sum kept and no gradient; the gates learn whether the exit with the least of error and
    cost has come. The paper takes turns between heads and gates, and has the gates wait for the heads.

    Args:
        budget: share of the layers behind the first exit that examples run.
        cost: what all layers cost beside the cross-entropy in nats, $\lambda$.
        warm: steps before the heads' losses are weighted.
    """

    name, gated = "jei-dnn", True

    def __init__(self, budget: Share = 0.5, *, cost: NonNegative = 0.7, warm: Count = 200) -> None:
        self.budget, self.cost, self.warm = budget, cost, warm


class EarlyExits(AbstractExits):
    """Give a trained classifier early exits by the confidence of their heads: what gates have to beat.

    Everything else is as with `JEIDNN`, and the heads are trained as there at the start.

    Args:
        budget: share of the layers behind the first exit that examples run.
    """

    name, gated = "early-exit", False

    def __init__(self, budget: Share = 0.5) -> None:
        self.budget = budget
