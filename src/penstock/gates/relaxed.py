"""Relaxed gates: random gates that a temperature takes from soft to hard, with a gradient through the noise."""

import math

import torch
from torch import Tensor

from penstock.core import ConfigError, listed
from penstock.gates.estimators import logistic, pass_gradient, uniform
from penstock.gates.select import top_k


def _check_temperature(who: str, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ConfigError(f"{who}: temperature must be a number above 0, got {temperature!r}")


@listed("gumbel-sigmoid", kind="estimator", paper="maddison2017concrete", at="appendix on the binary special case")
def gumbel_sigmoid(
    logits: Tensor, temperature: float = 1.0, *, hard: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw relaxed binary gates.

    $$ g = \sigma\!\left(\frac{a + z}{\tau}\right), \qquad z \sim \operatorname{Logistic}(0, 1) $$

    Args:
        logits: scores; a gate is above one half with probability `sigmoid(logits)` at every temperature.
        temperature: above 0; towards 0 the gates become hard.
        hard: round the gates to 0 and 1 and pass the gradient of the relaxed ones.
        generator: where the noise is drawn from.
    """
    _check_temperature("gumbel_sigmoid", temperature)
    soft = torch.sigmoid((logits + logistic(logits, generator)) / temperature)
    return pass_gradient((soft > 0.5).to(soft.dtype), soft) if hard else soft


@listed(
    "gumbel-softmax",
    kind="estimator",
    paper="jang2017categorical",
    at="sections on the Gumbel-Softmax distribution and its straight-through estimator",
)
def gumbel_softmax(
    logits: Tensor, temperature: float = 1.0, *, hard: bool = False, dim: int = -1, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw a relaxed choice of one among several.

    $$ g_i = \frac{\exp((a_i + n_i) / \tau)}{\sum_j \exp((a_j + n_j) / \tau)}, \qquad n_i \sim \operatorname{Gumbel}(0, 1) $$

    Unlike `torch.nn.functional.gumbel_softmax`, the hard choice is 0 and 1 to the last bit and takes a generator.

    Args:
        logits: scores; the largest share falls on `i` with probability `softmax(logits)[i]` at every temperature.
        temperature: above 0; towards 0 the choice becomes hard.
        hard: choose one and pass the gradient of the relaxed choice.
        dim: the axis of the candidates.
        generator: where the noise is drawn from.
    """
    _check_temperature("gumbel_softmax", temperature)
    noise = -torch.log(-torch.log(uniform(logits, generator)))
    soft = torch.softmax((logits + noise.to(logits.dtype)) / temperature, dim)
    return pass_gradient(top_k(soft.detach(), 1, dim), soft) if hard else soft
