"""What each estimator is on average: by enumeration of all gates where that can be, else from many draws."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from penstock.core import ConfigError
from penstock.gates import (
    LeastVarianceBaseline,
    arctan_gate,
    bernoulli,
    hard_sigmoid,
    heaviside,
    noisy_rectifier,
    pass_gradient,
    reinforce,
    shaped_step,
    stochastic_times_smooth,
    straight_through,
    straight_through_sigmoid,
)
from penstock.gates.estimators import sqrt_sigmoid

UNITS = 4
GATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=UNITS)), dtype=torch.float64)


def scores():
    return torch.randn(UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def chances(logits):
    """Return the probability of each of all possible gates."""
    p = torch.sigmoid(logits)
    return torch.where(GATES > 0, p, 1 - p).prod(-1)


def any_loss():
    """Return a loss for each of all possible gates, without any structure."""
    return torch.randn(len(GATES), dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 3


def true_gradient(loss):
    logits = scores().requires_grad_()
    (grad,) = torch.autograd.grad((chances(logits) * loss).sum(), logits)
    return grad


def estimates(loss, baseline):
    """Return what `reinforce` estimates at each of all possible gates: `(gates, units)`."""
    logits = scores().expand(len(GATES), -1).clone().requires_grad_()
    (grad,) = torch.autograd.grad(reinforce(GATES, logits, loss, baseline).sum(), logits)
    return grad


def best_baseline(loss):
    weight = chances(scores())[:, None] * (GATES - torch.sigmoid(scores())) ** 2
    return (weight * loss[:, None]).sum(0) / weight.sum(0)


def variance(loss, baseline):
    grads, p = estimates(loss, baseline), chances(scores())[:, None]
    return (p * (grads - (p * grads).sum(0)) ** 2).sum(0)


@pytest.mark.parametrize("baseline", [0.0, 3.0, -10.0, torch.arange(UNITS, dtype=torch.float64)])
def test_reinforce_is_right_on_average_whatever_the_baseline(baseline):
    mean = (chances(scores())[:, None] * estimates(any_loss(), baseline)).sum(0)
    torch.testing.assert_close(mean, true_gradient(any_loss()), rtol=1e-12, atol=1e-12)


def test_reinforce_has_the_least_variance_at_the_derived_baseline():
    loss = any_loss()
    best = best_baseline(loss)
    least = variance(loss, best)
    for nearby in (best + 0.01, best - 0.01, (chances(scores()) * loss).sum(), torch.zeros(UNITS)):
        assert (variance(loss, nearby) > least).all()


def test_two_running_averages_find_that_baseline():
    loss, logits = any_loss(), scores()
    running = LeastVarianceBaseline(UNITS, momentum=0.98, dtype=torch.float64)
    places = torch.multinomial(chances(logits), 300 * 500, replacement=True).view(300, 500)
    for place in places:
        found = running(GATES[place], logits, loss[place])
    torch.testing.assert_close(found, best_baseline(loss), atol=0.03, rtol=0)
    assert ((chances(logits) * loss).sum() - best_baseline(loss)).abs().max() > 0.08


def test_the_baseline_is_known_before_the_batch_and_rests_in_evaluation():
    running = LeastVarianceBaseline(2)
    gates, logits, loss = torch.ones(3, 2), torch.zeros(2), torch.full((3,), 5.0)
    assert running(gates, logits, loss).tolist() == [0, 0]
    assert running(gates, logits, loss).tolist() == [5, 5]
    running.eval()(gates, logits, loss + 7)
    assert running(gates, logits, loss).tolist() == [5, 5]


def test_the_baseline_refuses_a_momentum_that_never_moves():
    with pytest.raises(ConfigError, match="momentum must be at least 0 and below 1, got 1"):
        LeastVarianceBaseline(2, momentum=1)


def test_reinforce_asks_nothing_of_the_loss():
    logits = torch.zeros(5, 2, 3, requires_grad=True)
    measured = torch.randn(5, 2, requires_grad=True)
    term = reinforce(bernoulli(logits), logits, measured)
    assert term.shape == (5, 2)
    term.mean().backward()
    assert measured.grad is None
    assert logits.grad.any()


def linear(weights):
    return lambda h: (h * weights).sum()


def multilinear(h):
    return 2 * h[0] * h[1] - h[1] * h[2] * h[3] + 0.5 * h[2] - h[0]


def mean_gradient(estimator, loss, draws=1):
    """Return the gradient that an estimator gives on average over `draws` draws for each unit's scores."""
    logits = scores().requires_grad_()
    total = loss(estimator(logits.expand(draws, -1))) / draws
    return torch.autograd.grad(total, logits)[0]


def enumerated_mean(carrier, loss):
    """Return the exact mean gradient of an estimator that passes each of all gates' gradient through `carrier`."""
    logits = scores().requires_grad_()
    total = sum(p * loss(pass_gradient(h, carrier(logits))) for p, h in zip(chances(scores()), GATES, strict=True))
    return torch.autograd.grad(total, logits)[0]


def test_straight_through_is_biased_by_the_slope_of_the_sigmoid():
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    p = torch.sigmoid(scores())
    truth = true_gradient((GATES * weights).sum(-1))
    torch.testing.assert_close(truth, p * (1 - p) * weights)
    torch.testing.assert_close(mean_gradient(straight_through, linear(weights)), weights)
    torch.testing.assert_close(mean_gradient(straight_through_sigmoid, linear(weights)), truth)


def test_the_sigmoid_variant_is_unbiased_where_the_loss_is_linear_in_each_gate():
    truth = true_gradient(torch.stack([multilinear(h) for h in GATES]))
    torch.testing.assert_close(enumerated_mean(torch.sigmoid, multilinear), truth)
    assert (enumerated_mean(lambda a: a, multilinear) - truth).abs().max() > 0.1


def test_stochastic_times_smooth_halves_the_gradient_of_a_linear_loss():
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    logits = scores().requires_grad_()
    root = torch.sigmoid(scores()).sqrt()
    mean = sum(torch.where(b > 0, root, 1 - root).prod() * (sqrt_sigmoid(logits) * b * weights).sum() for b in GATES)
    (grad,) = torch.autograd.grad(mean, logits)
    torch.testing.assert_close(grad, true_gradient((GATES * weights).sum(-1)) / 2)
    torch.testing.assert_close(mean_gradient(stochastic_times_smooth, linear(weights), 20_000), grad, atol=0.02, rtol=0)


def test_stochastic_times_smooth_has_the_mean_of_the_binary_gate_and_exact_zeros():
    logits = torch.tensor([-3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    h = stochastic_times_smooth(logits.expand(100_000, 4))
    p = torch.sigmoid(logits)
    torch.testing.assert_close(h.mean(0), p, atol=0.006, rtol=0)
    torch.testing.assert_close((h == 0).double().mean(0), 1 - p.sqrt(), atol=0.006, rtol=0)
    torch.testing.assert_close(h.amax(0), p.sqrt())


def test_a_gate_that_is_far_off_has_a_finite_gradient():
    logits = torch.tensor([-500.0, -150.0, 150.0], requires_grad=True)
    sqrt_sigmoid(logits).sum().backward()
    assert logits.grad.isfinite().all()


def test_noisy_rectifier_opens_at_the_sigmoids_rate():
    logits = torch.tensor([-4.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    h = noisy_rectifier(logits.expand(100_000, 4))
    torch.testing.assert_close((h > 0).double().mean(0), torch.sigmoid(logits), atol=0.006, rtol=0)
    torch.testing.assert_close(h.mean(0), F.softplus(logits), atol=0.02, rtol=0)


def test_bernoulli_opens_at_the_sigmoids_rate_and_repeats_by_generator():
    logits = torch.tensor([-6.0, -1.0, 0.0, 2.0])
    h = bernoulli(logits.expand(100_000, 4))
    torch.testing.assert_close(h.mean(0), torch.sigmoid(logits), atol=0.006, rtol=0)
    one, other = (bernoulli(logits, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rare_gates_keep_their_rate_in_any_type(dtype):
    logits = torch.full((200_000,), -7.0, dtype=dtype)
    assert bernoulli(logits).float().mean().item() == pytest.approx(9.1e-4, rel=0.35)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", [straight_through, straight_through_sigmoid])
def test_hard_gates_are_exact_and_have_a_gradient(estimator, dtype):
    logits = torch.linspace(-4, 4, 5000).to(dtype).requires_grad_()
    h = estimator(logits)
    assert h.dtype == dtype
    assert sorted(h.unique().tolist()) == [0.0, 1.0]
    h.sum().backward()
    assert logits.grad.all()


@pytest.mark.parametrize("surrogate", [torch.sigmoid, arctan_gate, hard_sigmoid, lambda x: torch.sigmoid(4 * x)])
def test_heaviside_has_the_gradient_of_its_surrogate(surrogate):
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0], dtype=torch.float64, requires_grad=True)
    assert heaviside(x, surrogate).tolist() == [0, 0, 1, 1, 1]
    (grad,) = torch.autograd.grad(heaviside(x, surrogate).sum(), x)
    (expected,) = torch.autograd.grad(surrogate(x).sum(), x)
    assert torch.equal(grad, expected)


def bump(w):
    return torch.sigmoid(w) * (1 - torch.sigmoid(w))


def sawtooth_gate(w, M, g):
    return (w > 0).to(w.dtype) + (M * w - torch.floor(M * w)) / M * g(w)


@pytest.mark.parametrize("g", [torch.ones_like, bump])
def test_shaped_step_is_the_limit_of_the_sawtooth(g):
    w = torch.linspace(-1.9, 2.1, 41, dtype=torch.float64) + 0.3e-6
    step, biggest = shaped_step(w, g), g(w).max()
    for M in (1e2, 1e4, 1e6):
        assert (sawtooth_gate(w, M, g) - step).abs().max() <= biggest / M
    slope = (sawtooth_gate(w + 1e-9, 1e6, g) - sawtooth_gate(w, 1e6, g)) / 1e-9
    leaf = w.clone().requires_grad_()
    (grad,) = torch.autograd.grad(shaped_step(leaf, g).sum(), leaf)
    assert torch.equal(grad, g(w))
    torch.testing.assert_close(grad, slope, atol=1e-5, rtol=0)


def test_shaped_step_is_closed_at_zero():
    assert shaped_step(torch.tensor([-1e-30, 0.0, 1e-30])).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "estimator",
    [straight_through, straight_through_sigmoid, stochastic_times_smooth, noisy_rectifier, heaviside, shaped_step],
)
def test_a_compiler_sees_one_graph(estimator):
    results = []
    for function in (estimator, torch.compile(estimator, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-2, 2, 9, requires_grad=True)
        torch.manual_seed(1)
        y = function(x)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])
