"""Gradients for hard gates: what the forward pass decides, and what the backward pass is told.

Hard values are exact: a closed gate is 0 and an open one 1 to the last bit, so that what it closes can be left out. Scores
must be finite where the identity is passed back.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import ConfigError, listed


def pass_gradient(value: Tensor, carrier: Tensor) -> Tensor:
    """Return `value` to the last bit, with the gradient of `carrier`."""
    return value.detach() + (carrier - carrier.detach())


def uniform(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return uniform noise in `[0, 1)` of a tensor's shape, drawn in at least single precision."""
    precise = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(like.shape, generator=generator, dtype=precise, device=like.device)


def logistic(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return standard logistic noise of a tensor's shape and type."""
    return torch.logit(uniform(like, generator), eps=1e-7).to(like.dtype)


def bernoulli(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw hard gates that are open with probability `sigmoid(logits)`; they have no gradient."""
    return (uniform(logits, generator) < torch.sigmoid(logits.detach())).to(logits.dtype)


@listed("straight-through", kind="estimator", paper="bengio2013estimating", at="section on the straight-through estimator")
def straight_through(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw hard gates and pass their gradient to the scores as it is.

    $$ h = \mathbb 1[u < \sigma(a)], \quad u \sim \mathcal U(0, 1), \qquad
       \frac{\partial L}{\partial a} := \frac{\partial L}{\partial h} $$

    Biased: for a loss that is linear in `h` it lacks the factor $\sigma'(a)$ of the true gradient.
    """
    return pass_gradient(bernoulli(logits, generator), logits)


@listed(
    "straight-through-sigmoid",
    kind="estimator",
    paper="bengio2013estimating",
    at="section on the straight-through estimator",
)
def straight_through_sigmoid(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw hard gates and pass their gradient through the derivative of the sigmoid.

    $$ h = \mathbb 1[u < \sigma(a)], \qquad \frac{\partial L}{\partial a} := \frac{\partial L}{\partial h} \sigma'(a) $$

    Unbiased where the loss is linear in each gate; the paper found the plain one to train better.
    """
    return pass_gradient(bernoulli(logits, generator), torch.sigmoid(logits))


def sqrt_sigmoid(logits: Tensor) -> Tensor:
    """Return the square root of the sigmoid, whose gradient stays finite where the sigmoid underflows."""
    return torch.exp(0.5 * F.logsigmoid(logits))


@listed(
    "stochastic-times-smooth", kind="estimator", paper="bengio2013estimating", at="section on stochastic times smooth units"
)
def stochastic_times_smooth(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw gates that are a hard, random factor times a smooth one; the gradient goes through the smooth one.

    $$ p = \sigma(a), \quad b \sim \operatorname{Bernoulli}(\sqrt p), \quad h = b \sqrt p, \qquad \operatorname E[h] = p $$

    For a loss that is linear in `h` the expected gradient is one half of the true one.
    """
    root = sqrt_sigmoid(logits)
    return root * (uniform(logits, generator) < root.detach())


@listed("noisy-rectifier", kind="estimator", paper="bengio2013estimating", at="section on noisy rectifiers")
def noisy_rectifier(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Inject noise before a rectifier, so that gates close exactly and yet, now and then, every one gets a gradient.

    $$ h = \max(0, a + z), \quad z \sim \operatorname{Logistic}(0, 1), \qquad
       P(h > 0) = \sigma(a), \quad \operatorname E[h] = \log(1 + e^a) $$
    """
    return F.relu(logits + logistic(logits, generator))


@listed(
    "reinforce",
    kind="estimator",
    paper="bengio2013estimating",
    at="section on the unbiased estimator for stochastic binary neurons",
)
def reinforce(gates: Tensor, logits: Tensor, loss: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    r"""Return what to add to the loss so that the scores of drawn gates get an unbiased gradient.

    $$ \hat g = (h - \sigma(a)) (L - \bar L), \qquad
       \operatorname E[\hat g] = \frac{\partial}{\partial a} \operatorname E[L] $$

    Nothing is passed back through the gates: the loss may be any number, measured and not computed. The value returned,
    $\log P(h) (L - \bar L)$, means nothing by itself.

    Args:
        gates: hard gates that were drawn with `bernoulli(logits)`: `(batch, ..., units)`.
        logits: their scores, which get the gradient.
        loss: the loss of each example, `(batch, ...)`, without the units.
        baseline: what does not depend on these gates; unbiased for any, of least variance from `LeastVarianceBaseline`.

    Returns:
        A term for each example, of the shape of `loss`; reduce it as the loss is reduced.
    """
    log_probability = -F.binary_cross_entropy_with_logits(logits, gates.detach(), reduction="none")
    return (log_probability * (loss.unsqueeze(-1) - baseline).detach()).sum(-1)


class LeastVarianceBaseline(nn.Module):
    r"""The baseline with which `reinforce` has the least variance, for each unit, from two running averages.

    $$ \bar L_i = \frac{\operatorname E[(h_i - \sigma(a_i))^2 L]}{\operatorname E[(h_i - \sigma(a_i))^2]} $$

    It is not the mean loss: what counts are losses where a gate surprised. Bengio et al. (2013), in the section on the
    unbiased estimator.

    Args:
        units: how many gates there are.
        momentum: how much of the running averages stays at each batch.
        device: where the averages live.
        dtype: their type.

    Raises:
        ConfigError: if `momentum` is out of range.
    """

    numerator: Tensor
    denominator: Tensor

    def __init__(self, units: int, momentum: float = 0.9, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ConfigError(f"LeastVarianceBaseline: momentum must be at least 0 and below 1, got {momentum!r}")
        self.momentum = momentum
        self.register_buffer("numerator", torch.zeros(units, device=device, dtype=dtype))
        self.register_buffer("denominator", torch.zeros(units, device=device, dtype=dtype))

    def forward(self, gates: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """Return the baseline `(units,)` known before this batch, and in training take the batch in.

        Args:
            gates: hard gates, `(batch, ..., units)`.
            logits: their scores.
            loss: the loss of each example, `(batch, ...)`.
        """
        before = torch.where(self.denominator > 0, self.numerator / self.denominator, 0.0)
        if self.training:
            with torch.no_grad():
                weight = (gates - torch.sigmoid(logits)).square()
                over = tuple(range(weight.dim() - 1))
                self.numerator.lerp_((weight * loss.unsqueeze(-1)).mean(over), 1 - self.momentum)
                self.denominator.lerp_(weight.mean(over), 1 - self.momentum)
        return before


def heaviside(x: Tensor, surrogate: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
    r"""Return 1 where `x` is at least 0, else 0, with the gradient of a smooth step.

    $$ h = \mathbb 1[x \ge 0], \qquad \frac{\partial L}{\partial x} := \frac{\partial L}{\partial h} s'(x) $$

    Args:
        x: scores, or what a membrane has over its threshold.
        surrogate: the smooth step $s$: `torch.sigmoid`, `arctan_gate`, `hard_sigmoid` (a window), or of `4 * x` to be
            narrower.
    """
    return pass_gradient((x >= 0).to(x.dtype), surrogate(x))


def shaped_step(w: Tensor, shape: Callable[[Tensor], Tensor] = torch.ones_like) -> Tensor:
    r"""Return 1 where `w` is above 0, else 0, with a derivative of any shape.

    $$ h = \mathbb 1[w > 0] + s_M(w)\, g(w), \quad s_M(w) = \frac{M w - \lfloor M w \rfloor}{M}, \qquad
       \frac{d h}{d w} \to g(w) $$

    This is the limit of large $M$, where the sawtooth $s_M$ vanishes and its slope 1 remains: exact 0 and 1 and exactly
    $g(w)$ where a sawtooth in floating point would keep few digits. Kim et al., "Plug-in, Trainable Gate" (2020).

    Args:
        w: scores.
        shape: the derivative $g$; constant 1 makes a straight-through gate.
    """
    return (w > 0).to(w.dtype) + shape(w).detach() * (w - w.detach())
