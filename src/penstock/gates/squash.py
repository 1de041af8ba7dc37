"""Squashing: functions of a score that give an openness and that torch does not have, each safe at any score.

The sigmoid is `torch.sigmoid`, the normal one `torch.special.ndtr`. Every function works element by element and keeps the
type.
"""

import math

import torch
from torch import Tensor

from penstock.core import ConfigError

# exp(-exp(7)) is zero in every type, and exp(7) fits into half precision.
_GOMPERTZ_ZERO = -7.0


def arctan_gate(x: Tensor) -> Tensor:
    r"""Return the arctan gate, in `(0, 1)`, which closes like `1 / x`.

    $$ g(x) = \tfrac{1}{\pi} \arctan x + \tfrac12 $$
    """
    return torch.atan(x) / math.pi + 0.5


def gompertz(x: Tensor) -> Tensor:
    r"""Return the Gompertz gate, in `[0, 1)`, which closes faster than it opens.

    $$ g(x) = \exp(-\exp(-x)) $$

    Value and gradient are zero below -7, where the formula as written underflows, and further down gives the gradient NaN.
    The three-parameter curve $\alpha \exp(-\beta e^{-\gamma x})$ is `alpha * gompertz(gamma * x - log(beta))`.
    """
    return torch.exp(-torch.exp(-x.clamp(min=_GOMPERTZ_ZERO)))


def hard_sigmoid(x: Tensor, slope: float = 1 / 6) -> Tensor:
    r"""Return the piecewise linear sigmoid, in `[0, 1]`, which closes and opens exactly.

    $$ g(x) = \min(1, \max(0, s x + \tfrac12)) $$

    Args:
        x: scores.
        slope: of the middle piece; 1/6 is `torch.nn.functional.hardsigmoid`, 1/5 and 1/2 are also in use.
    """
    return (slope * x + 0.5).clamp(0, 1)


def expand(openness: Tensor, alpha: Tensor | float) -> Tensor:
    r"""Widen the range `(0, 1)` of a gate to `(-alpha, 1 + alpha)` around one half.

    $$ G = g (1 + 2\alpha) - \alpha $$

    Args:
        openness: of a sigmoid, an arctan or a normal gate.
        alpha: how far the gate goes beyond closed and open; a number or a trained tensor. Below zero it narrows the range.
    """
    return openness * (1 + 2 * alpha) - alpha


def softmax(logits: Tensor, temperature: Tensor | float = 1.0, dim: int = -1) -> Tensor:
    r"""Share one unit of openness over an axis; the lower the temperature, the harder the choice.

    $$ g_i = \frac{\exp(a_i / \tau)}{\sum_j \exp(a_j / \tau)} $$

    Args:
        logits: scores.
        temperature: above 0; a tensor, which is not checked, may differ from row to row or be trained.
        dim: the axis to share over.

    Raises:
        ConfigError: if the temperature is a number that is not above 0.
    """
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ConfigError(f"softmax: temperature must be a number above 0, got {temperature!r}")
    return torch.softmax(logits / temperature, dim)
