r"""Hard concrete gates: random gates of which a share is exactly 0 or 1, and how many are not 0 on average.

$$ s = \sigma\!\left(\frac{\log u - \log(1 - u) + \log\alpha}{\beta}\right), \qquad
   z = \min(1, \max(0, s (\zeta - \gamma) + \gamma)), \qquad u \sim \mathcal U(0, 1) $$
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from penstock.core import Activation, Fraction, Gate, Positive, Size, mechanism
from penstock.gates.estimators import logistic

LOW, HIGH = -0.1, 1.1


def sample(log_alpha: Tensor, temperature: float = 2 / 3, generator: torch.Generator | None = None) -> Tensor:
    """Draw gates in `[0, 1]` with a gradient through the noise; ends of the stretch are -0.1 and 1.1."""
    stretched = torch.sigmoid((log_alpha + logistic(log_alpha, generator)) / temperature) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def settle(log_alpha: Tensor) -> Tensor:
    r"""Return the gate of test time, $\min(1, \max(0, \sigma(\log\alpha)(\zeta - \gamma) + \gamma))$."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor, temperature: float = 2 / 3) -> Tensor:
    r"""Return $P(z \ne 0) = \sigma(\log\alpha - \beta \log(-\gamma / \zeta))$, whose sum is the expected L0 norm."""
    return torch.sigmoid(log_alpha - temperature * math.log(-LOW / HIGH))


@mechanism(
    "hard-concrete",
    paper="louizos2018learning",
    at="section on the hard concrete distribution",
    gates={"gate": "[0, 1]"},
    traits={"stochastic"},
    example={"dim": 8},
)
class HardConcrete(Activation):
    r"""A trained gate for each channel, random in training, whose expected number of open ones can be penalized.

    $$ y = x \odot z, \qquad z = \min(1, \max(0, s (\zeta - \gamma) + \gamma)), \qquad
       s = \sigma\!\left(\frac{\log u - \log(1 - u) + \log\alpha}{\beta}\right) $$

    Shapes: `(..., dim) -> (..., dim)`.

    Args:
        dim: how many channels.
        temperature: of the concrete distribution.
        closed: probability, without the stretch, that a fresh gate is closed.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(
        self,
        dim: Size,
        *,
        temperature: Positive = 2 / 3,
        closed: Fraction = 0.5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.temperature = dim, temperature
        start = torch.logit(torch.tensor(1 - closed), eps=1e-3).item()
        self.log_alpha = nn.Parameter(start + 0.01 * torch.randn(dim, device=device, dtype=dtype))
        self.gate = Gate()

    def openness(self) -> Tensor:
        """Return the gates `(dim,)`: drawn in training, else those of test time."""
        return sample(self.log_alpha, self.temperature) if self.training else settle(self.log_alpha)

    def share(self) -> Tensor:
        """Return the expected share of gates that are not closed, a scalar to penalize."""
        return open_probability(self.log_alpha, self.temperature).mean()

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of `x` `(..., dim)`."""
        self.check_shape(x, "... dim")
        return x * self.gate(self.openness())
