r"""Feed-forward layers whose blocks of hidden units are switched by random gates: one equation, a class for each estimator.

$$ y = W_2 \left(\operatorname{relu}(W_1 x + b_1) \odot (h \otimes \mathbf 1)\right) + b_2, \qquad
   h = \operatorname{estimator}(a), \quad a = V_2 \tanh(V_1 x + c_1) + c_2 $$
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import ChannelMixer, Fraction, Gate, Size, check_divides, mechanism
from penstock.gates.budget import rate_penalty
from penstock.gates.estimators import noisy_rectifier, sqrt_sigmoid, stochastic_times_smooth, straight_through
from penstock.gates.select import threshold


class AbstractConditionalMLP(ChannelMixer):
    r"""What the layers share: `(..., dim) -> (..., dim)`.

    In training the gates are drawn, and every block is computed. In evaluation every random quantity has its most likely
    value, and a block is computed for those positions only that its gate lets through (compiled or exported, for all). Add
    `penalty(x)` to the loss to keep the gates open at the target rate. For another estimator, `reinforce` say, draw gates
    from `score(x)` and call `mix(x, gates)`.

    Args:
        dim: width of the residual stream.
        hidden: hidden units; `4 * dim` by default.
        blocks: how many gates there are, each for `hidden / blocks` units; the paper has one for each unit.
        gater: hidden units of the network that scores the gates; half of `dim` by default, as in the paper's ratio.
        rate: share of the gates that should be open on average.
        device: where the parameters live.
        dtype: their type.
    """

    draw: ClassVar[Callable[[Tensor], Tensor]]
    settle: ClassVar[Callable[[Tensor], Tensor]]
    open_rate: ClassVar[Callable[[Tensor], Tensor]]

    def __init__(
        self,
        dim: Size,
        hidden: Size | None = None,
        blocks: Size = 4,
        *,
        gater: Size | None = None,
        rate: Fraction = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.blocks, self.rate = dim, hidden or 4 * dim, blocks, rate
        check_divides(self.name, blocks=blocks, hidden=self.hidden)
        narrow = gater or max(1, dim // 2)
        self.gater = nn.Sequential(
            nn.Linear(dim, narrow, device=device, dtype=dtype),
            nn.Tanh(),
            nn.Linear(narrow, blocks, device=device, dtype=dtype),
        )
        self.inner = nn.Linear(dim, self.hidden, device=device, dtype=dtype)
        self.out = nn.Linear(self.hidden, dim, device=device, dtype=dtype)
        self.gate = Gate()

    def score(self, x: Tensor) -> Tensor:
        """Return the scores of the gates, `(..., blocks)`."""
        self.check_shape(x, "... dim")
        return self.gater(x)

    def penalty(self, x: Tensor) -> Tensor:
        """Return how far the rates at which the gates open on `x` are from the target, a scalar to add to the loss."""
        return rate_penalty(self.open_rate(self.score(x)), self.rate)

    def mix(self, x: Tensor, openness: Tensor) -> Tensor:
        """Mix the channels of `x` `(..., dim)` with gates `(..., blocks)`."""
        openness = self.gate(openness)
        if self.training or torch.compiler.is_compiling():
            units = F.relu(self.inner(x)) * openness.repeat_interleave(self.hidden // self.blocks, -1)
            return self.out(units)
        return self._mix_open(x.reshape(-1, self.dim), openness.reshape(-1, self.blocks)).view(x.shape)

    def _mix_open(self, x: Tensor, openness: Tensor) -> Tensor:
        y = self.out.bias.expand(len(x), -1).to(x.dtype).clone()
        size = self.hidden // self.blocks
        for index, gate in enumerate(openness.unbind(-1)):
            rows = gate.nonzero().squeeze(-1)
            if len(rows):
                here = slice(index * size, (index + 1) * size)
                units = F.relu(F.linear(x[rows], self.inner.weight[here], self.inner.bias[here])) * gate[rows, None]
                y = y.index_add(0, rows, F.linear(units, self.out.weight[:, here]).to(y.dtype))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of `x` `(..., dim)`."""
        decide = self.draw if self.training else self.settle
        return self.mix(x, decide(self.score(x)))


@mechanism(
    "conditional-mlp",
    paper="bengio2013estimating",
    at="section on conditional computation experiments",
    gates={"gate": "{0, 1}"},
    traits={"stochastic", "skips"},
    example={"dim": 8, "hidden": 12, "blocks": 3},
)
class ConditionalMLP(AbstractConditionalMLP):
    """Feed-forward layer with binary gates, trained straight through."""

    draw = staticmethod(straight_through)
    settle = staticmethod(partial(threshold, level=0.0))
    open_rate = staticmethod(torch.sigmoid)


def _likely_smooth(logits: Tensor) -> Tensor:
    """Return the smooth factor where the random one is more likely 1 than 0."""
    root = sqrt_sigmoid(logits)
    return root * (root > 0.5)


@mechanism(
    "conditional-mlp-smooth",
    paper="bengio2013estimating",
    at="section on conditional computation experiments",
    gates={"gate": "[0, 1]"},
    traits={"stochastic", "skips"},
    example={"dim": 8, "hidden": 12, "blocks": 3},
)
class ConditionalMLPSmooth(AbstractConditionalMLP):
    """Feed-forward layer with gates that are a random factor times a smooth one."""

    draw = staticmethod(stochastic_times_smooth)
    settle = staticmethod(_likely_smooth)
    open_rate = staticmethod(sqrt_sigmoid)


@mechanism(
    "conditional-mlp-noisy",
    paper="bengio2013estimating",
    at="section on conditional computation experiments",
    gates={"gate": "[0, inf)"},
    traits={"stochastic", "skips"},
    example={"dim": 8, "hidden": 12, "blocks": 3},
)
class ConditionalMLPNoisy(AbstractConditionalMLP):
    """Feed-forward layer with noisy rectifiers for gates."""

    draw = staticmethod(noisy_rectifier)
    settle = staticmethod(F.relu)
    open_rate = staticmethod(torch.sigmoid)
