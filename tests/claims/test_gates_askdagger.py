"""A novice that learns from a teacher while the size of what it senses changes, and when it asks."""

import numpy as np
import pytest

from penstock.gates import SAwareGate, collect, replay_priorities, replay_sampling

CLASSES, DIM, STEPS, TARGET = 4, 6, 400, 0.9
GAINS = (1.0, 2.5, 0.5)


class Novice:
    """A softmax regression and the demonstrations it replays by priority."""

    def __init__(self, rng):
        self.rng, self.weights = rng, np.zeros((DIM + 1, CLASSES))
        self.demonstrations, self.records, self.updates = [], [], 0

    def act(self, x):
        logits = np.append(x, 1) @ self.weights
        p = np.exp(logits - logits.max())
        p /= p.sum()
        return int(p.argmax()), float(-(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(CLASSES))

    def learn(self, x, u, right, demonstrations):
        for demonstration in demonstrations:
            self.demonstrations.append((np.append(x, 1), demonstration.plan))
            self.records.append((u, 1 if right else -1, self.updates))
        p, w = replay_sampling(replay_priorities(*zip(*self.records, strict=True)))
        for _ in range(4):
            drawn = self.rng.choice(len(p), 16, p=p)
            inputs = np.stack([self.demonstrations[i][0] for i in drawn])
            logits = inputs @ self.weights
            error = np.exp(logits - logits.max(1, keepdims=True))
            error /= error.sum(1, keepdims=True)
            error[np.arange(16), [self.demonstrations[i][1] for i in drawn]] -= 1
            self.weights -= 0.3 * inputs.T @ (error * w[drawn, None]) / 16
        self.updates += 1


def imitate(seed, gate):
    """Return for each phase the share of failures that were asked about, and the share of all steps that were."""
    rng = np.random.default_rng(seed)
    centers, novice, phases = 1.6 * rng.normal(size=(CLASSES, DIM)), Novice(rng), []
    for gain in GAINS:
        log = []
        for _ in range(STEPS):
            goal = int(rng.integers(CLASSES))
            x = gain * (centers[goal] + 1.3 * rng.normal(size=DIM))
            plan, u = novice.act(x)
            asked = gate.ask(u)
            log.append((plan != goal, asked))
            if asked:
                gate.tell(plan == goal)
                novice.learn(x, u, plan == goal, collect(plan, goal, right=plan == goal, annotate=lambda goal=goal: goal))
                gate.updated()
        wrong, asked = np.array(log[100:]).T
        phases.append((asked[wrong].mean(), np.mean([a for _, a in log])))
    return np.array(phases)


class FixedGate:
    """A threshold that stays, with random questions as many."""

    def __init__(self, level, seed):
        self.level, self.rng = level, np.random.default_rng(seed)

    def ask(self, u):
        return bool(u >= self.level or self.rng.random() < 0.1)

    def tell(self, right):
        pass

    def updated(self):
        pass


@pytest.mark.slow
@pytest.mark.claim("askdagger")
def test_the_realized_sensitivity_tracks_its_target_where_no_fixed_threshold_does():
    """Two changes of scale make the novice overconfident, then unsure. The tracking threshold keeps near its target in each
    phase (0.92, 0.94 and 0.90 on average over 9 seeds, asking at 68% of the steps). A fixed one as safe in every phase asks
    at 74% or 79%; one that asks as seldom falls to 0.73 in the second phase.
    """
    seeds = (0, 1, 2)
    tracked = np.array([imitate(seed, SAwareGate(TARGET, random_rate=0.1, seed=seed)) for seed in seeds])
    assert np.abs(tracked[..., 0].mean(0) - TARGET).max() < 0.08  # 0.05 to 0.06 in three groups of three seeds
    fixed = {level: np.array([imitate(seed, FixedGate(level, seed)) for seed in seeds]) for level in (0.02, 0.05, 0.1)}
    for level in (0.02, 0.05):
        assert fixed[level][..., 0].mean(0).min() > TARGET - 0.08
        assert fixed[level][..., 1].mean() > tracked[..., 1].mean() + 0.02  # 0.03 to 0.14 more
    assert fixed[0.1][..., 0].mean(0).min() < TARGET - 0.1  # 0.69 to 0.76
