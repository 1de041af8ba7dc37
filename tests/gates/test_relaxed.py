import math

import pytest
import torch

from penstock.core import ConfigError
from penstock.gates import HardConcrete, gumbel_sigmoid, gumbel_softmax
from penstock.gates.hard_concrete import open_probability, sample, settle

LOGITS = torch.tensor([-2.0, -0.5, 0.0, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_binary_gates_open_at_the_sigmoids_rate_at_every_temperature(temperature):
    g = gumbel_sigmoid(LOGITS.expand(100_000, 4), temperature)
    torch.testing.assert_close((g > 0.5).double().mean(0), torch.sigmoid(LOGITS), atol=0.006, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_choices_fall_at_the_softmaxs_rate_at_every_temperature(temperature):
    g = gumbel_softmax(LOGITS.expand(100_000, 4), temperature)
    torch.testing.assert_close(g.sum(-1), torch.ones(100_000, dtype=torch.float64))
    rate = g.argmax(-1).bincount(minlength=4) / 100_000
    torch.testing.assert_close(rate.double(), torch.softmax(LOGITS, -1), atol=0.006, rtol=0)


@pytest.mark.parametrize("draw", [gumbel_sigmoid, gumbel_softmax])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_hard_gates_are_exact_with_the_gradient_of_the_soft_ones(draw, dtype):
    grads = []
    for hard in (False, True):
        logits = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        g = draw(logits, 0.7, hard=hard, generator=torch.Generator().manual_seed(1))
        (g * torch.arange(4)).sum().backward()
        grads.append(logits.grad)
    assert sorted(g.unique().tolist()) == [0.0, 1.0]
    assert torch.equal(*grads)
    assert grads[0].any()


def test_a_low_temperature_makes_hard_gates():
    def middling(temperature):
        g = gumbel_sigmoid(torch.zeros(10_000), temperature)
        return ((g > 0.01) & (g < 0.99)).float().mean()

    assert middling(1.0) > 0.9
    assert middling(0.01) < 0.05


def test_gumbel_softmax_along_another_axis():
    logits = torch.randn(4, 6)
    one = gumbel_softmax(logits, dim=0, hard=True)
    assert one.sum(0).tolist() == [1] * 6


@pytest.mark.parametrize("draw", [gumbel_sigmoid, gumbel_softmax])
def test_far_off_scores_have_finite_gradients(draw):
    logits = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    draw(logits.expand(100, 3), 0.1).square().sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("draw", [gumbel_sigmoid, gumbel_softmax])
@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_relaxed_gates_refuse_a_temperature_that_is_none(draw, temperature):
    with pytest.raises(ConfigError, match=f"{draw.__name__}: temperature must be a number above 0, got"):
        draw(torch.zeros(3), temperature)


@pytest.mark.parametrize("temperature", [0.3, 2 / 3, 1.0])
def test_the_penalty_counts_the_gates_that_are_not_zero(temperature):
    z = sample(LOGITS.expand(100_000, 4), temperature)
    assert z.min() == 0
    assert z.max() == 1
    counted = (z != 0).double().mean(0)
    torch.testing.assert_close(counted, open_probability(LOGITS, temperature), atol=0.006, rtol=0)
    full = (z == 1).double().mean(0)
    expected = torch.sigmoid(LOGITS - temperature * math.log(1.1 / 0.1))
    torch.testing.assert_close(full, expected, atol=0.006, rtol=0)


def test_samples_have_the_closed_forms_gradient():
    logits = LOGITS.clone().requires_grad_()
    noise = torch.Generator().manual_seed(0)
    (grad,) = torch.autograd.grad(sample(logits, 0.5, noise).sum(), logits)
    u = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.sigmoid((u.log() - (1 - u).log() + LOGITS) / 0.5)
    inside = (s * 1.2 - 0.1 > 0) & (s * 1.2 - 0.1 < 1)
    torch.testing.assert_close(grad, torch.where(inside, 1.2 * s * (1 - s) / 0.5, 0.0))


def test_test_time_gates_close_and_open_exactly():
    assert settle(torch.tensor([-3.0, 0.0, 3.0])).tolist() == [0.0, 0.5, 1.0]


def test_a_fresh_layer_is_closed_as_often_as_asked():
    for closed in (0.1, 0.5, 0.9):
        layer = HardConcrete(1000, closed=closed)
        assert torch.sigmoid(layer.log_alpha).mean().item() == pytest.approx(1 - closed, abs=0.01)


def test_the_share_is_a_penalty_with_a_gradient():
    layer = HardConcrete(8)
    layer.share().backward()
    assert (layer.log_alpha.grad > 0).all()
