import math

import numpy as np
import pytest

from penstock.core import ConfigError, DataError
from penstock.gates import SAwareGate, collect, replay_priorities, replay_sampling, s_aware_threshold
from penstock.gates.askdagger import FAILURE, SUCCESS, UNKNOWN


def known(n=400, seed=0):
    """Return records that are all labeled: failures are more uncertain."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < 0.4, FAILURE, SUCCESS)
    return rng.normal(np.where(labels == FAILURE, 0.7, 0.4), 0.15), labels


def level(u, r, target, *, k=None, seed=0, **options):
    k = np.zeros(len(u), int) if k is None else k
    return s_aware_threshold(u, r, k, target, rng=np.random.default_rng(seed), **options)


def rates(u, r, gamma, random_rate=0.0):
    """Return sensitivity, specificity and success of a threshold, by counting."""
    asked = np.where(u >= gamma, 1.0, random_rate)
    wrong = r == FAILURE
    return {
        "sensitivity": asked[wrong].mean(),
        "specificity": (1 - asked)[~wrong].mean(),
        "success": 1 - (1 - asked)[wrong].sum() / len(u),
    }


@pytest.mark.parametrize("random_rate", [0.0, 0.2])
@pytest.mark.parametrize(
    ("mode", "target"), [("sensitivity", 0.9), ("sensitivity", 0.5), ("specificity", 0.7), ("success", 0.9)]
)
def test_the_threshold_meets_its_target_on_known_labels(mode, target, random_rate):
    u, r = known()
    gamma = level(u, r, target, mode=mode, random_rate=random_rate)
    assert rates(u, r, gamma, random_rate)[mode] == pytest.approx(target, abs=0.01)


def test_plain_records_give_the_quantile_of_the_failures():
    u = np.array([0.1, 0.9, 0.2, 0.5, 0.7, 0.3])
    r = np.array([1, -1, 1, -1, -1, -1])
    gammas = [level(u, r, s, minimum=1) for s in (0.25, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(gammas, [0.9, 0.7, 0.5, 0.1])
    assert level(u, r, 0.625, minimum=1) == pytest.approx(0.6)
    assert level(u, r, 0.875, minimum=1) == pytest.approx(0.4)


def test_full_sensitivity_asks_about_everything():
    u, r = known()
    assert level(u, r, 1.0) == u.min()


def test_targets_that_random_questions_meet_need_no_threshold():
    u, r = known()
    assert level(u, r, 0.15, random_rate=0.2) == math.inf
    assert level(u, r, 0.5, mode="success") == math.inf
    assert level(u, r, 0.9, mode="specificity", random_rate=0.2) == math.inf
    assert level(u, r, 0.9, random_rate=1.0) == math.inf
    assert level(u, r, 0.0, mode="specificity") == u[r == SUCCESS].min()


def test_too_few_labels_ask_about_everything():
    u, r = known(30)
    r[:] = SUCCESS
    assert level(u, r, 0.9) == u.min()
    r[:14] = FAILURE
    assert level(u, r, 0.9) == u.min()
    r[14] = FAILURE
    assert level(u, r, 0.9) > u.min()
    assert level(u, np.full(30, FAILURE), 0.9) == u.min()


def test_old_records_are_left_out_once_the_new_ones_suffice():
    u_old, r_old = known(seed=1)
    u_new, r_new = known(seed=2)
    u, r, k = np.concatenate([u_old + 5, u_new]), np.concatenate([r_old, r_new]), np.repeat([3, 8], 400)
    assert level(u, r, 0.9, k=k) == level(u_new, r_new, 0.9)


def test_drift_is_taken_out():
    u, r = known(600)
    k = np.repeat(np.arange(60), 10)
    r[k >= 58] = SUCCESS
    drifting = u - 0.02 * k
    gamma = level(drifting, r, 0.9, k=k, minimum=200)
    still = level(u, r, 0.9, k=k, minimum=200)
    assert gamma == pytest.approx(still - 0.02 * 59, abs=1e-9)


def test_labels_nobody_gave_are_drawn_from_what_uncertainty_says():
    u, r = known(4000)
    seen = np.where(u > 0.5, r, UNKNOWN)
    seen[::5] = r[::5]
    gamma = level(u, seen, 0.9)
    told = rates(u, r, gamma)["sensitivity"]
    ignored = rates(u, r, level(u[seen != 0], seen[seen != 0], 0.9))["sensitivity"]
    assert told == pytest.approx(0.9, abs=0.02)
    assert ignored < 0.88


def test_uncertainty_that_separates_is_no_trouble():
    u = np.concatenate([np.linspace(0, 0.4, 40), np.linspace(0.6, 1, 40), np.linspace(0, 1, 20)])
    r = np.repeat([SUCCESS, FAILURE, UNKNOWN], [40, 40, 20])
    gamma = level(u, r, 0.98)
    assert 0.5 < gamma < 0.65
    assert np.isfinite(level(np.full(40, 0.5), np.tile([SUCCESS, FAILURE], 20), 0.9))


def test_the_gate_records_and_asks():
    gate = SAwareGate(random_rate=0.0, minimum=2, target=0.9)
    for u, right in ((0.1, True), (0.2, True), (0.8, False), (0.9, False)):
        assert gate.ask(u)
        gate.tell(right)
    assert not gate.ask(0.3)
    assert gate.threshold == pytest.approx(0.82)
    assert gate.ask(0.85)
    gate.updated()
    gate.ask(0.5)
    assert gate.labels == [1, 1, -1, -1, 0, 0, 0]
    assert gate.updates == [0, 0, 0, 0, 0, 0, 1]


def test_random_questions_come_at_their_rate_and_repeat():
    def asked(seed):
        gate = SAwareGate(random_rate=0.3, minimum=1, target=0.3, seed=seed)
        gate.ask(0.0)
        gate.tell(True)
        gate.ask(1.0)
        gate.tell(False)
        return [gate.ask(0.0) for _ in range(200)]

    once = asked(0)
    assert np.mean(once) == pytest.approx(0.3, abs=0.1)
    assert once == asked(0) != asked(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 1.2}, "target must be at least 0 and at most 1, got 1.2"),
        ({"random_rate": -0.1}, "random_rate must be at least 0 and at most 1, got -0.1"),
        ({"minimum": 0}, "minimum must be at least 1, got 0"),
        ({"mode": "sensitivty"}, "unknown mode 'sensitivty'; did you mean 'sensitivity'"),
    ],
)
def test_the_gate_refuses(arguments, message):
    with pytest.raises(ConfigError, match=f"askdagger: {message}"):
        SAwareGate(**arguments)


def test_bad_uncertainty_is_named():
    gate = SAwareGate()
    with pytest.raises(DataError, match="there is no plan to tell about"):
        gate.tell(True)
    with pytest.raises(DataError, match="uncertainty must be finite, got nan at step 0"):
        gate.ask(math.nan)


def test_plans_become_demonstrations():
    assert collect("a", "g", right=True, reaches="h", annotate=lambda: "b") == [("a", "g", "validation")]
    assert collect("a", "g", right=False, annotate=lambda: "b") == [("b", "g", "annotation")]
    assert collect("a", "g", right=False, reaches="h") == [("a", "h", "relabeling")]
    both = collect("a", "g", right=False, reaches="h", annotate=lambda: "b")
    assert both == [("a", "h", "relabeling"), ("b", "g", "annotation")]


def test_priorities_at_their_limits():
    u = [0.0, 0.0, 1.0, 0.0, math.nan, 1.0]
    r = [FAILURE, SUCCESS, FAILURE, UNKNOWN, UNKNOWN, SUCCESS]
    k = [4, 4, 0, 4, 4, 0]
    np.testing.assert_allclose(replay_priorities(u, r, k), [2, 0, 1, 1, 1, 1], atol=1e-12)


def test_priorities_are_the_papers_formula():
    u, r, k = np.random.default_rng(0).random(20), np.tile([-1, 1], 10), np.arange(20)
    for i, p in enumerate(replay_priorities(u, r, k, base=7.0, mix=0.3)):
        c = 0.3 * u[i] / max(u) + 0.7 * (19 - k[i]) / 19
        assert p == pytest.approx(1 - r[i] * (7 ** (1 - c) - 1) / 6)
    assert replay_priorities([0.0, 0.0], [1, -1], [0, 0]).tolist() == [0, 2]
    assert replay_priorities([], [], []).tolist() == []


def test_sampling_and_its_weights_make_up_for_each_other():
    priorities = np.array([2.0, 1.0, 0.5, 0.0])
    p, w = replay_sampling(priorities)
    np.testing.assert_allclose(p, priorities**1.5 / (priorities**1.5).sum())
    assert w.max() == 1
    assert w[3] == 0
    np.testing.assert_allclose((p * w)[:3], (p * w)[0])
    np.testing.assert_allclose(replay_sampling(priorities, compensation=0.0)[1], [1, 1, 1, 0])
    for bad in (np.zeros(2), np.array([1.0, -0.5])):
        with pytest.raises(DataError, match=f"at least 0 and one above 0, the least of 2 is {bad.min():g}"):
            replay_sampling(bad)
    with pytest.raises(DataError, match="uncertainty must be at least 0, got -1 at 1"):
        replay_priorities([0.5, -1.0], [1, -1], [0, 1])
