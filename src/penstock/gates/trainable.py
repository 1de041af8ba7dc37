r"""Trained on-off gates for channels: a hard step whose derivative has a shape of its own.

$$ y_c = x_c \operatorname{TG}(w_c), \qquad
   \operatorname{TG}(w) = \lim_{M \to \infty} \mathbb 1[w > 0] + \frac{M w - \lfloor M w \rfloor}{M} g(w), \qquad
   \operatorname{TG}'(w) = g(w) $$

All gates are open at first. Add a penalty on `share()` (or on products of neighboring shares, for multiplications) to
the loss, train weights and gates together, then remove what closed with `penstock.gates.prune`. Place the gate after the
nonlinearity and the normalization, so that a closed channel leaks nothing; channels that are summed share one gate.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from penstock.core import Activation, Gate, ImageMixer, Mechanism, Positive, Size, mechanism
from penstock.gates.estimators import shaped_step


def bump(w: Tensor) -> Tensor:
    """Return the derivative of the sigmoid: a gate far from its step moves slowly."""
    p = torch.sigmoid(w)
    return p * (1 - p)


SHAPES = {"constant": torch.ones_like, "bump": bump}


class AbstractTrainableGate(Mechanism):
    """What the gates share, wherever the axis of the channels is."""

    weight: nn.Parameter
    shape: str

    def _start(self, channels: int, shape: str, start: float, device: Any, dtype: Any) -> None:
        self.shape = shape
        self.weight = nn.Parameter(torch.full((channels,), float(start), device=device, dtype=dtype))
        self.gate = Gate()

    def openness(self) -> Tensor:
        """Return the gates, one per channel: zeros and ones that have a gradient."""
        return shaped_step(self.weight, SHAPES[self.shape])

    def share(self) -> Tensor:
        """Return the share of channels that are open, a scalar with a gradient."""
        return self.openness().mean()


@mechanism(
    "trainable-gate",
    paper="kim2020plugin",
    at="definition of the trainable gate function",
    gates={"gate": "{0, 1}"},
    traits={"identity-at-init"},
    example={"dim": 8},
)
class TrainableGate(AbstractTrainableGate, Activation):
    """A gate for each channel that is 0 or 1 and yet is trained by gradient, to be pruned away for good.

    Shapes: `(..., dim) -> (..., dim)`.

    Args:
        dim: how many channels.
        shape: the derivative $g$; the paper allows any bounded one.
        start: first value of every $w$, the way a gate has to go to close.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(
        self,
        dim: Size,
        *,
        shape: Literal["constant", "bump"] = "constant",
        start: Positive = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self._start(dim, shape, start, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of `x` `(..., dim)`."""
        self.check_shape(x, "... dim")
        return x * self.gate(self.openness())


@mechanism(
    "trainable-gate-image",
    paper="kim2020plugin",
    at="definition of the trainable gate function",
    gates={"gate": "{0, 1}"},
    traits={"identity-at-init"},
    example={"channels": 8},
)
class TrainableGateImage(AbstractTrainableGate, ImageMixer):
    """The trained on-off gate for the feature maps of a convolution.

    Shapes: `(batch, channels, height, width) -> (batch, channels, height, width)`.

    Args:
        channels: how many feature maps.
        shape: the derivative $g$; the paper allows any bounded one.
        start: first value of every $w$, the way a gate has to go to close.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(
        self,
        channels: Size,
        *,
        shape: Literal["constant", "bump"] = "constant",
        start: Positive = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self._start(channels, shape, start, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature maps of `x` `(batch, channels, height, width)`."""
        self.check_shape(x, "batch channels height width")
        return x * self.gate(self.openness()).view(-1, 1, 1)
