import math

import pytest
import torch
import torch.nn.functional as F

from penstock.core import ConfigError
from penstock.gates import arctan_gate, expand, gompertz, hard_sigmoid, softmax

GRID = torch.linspace(-8, 8, 81, dtype=torch.float64)


def slope(function, x):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(x).sum(), x)
    return grad


def test_arctan_gate_is_the_formula():
    expected = [(math.atan(x) + math.pi / 2) / math.pi for x in GRID.tolist()]
    torch.testing.assert_close(arctan_gate(GRID), torch.tensor(expected, dtype=torch.float64))


def test_gompertz_is_the_formula():
    expected = [math.exp(-math.exp(-x)) for x in GRID.tolist()]
    torch.testing.assert_close(gompertz(GRID), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_gompertz_gradient_and_its_gradient():
    x = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gompertz, x)
    assert torch.autograd.gradgradcheck(gompertz, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gompertz_has_a_gradient_where_the_formula_has_none(dtype):
    x = torch.tensor([-3e4, -1000.0, -100.0, -20.0, -7.0, 0.0, 90.0, 3e4]).to(dtype)
    naive = slope(lambda x: torch.exp(-torch.exp(-x)), x)
    assert naive[0].isnan()
    assert slope(gompertz, x).isfinite().all()
    assert not slope(gompertz, x)[:4].any()
    assert torch.equal(gompertz(x), torch.exp(-torch.exp(-x)))


def test_three_parameter_gompertz_is_a_shift_and_a_scale():
    alpha, beta, gamma = 0.7, 2.5, 1.3
    expected = alpha * torch.exp(-beta * torch.exp(-gamma * GRID))
    torch.testing.assert_close(alpha * gompertz(gamma * GRID - math.log(beta)), expected)


def test_hard_sigmoid_is_torchs_at_one_sixth_and_exact_at_its_ends():
    torch.testing.assert_close(hard_sigmoid(GRID), F.hardsigmoid(GRID))
    assert hard_sigmoid(torch.tensor([-1.0, 0.0, 1.0]), slope=0.5).tolist() == [0, 0.5, 1]


def test_expand_widens_around_one_half():
    g = torch.sigmoid(GRID)
    assert torch.equal(expand(g, 0.0), g)
    torch.testing.assert_close(expand(g, -0.5), torch.full_like(g, 0.5))
    ends = expand(torch.tensor([0.0, 0.5, 1.0]), 0.3)
    torch.testing.assert_close(ends, torch.tensor([-0.3, 0.5, 1.3]))


def test_alpha_leaves_zero_by_its_gradient():
    alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (GRID * expand(torch.sigmoid(GRID), alpha)).sum().backward()
    torch.testing.assert_close(alpha.grad, (GRID * (2 * torch.sigmoid(GRID) - 1)).sum())


def test_softmax_gets_harder_as_the_temperature_falls():
    logits = torch.tensor([[0.2, 1.0, -0.5]], dtype=torch.float64)
    sharp, plain, flat = softmax(logits, 0.01), softmax(logits), softmax(logits, 1e6)
    torch.testing.assert_close(plain, torch.softmax(logits, -1))
    torch.testing.assert_close(sharp, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(flat, torch.full_like(logits, 1 / 3), atol=1e-5, rtol=0)


def test_softmax_takes_a_trained_temperature():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor([[0.5], [1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, (logits, temperature))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_softmax_refuses_a_temperature_that_is_none(temperature):
    with pytest.raises(ConfigError, match="softmax: temperature must be a number above 0, got"):
        softmax(torch.zeros(3), temperature)
