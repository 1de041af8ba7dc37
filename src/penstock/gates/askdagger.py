"""A threshold on uncertainty that tracks a rate: when a novice asks its teacher, what it keeps, and what it replays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from penstock.core import ConfigError, DataError, listed
from penstock.core.errors import unknown

SUCCESS, UNKNOWN, FAILURE = 1, 0, -1
Mode = Literal["sensitivity", "specificity", "success"]
Plan = TypeVar("Plan")
Goal = TypeVar("Goal")


def _remove_drift(u: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Take the linear trend of the uncertainty over model updates out, and set the level to that of the last update."""
    away = k - k.mean()
    spread = (away**2).sum()
    slope = (away * u).sum() / spread if spread else 0.0
    return u + slope * (k[-1] - k)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def _failure_probability(u: np.ndarray, failed: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Fit failure to uncertainty by logistic regression (Newton's method) and return the probability `at` others.

    The ridge, negligible otherwise, keeps the slope finite where uncertainty separates failures from successes.
    """
    mean, scale = u.mean(), u.std() or 1.0
    rows = np.stack([np.ones_like(u), (u - mean) / scale], 1)
    beta, ridge = np.zeros(2), 1e-3 * np.eye(2)
    for _ in range(25):
        p = _sigmoid(rows @ beta)
        curvature = (rows * (p * (1 - p))[:, None]).T @ rows + ridge
        step = np.linalg.solve(curvature, rows.T @ (failed - p) - ridge @ beta)
        beta = beta + step
        if np.abs(step).max() < 1e-8:
            break
    return _sigmoid(beta[0] + beta[1] * (at - mean) / scale)


def _level(u: np.ndarray, failed: np.ndarray, target: float, random_rate: float, mode: Mode) -> float:
    """Return the threshold at which fully labeled records meet the target, interpolated between records.

    Of thresholds that do equally well it is the lowest, which asks most (for `specificity` the highest).
    """
    wrong, right = np.sort(u[failed]), np.sort(u[~failed])
    if mode == "specificity":
        needed = target / (1 - random_rate) if random_rate < 1 else np.inf
        return float(np.interp(needed, np.arange(len(right)) / len(right), right)) if needed < 1 else np.inf
    needed = (target - random_rate) / (1 - random_rate) if random_rate < 1 else 0.0
    among = len(wrong) if mode == "sensitivity" else len(u)
    if needed <= 1 - len(wrong) / among:
        return np.inf
    levels = np.unique(u)[::-1]
    return float(np.interp(needed, 1 - np.searchsorted(wrong, levels) / among, levels))


def s_aware_threshold(
    uncertainty: Sequence[float],
    labels: Sequence[int],
    updates: Sequence[int],
    target: float = 0.9,
    *,
    mode: Mode = "sensitivity",
    random_rate: float = 0.0,
    minimum: int = 15,
    repetitions: int = 10,
    rng: np.random.Generator,
) -> float:
    """Return the uncertainty from which to ask, so that sensitivity, specificity or success meets a target.

    The records of the latest model updates are used, as few as hold enough labels; where there are not enough, the least
    uncertainty is returned, so that everything is asked. Drift over the updates is taken out. Labels that are not known,
    since nothing was asked, are drawn `repetitions` times from a logistic regression on those that are, and the median
    threshold is returned. It is infinite where random questions alone meet the target, or no threshold can.

    Args:
        uncertainty: of each plan so far, the last one being the current one.
        labels: `SUCCESS`, `FAILURE`, or `UNKNOWN` where the teacher was not asked.
        updates: how often the model had been updated, never falling.
        target: of the rate.
        mode: the rate: share of failures that are asked about, share of successes that are not, or share of steps that go
            right with the teacher's help.
        random_rate: probability of asking whatever the uncertainty.
        minimum: how many failures (successes, for `specificity`) to have at least, beside one label of the other kind.
        repetitions: how often the unknown labels are drawn.
        rng: where they are drawn from.
    """
    u, r, k = np.asarray(uncertainty, float), np.asarray(labels, int), np.asarray(updates, int)
    wanted = SUCCESS if mode == "specificity" else FAILURE
    for start in np.unique(k)[::-1]:
        recent = k >= start
        if (r[recent] == wanted).sum() >= minimum and (r[recent] == -wanted).any():
            break
    else:
        return float(u.min())
    u, r, k = u[recent], r[recent], k[recent]
    u, known = _remove_drift(u, k), r != UNKNOWN
    failed = r == FAILURE
    chance = _failure_probability(u[known], failed[known], u[~known])
    levels = []
    for _ in range(repetitions):
        failed[~known] = rng.random(len(chance)) < chance
        levels.append(_level(u, failed, target, random_rate, mode))
    return float(np.median(levels))


@listed(
    "askdagger",
    kind="policy",
    paper="askdagger2025",
    at="algorithm 1 for the loop, 2 for the threshold, 3 and 4 for demonstrations",
)
@dataclass
class SAwareGate:
    r"""Ask the teacher when a plan is more uncertain than a threshold that tracks a rate, and now and then at random.

    $$ \text{ask} = \mathbb 1[u \ge \gamma] \lor \mathbb 1[\epsilon < p_\text{rand}], \qquad
       \gamma : \; s(\gamma) + p_\text{rand} (1 - s(\gamma)) = s_\text{des} $$

    `s` is the sensitivity, the specificity (then $(1 - p_\text{rand}) s(\gamma) = s_\text{des}$) or the success, estimated
    anew at every step by `s_aware_threshold`.

        gate = SAwareGate(target=0.9)
        for ...:
            if gate.ask(uncertainty):
                gate.tell(plan_is_right)
            gate.updated()  # whenever the model was trained

    Args:
        target: of the rate, between 0 and 1.
        mode: which rate: see `s_aware_threshold`.
        random_rate: probability of asking whatever the uncertainty.
        minimum: labels to have before the threshold is trusted; everything is asked until then.
        repetitions: how often unknown labels are drawn.
        seed: of the random questions and the draws.

    Raises:
        ConfigError: if an argument is out of range.
    """

    target: float = 0.9
    mode: Mode = "sensitivity"
    random_rate: float = 0.2
    minimum: int = 15
    repetitions: int = 10
    seed: int = 0
    uncertainty: list[float] = field(default_factory=list, init=False)
    labels: list[int] = field(default_factory=list, init=False)
    updates: list[int] = field(default_factory=list, init=False)
    threshold: float = field(default=-np.inf, init=False)

    def __post_init__(self) -> None:
        for name in ("target", "random_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"askdagger: {name} must be at least 0 and at most 1, got {getattr(self, name)!r}")
        for name in ("minimum", "repetitions"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"askdagger: {name} must be at least 1, got {getattr(self, name)!r}")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"askdagger: {unknown('mode', self.mode, get_args(Mode))}")
        self._rng = np.random.default_rng(self.seed)
        self._update = 0

    def ask(self, uncertainty: float) -> bool:
        """Record a plan's uncertainty and tell whether to ask the teacher about it.

        Raises:
            DataError: if the uncertainty is not finite.
        """
        if not np.isfinite(uncertainty):
            raise DataError(f"askdagger: uncertainty must be finite, got {uncertainty!r} at step {len(self.labels)}")
        self.uncertainty.append(float(uncertainty))
        self.labels.append(UNKNOWN)
        self.updates.append(self._update)
        self.threshold = s_aware_threshold(
            self.uncertainty,
            self.labels,
            self.updates,
            self.target,
            mode=self.mode,
            random_rate=self.random_rate,
            minimum=self.minimum,
            repetitions=self.repetitions,
            rng=self._rng,
        )
        return self.uncertainty[-1] >= self.threshold or self._rng.random() < self.random_rate

    def tell(self, right: bool) -> None:
        """Record the teacher's answer about the last plan."""
        if not self.labels:
            raise DataError("askdagger: there is no plan to tell about; call ask first")
        self.labels[-1] = SUCCESS if right else FAILURE

    def updated(self) -> None:
        """Record that the model was updated."""
        self._update += 1


class Demonstration(NamedTuple, Generic[Plan, Goal]):
    """A plan to learn for a goal, and where it came from: `validation`, `relabeling` or `annotation`."""

    plan: Plan
    goal: Goal
    source: Literal["validation", "relabeling", "annotation"]


def collect(
    plan: Plan, goal: Goal, *, right: bool, reaches: Goal | None = None, annotate: Callable[[], Plan] | None = None
) -> list[Demonstration[Plan, Goal]]:
    """Turn the novice's own plan into demonstrations where that is possible (foresight interactive experience replay).

    A plan the teacher approves of is one. A wrong plan that reaches another goal is one for that goal. The teacher shows
    what to do only if the plan is wrong.

    Args:
        plan: of the novice.
        goal: it was made for.
        right: whether the teacher approves.
        reaches: the goal that a wrong plan reaches instead, if there is one.
        annotate: returns the teacher's plan; None where the question was a random one and the teacher is not to be troubled.
    """
    if right:
        return [Demonstration(plan, goal, "validation")]
    kept = [] if reaches is None else [Demonstration(plan, reaches, "relabeling")]
    return kept if annotate is None else [*kept, Demonstration(annotate(), goal, "annotation")]


def replay_priorities(
    uncertainty: Sequence[float], labels: Sequence[int], updates: Sequence[int], *, base: float = 10.0, mix: float = 0.5
) -> np.ndarray:
    r"""Return what each demonstration weighs in replay (prioritized interactive experience replay).

    $$ c = \lambda \frac{u}{\max u} + (1 - \lambda) \frac{\max k - k}{\max k}, \qquad
       p = 1 - r \frac{b^{1 - c} - 1}{b - 1} $$

    Confident, recent failures weigh 2, confident, recent successes 0; with age and uncertainty both tend to 1. What has no
    label, or no uncertainty (NaN), as a relabeled plan has, weighs 1.

    Args:
        uncertainty: of the plans.
        labels: `SUCCESS`, `FAILURE` or `UNKNOWN`.
        updates: how often the model had been updated.
        base: how fast the weights tend to 1, above 1.
        mix: share of the uncertainty, against the age ($\lambda$).

    Raises:
        DataError: if an uncertainty is below 0.
    """
    u, r, k = np.asarray(uncertainty, float), np.asarray(labels, float), np.asarray(updates, float)
    if (u < 0).any():
        raise DataError(f"replay_priorities: uncertainty must be at least 0, got {u[u < 0][0]:g} at {int((u < 0).argmax())}")
    u = u / (np.nanmax(u, initial=0.0) or 1.0)
    k = k / (k.max(initial=0.0) or 1.0)
    c = mix * u + (1 - mix) * (k.max(initial=0.0) - k)
    return np.nan_to_num(1 - r * (base ** (1 - c) - 1) / (base - 1), nan=1.0)


def replay_sampling(
    priorities: np.ndarray, *, exponent: float = 1.5, compensation: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return how likely each demonstration is drawn, and the weight, at most 1, that makes up for it in the loss.

    Args:
        priorities: from `replay_priorities`.
        exponent: how much they count.
        compensation: 1 makes up for it wholly, 0 not at all.

    Raises:
        DataError: if a priority is below 0, or none is above.
    """
    given = np.asarray(priorities, float)
    if not ((given >= 0).all() and (given > 0).any()):
        raise DataError(
            f"replay_sampling: priorities must be at least 0 and one above 0, "
            f"the least of {len(given)} is {given.min(initial=0):g}"
        )
    powers = given**exponent
    probabilities = powers / powers.sum()
    drawn = probabilities > 0
    weights = np.zeros_like(probabilities)
    weights[drawn] = (1 / (len(powers) * probabilities[drawn])) ** compensation
    return probabilities, weights / weights.max()
