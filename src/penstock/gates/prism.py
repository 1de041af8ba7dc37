"""A gate whose threshold comes from what its two kinds of error cost, with a slow second look near the threshold only."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.core import ConfigError, listed

Probabilities = tuple[Tensor, Tensor]


class Verdicts(NamedTuple):
    """What was decided: `act` is 1 where to act, `slow` is 1 where the slow pass was asked, both of the events' shape."""

    act: Tensor
    slow: Tensor


@listed("prism", kind="policy", paper="prism2026", at="definition of the cost-sensitive gate; appendix, proposition 1")
class CostGate:
    r"""Act only if acceptance is likelier than a threshold that follows from the costs, and think twice only near it.

    $$ \tau(p_\text{need}) = \frac{C_\text{FA}}{C_\text{FA} + p_\text{need} C_\text{FN}}, \qquad
       \text{act iff } p_\text{accept} \ge \tau(p_\text{need}), \qquad
       \text{slow iff } |p_\text{accept} - \tau(p_\text{need})| \le \delta $$

    To act costs $(1 - p_\text{accept}) C_\text{FA}$, to stay silent $p_\text{need}\, p_\text{accept}\, C_\text{FN}$; the
    threshold is where they are equal. With $p_\text{need} = 1$ it is the classical $C_\text{FA} / (C_\text{FA} +
    C_\text{FN})$. All this holds for calibrated probabilities only: see `fit_temperature`.

    Args:
        false_alarm: cost of acting where it is not accepted, above 0.
        miss: cost of silence where help was needed and would have been accepted, above 0.
        margin: how near to the threshold the slow pass is asked ($\delta$).

    Raises:
        ConfigError: if a cost is not above 0 or the margin is below 0.
    """

    def __init__(self, false_alarm: float, miss: float, margin: float = 0.1) -> None:
        for name, value in (("false_alarm", false_alarm), ("miss", miss)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"prism: {name} must be a number above 0, got {value!r}")
        if not margin >= 0:
            raise ConfigError(f"prism: margin must be at least 0, got {margin!r}")
        self.false_alarm, self.miss, self.margin = false_alarm, miss, margin

    def threshold(self, need: Tensor) -> Tensor:
        """Return the probability of acceptance from which it pays to act, given the probability of need."""
        return self.false_alarm / (self.false_alarm + need * self.miss)

    def decide(self, need: Tensor, accept: Tensor) -> Tensor:
        """Return 1 where to act, else 0."""
        return (accept >= self.threshold(need)).to(accept.dtype)

    def near(self, need: Tensor, accept: Tensor) -> Tensor:
        """Return 1 where the decision is close enough to look twice, else 0."""
        return ((accept - self.threshold(need)).abs() <= self.margin).to(accept.dtype)

    def cost(self, act: Tensor, need: Tensor, accept: Tensor) -> Tensor:
        """Return the expected cost of each decision under the given probabilities."""
        return act * (1 - accept) * self.false_alarm + (1 - act) * need * accept * self.miss

    def __call__(self, need: Tensor, accept: Tensor, slow: Callable[[Tensor], Probabilities] | None = None) -> Verdicts:
        """Decide on events from the probabilities of the fast pass: `(events,)` each.

        Args:
            need: probability that help is needed.
            accept: probability that it is accepted.
            slow: takes the indices of the events near the threshold and returns better probabilities of need and acceptance
                for these; called once, or not at all if there are none. The threshold is taken anew from them.
        """
        asked = torch.zeros_like(accept)
        if slow is not None:
            asked = self.near(need, accept)
            events = asked.nonzero().squeeze(-1)
            if len(events):
                slow_need, slow_accept = slow(events)
                need, accept = need.index_copy(0, events, slow_need), accept.index_copy(0, events, slow_accept)
        return Verdicts(self.decide(need, accept), asked)
