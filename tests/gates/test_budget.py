import math

import pytest
import torch

from penstock.core import ConfigError
from penstock.gates import Budget, rate_penalty, threshold


@pytest.mark.parametrize("target", [0, -0.1, 1.01, math.nan, math.inf, "half", True, None])
def test_a_budget_is_a_share(target):
    with pytest.raises(ConfigError, match="budget: target must be a share above 0 and at most 1, got"):
        Budget(target)


def test_a_budget_says_what_it_is_of():
    assert str(Budget(0.725, "layers")) == "72.5% of layers"
    with pytest.raises(ConfigError, match="budget: unknown unit 'tokns'; did you mean 'tokens'"):
        Budget(0.5, "tokns")
    with pytest.raises(ConfigError, match="budget: fixed must be at least 0, got -1"):
        Budget(0.5, fixed=-1)


def test_the_share_weighs_by_cost():
    openness = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])
    cost = torch.tensor([[3.0], [1.0]])
    assert Budget(0.5).share(openness).item() == pytest.approx(3.5 / 6)
    assert Budget(0.5).share(openness, cost).item() == pytest.approx((3 * 1.5 + 2) / 12)
    assert Budget(0.5, fixed=8).share(openness, cost).item() == pytest.approx((8 + 6.5) / 20)


def test_several_gates_are_one_budget():
    tokens, heads = torch.rand(2, 7), torch.rand(3)
    together = Budget(0.5).share([tokens, heads], [2.0, torch.tensor([1.0, 5.0, 3.0])])
    by_hand = (2 * tokens.sum() + (heads * torch.tensor([1.0, 5.0, 3.0])).sum()) / (28 + 9)
    torch.testing.assert_close(together, by_hand)
    with pytest.raises(ConfigError, match="cost must have an entry for each of 2 gates, got 1"):
        Budget(0.5).share([tokens, heads], [1.0])


def test_flops_need_costs():
    for method in (Budget(0.5, "flops").share, Budget(0.5, "flops").penalty, Budget(0.5, "flops").threshold):
        with pytest.raises(ConfigError, match="a budget of flops needs the cost"):
            method(torch.rand(3))
    assert Budget(0.5, "flops").share(torch.ones(3), 1e9) == 1


def test_the_penalty_trains_gates_to_the_target():
    for target in (0.1, 0.6, 0.95):
        logits = torch.nn.Parameter(torch.randn(4, 50))
        cost = torch.tensor([[1.0], [2.0], [4.0], [1.0]])
        budget, optimizer = Budget(target), torch.optim.Adam([logits], 0.1)
        for _ in range(200):
            optimizer.zero_grad()
            budget.penalty(torch.sigmoid(logits), cost).backward()
            optimizer.step()
        assert budget.share(torch.sigmoid(logits), cost).item() == pytest.approx(target, abs=0.01)


def test_the_penalty_has_the_gradient_of_its_formula():
    assert Budget(0.2).penalty(torch.ones(3)).item() == pytest.approx(0.64)
    openness = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    cost = torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda g: Budget(0.3, fixed=0.5).penalty(g, cost), openness)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_threshold_keeps_the_target_on_held_out_data(target, dtype):
    cost = 1 + 3 * torch.rand(200)
    draw = torch.distributions.Beta(0.5, 1.5).sample
    calibration, held_out = draw((60, 200)).to(dtype), draw((60, 200)).to(dtype)
    for costs in (None, cost):
        budget = Budget(target)
        level = budget.threshold(calibration, costs)
        assert budget.share(threshold(calibration, level).float(), costs).item() == pytest.approx(target, abs=0.01)
        assert budget.share(threshold(held_out, level).float(), costs).item() == pytest.approx(target, abs=0.02)


def test_a_threshold_is_the_nearest_there_is():
    scores = torch.tensor([0.9, 0.9, 0.9, 0.4, 0.2])
    levels = {0.1: math.inf, 0.5: 0.9, 0.6: 0.9, 0.69: 0.9, 0.75: 0.4, 1.0: 0.2}
    for target, level in levels.items():
        assert Budget(target).threshold(scores) == pytest.approx(level)


def test_a_threshold_counts_what_is_spent_anyway():
    scores = torch.rand(2000)
    budget = Budget(0.6, "flops", fixed=500.0)
    level = budget.threshold(scores, 1.0)
    assert threshold(scores, level).sum().item() == 1000
    with pytest.raises(ConfigError, match=r"60.0% of flops cannot be kept, 66.7% is spent in any case"):
        Budget(0.6, "flops", fixed=4000.0).threshold(scores, 1.0)
    with pytest.raises(ConfigError, match="needs scores of calibration data, got none"):
        Budget(0.6).threshold(torch.zeros(0))


@pytest.mark.parametrize(("target", "kept"), [(0.01, 1), (0.1, 3), (0.3, 9), (0.5, 15), (0.95, 28), (1.0, 30)])
def test_selection_is_exact_for_every_row(target, kept):
    scores = torch.rand(8, 30)
    mask = Budget(target).select(scores)
    assert mask.sum(-1).tolist() == [kept] * 8
    assert (scores.where(mask > 0, 2.0).amin(-1) >= scores.where(mask == 0, -1.0).amax(-1)).all()
    assert Budget(target).select(torch.zeros(8, 30)).sum(-1).tolist() == [kept] * 8
    assert torch.equal(Budget(target).select(scores.T, dim=0), mask.T)


def test_selection_is_not_short_by_rounding():
    for n in range(1, 200):
        for k in range(1, n + 1):
            assert Budget(k / n).select(torch.zeros(n)).sum() == k


def test_the_rate_penalty_is_the_divergence():
    p = torch.rand(5, 2, 3, dtype=torch.float64)
    expected = 0.0
    for j in range(3):
        r = p[..., j].mean().item()
        expected += 0.1 * math.log(0.1 / r) + 0.9 * math.log(0.9 / (1 - r))
    assert rate_penalty(p, 0.1).item() == pytest.approx(expected)
    assert rate_penalty(torch.full((4, 3), 0.1), 0.1).item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.gradcheck(lambda p: rate_penalty(p, 0.2), p.requires_grad_())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_rate_penalty_is_finite_at_its_ends(rate):
    for p in (0.0, 1.0):
        logits = torch.full((4, 3), p, requires_grad=True)
        penalty = rate_penalty(logits, rate)
        penalty.backward()
        assert penalty.isfinite()
        assert logits.grad.isfinite().all()


def test_the_rate_penalty_refuses_what_is_no_rate():
    with pytest.raises(ConfigError, match=r"rate_penalty: rate must be at least 0 and at most 1, got 1\.5"):
        rate_penalty(torch.rand(2, 2), 1.5)
