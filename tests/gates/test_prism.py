import math

import pytest
import torch

from penstock.core import ConfigError, DataError
from penstock.gates import CostGate, calibration_error, fit_temperature


def events(n=20_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("false_alarm", "miss"), [(1, 4), (1, 1), (1.2, 1)])
def test_the_threshold_is_where_both_costs_are_equal(false_alarm, miss):
    gate = CostGate(false_alarm, miss)
    need = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    at = gate.threshold(need)
    torch.testing.assert_close(gate.cost(torch.ones_like(at), need, at), gate.cost(torch.zeros_like(at), need, at))


def test_the_threshold_moves_with_costs_and_need():
    need = torch.linspace(0, 1, 11, dtype=torch.float64)
    base = CostGate(1, 2).threshold(need)
    assert (base.diff() < 0).all()
    assert (CostGate(1.5, 2).threshold(need) >= base).all()
    assert (CostGate(1, 3).threshold(need) <= base).all()
    assert base[0] == 1
    assert base[-1].item() == pytest.approx(1 / 3)


def test_no_other_threshold_costs_less():
    gate = CostGate(1, 3)
    need, accept = events()
    least = gate.cost(gate.decide(need, accept), need, accept).mean()
    for fixed in torch.linspace(0, 1.01, 60):
        assert gate.cost((accept >= fixed).double(), need, accept).mean() > least
    for factor in (0.8, 0.9, 1.1, 1.25):
        moved = (accept >= factor * gate.threshold(need)).double()
        assert gate.cost(moved, need, accept).mean() > least


def test_certain_need_gives_the_classical_threshold():
    gate = CostGate(2, 3)
    _, accept = events()
    need = torch.ones_like(accept)
    costs = {fixed / 100: gate.cost((accept >= fixed / 100).double(), need, accept).mean() for fixed in range(101)}
    assert min(costs, key=costs.get) == pytest.approx(2 / (2 + 3), abs=0.02)


def test_realized_cost_is_least_at_the_derived_threshold():
    gate = CostGate(1, 4)
    need, accept = events(200_000, seed=1)
    needed, accepted = torch.rand_like(need) < need, torch.rand_like(accept) < accept

    def realized(act):
        false_alarm = (act * ~accepted).mean() * gate.false_alarm
        return false_alarm + ((1 - act) * (needed & accepted)).mean() * gate.miss

    least = realized(gate.decide(need, accept))
    assert all(realized((accept >= fixed).double()) > least for fixed in torch.linspace(0, 1, 21))


def test_the_slow_pass_is_asked_near_the_threshold_only():
    need, accept = events()
    shares = []
    for margin in (0, 1e-6, 0.05, 0.1, 0.3, 1.0, 2.0):
        gate = CostGate(1, 2, margin)
        asked = []

        def slow(indices, asked=asked):
            asked.append(indices)
            return need[indices], accept[indices]

        verdicts = gate(need, accept, slow)
        assert torch.equal(verdicts.act, gate.decide(need, accept))
        assert len(asked) <= 1
        indices = asked[0] if asked else torch.zeros(0, dtype=torch.long)
        assert torch.equal(verdicts.slow.nonzero().squeeze(-1), indices)
        distance = (accept - gate.threshold(need)).abs()
        assert torch.equal(distance <= margin, verdicts.slow > 0)
        shares.append(verdicts.slow.mean().item())
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[1] < 1e-3
    assert shares[-2:] == [1, 1]


def test_the_slow_pass_decides_what_it_was_asked():
    gate = CostGate(1, 1, margin=0.1)
    need, accept = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.45, 0.55, 0.9])
    verdicts = gate(need, accept, lambda _: (torch.tensor([1.0, 0.5]), torch.tensor([0.6, 0.6])))
    assert verdicts.slow.tolist() == [1, 1, 0]
    assert verdicts.act.tolist() == [1, 0, 1]
    assert need.tolist() == [1, 1, 1]
    assert gate(need, accept).slow.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("argument", "bad"), [("false_alarm", 0), ("miss", -1), ("miss", math.inf), ("margin", -0.1), ("margin", math.nan)]
)
def test_the_gate_refuses(argument, bad):
    with pytest.raises(ConfigError, match=f"prism: {argument} must be"):
        CostGate(**{"false_alarm": 1, "miss": 1, argument: bad})


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_is_found(temperature):
    logits = 2 * torch.randn(50_000, dtype=torch.float64)
    labels = (torch.rand(50_000) < torch.sigmoid(logits)).double()
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    raw, mended = (calibration_error(torch.sigmoid(logits * t), labels) for t in (temperature, temperature / found))
    assert mended < 0.012
    assert raw > 0.05 or temperature == 1


def test_the_temperature_is_the_likeliest():
    logits = torch.randn(400, dtype=torch.float64)
    labels = (torch.rand(400) < torch.sigmoid(logits / 2)).double()
    found = fit_temperature(logits, labels)

    def loss(t):
        return torch.nn.functional.binary_cross_entropy_with_logits(logits / t, labels)

    assert loss(found) < min(loss(0.99 * found), loss(1.01 * found))


def test_separated_labels_end_at_the_bound():
    logits = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    assert fit_temperature(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(math.exp(-8), rel=1e-3)
    assert fit_temperature(logits, torch.tensor([1, 1, 0, 0])) == pytest.approx(math.exp(8), rel=1e-3)


def test_uncalibrated_probabilities_cost_more():
    gate = CostGate(1, 3)
    logits_need, logits_accept = 2 * torch.randn(40_000).double(), 2 * torch.randn(40_000).double()
    need, accept = torch.sigmoid(logits_need), torch.sigmoid(logits_accept)
    labels = (torch.rand(40_000) < accept).double()
    loud = 4 * logits_accept
    temperature = fit_temperature(loud[:20_000], labels[:20_000])
    costs = [
        gate.cost(gate.decide(need, p), need, accept)[20_000:].mean()
        for p in (torch.sigmoid(loud), torch.sigmoid(loud / temperature), accept)
    ]
    assert costs[0] > 1.02 * costs[1]
    assert costs[1] == pytest.approx(costs[2].item(), rel=0.001)


def test_calibration_error_by_hand():
    p = torch.tensor([0.1, 0.1, 0.9, 0.9])
    assert calibration_error(p, torch.tensor([0, 0, 1, 0]), bins=10) == pytest.approx((2 * 0.1 + 2 * 0.4) / 4)
    assert calibration_error(torch.ones(3), torch.ones(3)) == 0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"labels must have the shape of the scores.*got \(3,\) and \(2,\)"),
        (torch.zeros(0), torch.zeros(0), ".*with one event at least"),
        (torch.tensor([0.0, math.nan]), torch.zeros(2), "scores must be finite, got one that is not at 1"),
        (torch.zeros(2), torch.tensor([0.0, 0.5]), "labels must be 0 or 1, got 0.5"),
    ],
)
def test_bad_data_is_named(scores, labels, message):
    for function in (fit_temperature, calibration_error):
        with pytest.raises(DataError, match=f"{function.__name__}: {message}"):
            function(scores, labels)
