r"""Sparse activations in a trained model: levels that data set, nothing trained, and weights that are not read.

$$ y = W (m \odot x), \quad m_i = \mathbb 1[|x_i|\, c_i \ge T] \qquad \text{or} \qquad
   y = W_o (m \odot a \odot W_v x), \quad a = \phi(W_g x), \quad m_i = \mathbb 1[|a_i|\, s_i \ge T] $$
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt.method import BudgetPart, Method, Part
from penstock.adapt.places import ACTIVATION, Place
from penstock.adapt.ties import Ties
from penstock.core import DataError, Gate, Share
from penstock.ops import sparse_linear
from penstock.ops.linear import linear_where
from penstock.ops.prepared import is_recording

ROWS = 256
"""How many tokens of a batch levels are set by, spread over it."""


class SparsePart(BudgetPart):
    """The part of one place, which scores every channel of every token."""

    def start(self, place: Place, budget: float) -> None:
        """Make the gate and the levels."""
        self.keep = Gate()
        self.path = place.path
        self.start_budget(budget)

    def choose(self, scores: Tensor) -> Tensor:
        """Return the mask of the channels that are kept: in training the best of each token, else those of the level."""
        if self.observe is None:
            return super().choose(scores)
        rows = scores.detach().float().flatten(0, -2)
        if not rows.isfinite().all():
            raise DataError(f"{self.method_name}: what {self.path} is given on the data is not finite")
        self.observe.append(rows[:: max(1, len(rows) // ROWS)].flatten())
        return scores >= self.level

    def mask(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the mask in the type of what it multiplies, and add to the account."""
        keep = self.keep(self.choose(scores).to(dtype))
        if not (self.training or torch.compiler.is_compiling() or is_recording()):
            self.seen += keep.numel()
            self.run = self.run + keep.count_nonzero()  # no number is read of a tensor here
        return keep

    def lay(self, layer: nn.Module, ties: Ties | None = None) -> Tensor:
        """Return the weight `(in, out)` of a map, the numbers of an input together; the map's own is laid so in memory."""
        weight: Any = layer.weight
        if type(layer).__name__ == "Conv1D":
            return weight
        if not weight.mT.is_contiguous() and not torch.compiler.is_compiling():
            weight.data = weight.data.mT.contiguous().mT
        if ties is not None:
            ties.later(_straight, weight)
        return weight.mT


def _straight(weight: nn.Parameter) -> None:
    weight.data = weight.data.contiguous()


def _biased(y: Tensor, layer: Any) -> Tensor:
    return y if layer.bias is None else y + layer.bias


class SparseMapPart(SparsePart):
    """The inputs of one linear map."""

    gates: ClassVar = {"keep": "{0, 1}"}
    layer: Any
    norms: Tensor | None

    def __init__(self, place: Place, what: "AbstractSparse") -> None:
        super().__init__()
        self.start(place, what.budget)
        self.informed = what.informed

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the calls of the map."""
        ties.around(place.host, self.map, replaces=True)
        self.__dict__["layer"] = place.host
        weight_t = self.lay(place.host, ties).detach()
        self.cost = float(weight_t.numel())
        dtype = torch.promote_types(weight_t.dtype, torch.float32)
        norms = torch.linalg.vector_norm(weight_t, dim=1, dtype=dtype) if self.informed else None
        self.register_buffer("norms", norms, persistent=False)

    def map(self, _: Callable[..., Any], x: Tensor) -> Tensor:
        """Return the map of the inputs that are kept."""
        size = x.detach().abs()
        keep = self.mask(size if self.norms is None else size * self.norms, x.dtype)
        return _biased(sparse_linear(x, self.lay(self.layer), keep), self.layer)


class ThresholdedPart(SparsePart):
    """The hidden channels of one gated feed-forward layer.

    `importance` is what values multiply a channel's activation by, the root of the mean square on the data, as a
    calibration finds it in passes that drop nothing.
    """

    gates: ClassVar = {"gate": "(-inf, inf); what the layer's activation gives", "keep": "{0, 1}"}
    layers: Any
    importance: Tensor

    def __init__(self, place: Place, what: "AbstractSparse") -> None:
        super().__init__()
        self.start(place, what.budget)
        self.gate, self.informed = Gate(), what.informed
        value: Any = place.maps[1]
        self.register_buffer("importance", torch.ones(value.weight.shape[0]))
        self.squares: list[Tensor] = []

    def attach(self, place: Place, ties: Ties) -> None:
        """Take over the calls of the layer, and nobody else may take over those of its maps that are passed by."""
        passed: tuple[Any, ...] = (place.maps[1], place.out)
        ties.around(place.host, self.mix, replaces=True)
        for layer in passed:
            ties.around(layer, self.passed, replaces=True)
        phi = next(getattr(place.host, name) for name in ACTIVATION if hasattr(place.host, name))
        self.__dict__["layers"] = (*place.maps, place.out, phi)
        self.lay(place.out, ties)
        self.cost = float(sum(layer.weight.numel() for layer in passed))

    def passed(self, inner: Callable[..., Any], x: Tensor) -> Tensor:
        """Return what a map gives that somebody calls by itself."""
        return inner(x)

    def mix(self, _: Callable[..., Any], x: Tensor) -> Tensor:
        """Return what the layer gives by the channels that are kept."""
        to_gate, to_value, out, phi = self.layers
        a = self.gate(phi(to_gate(x)))
        if self.observe is not None and self.informed:
            self.weigh(F.linear(x, to_value.weight, to_value.bias))
        keep = self.mask(a.detach().abs() * self.importance, a.dtype)
        values = _biased(linear_where(x, to_value.weight, keep), to_value)
        return _biased(sparse_linear(a * values, self.lay(out), keep), out)

    def weigh(self, values: Tensor) -> None:
        """Set the importance by the values of all batches of a pass that drops nothing."""
        if self.level.isneginf():
            self.squares.append(values.flatten(0, -2).square().mean(0))
            self.importance.copy_(torch.stack(self.squares).mean(0).sqrt())
        else:
            self.squares = []


class AbstractSparse(Method):
    """What is kept by its size, or by its size times what it counts for."""

    informed: ClassVar[bool]
    made: ClassVar[type[SparsePart]]

    def __init__(self, budget: Share = 0.5) -> None:
        self.budget = budget

    def part(self, place: Place) -> Part:
        """Return the part of a place."""
        return self.made(place, self)  # type: ignore[call-arg]


class WINA(AbstractSparse):
    r"""Give linear maps those inputs whose size times the norm of their weights is largest, $c_i = \|W_{:,i}\|_2$.

    `Adapter.calibrate` sets the levels, one for each map; before it nothing is dropped. Up to four tokens at a time, as in
    decoding on a CPU, cost what is kept; more are computed with zeros. In training each token has its best inputs, as many
    for each. Parameters stay the model's own, and lie otherwise in memory until the parts are removed. Any model that is
    built of linear maps takes it, whether or not it has attention; a map whose weight is used elsewhere too is left alone.

    Args:
        budget: share of the inputs of each map that is kept.
    """

    name, kinds, informed, made = "wina", ("linear",), True, SparseMapPart


class TEAL(AbstractSparse):
    """Give linear maps those inputs that are largest: as `WINA`, where all inputs count for the same.

    Args:
        budget: share of the inputs of each map that is kept.
    """

    name, kinds, informed, made = "teal", ("linear",), False, SparseMapPart


class CHESS(AbstractSparse):
    r"""Have gated feed-forward layers compute values only where the gate's activation is large enough for its channel.

    A channel counts for the values it lets through, $s_i = \sqrt{\operatorname E[u_i^2]}$ with $u = W_v x$ on the data that
    `Adapter.calibrate` is given, which sets one level for each layer; before it nothing is dropped. The map to the gate is
    computed whole. One token at a time costs what is kept. The paper's thresholds in attention are not in it.

    Args:
        budget: share of the hidden channels that is kept.
    """

    name, kinds, informed, made = "chess", ("gated",), True, ThresholdedPart


class CATS(AbstractSparse):
    """Have gated feed-forward layers compute values only where the gate's activation is large: `CHESS` with equal channels.

    Args:
        budget: share of the hidden channels that is kept.
    """

    name, kinds, informed, made = "cats", ("gated",), False, ThresholdedPart
