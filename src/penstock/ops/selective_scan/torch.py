"""The recurrence of all states at once, in the few large steps of the linear recurrence."""

from torch import Tensor

from penstock.ops.linear_recurrence.torch import linear_recurrence


def selective_scan(x: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state."""
    decay = (delta.unsqueeze(-1) * a).exp()
    states, last = linear_recurrence(decay, (delta * x).unsqueeze(-1) * b.unsqueeze(2), state)
    return (states @ c.unsqueeze(-1)).squeeze(-1), last
