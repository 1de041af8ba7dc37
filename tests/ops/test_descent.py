"""Kernels of memories that learn while they read: equal to the loops that define them, gradients too.

A gradient of a gate is a sum over a row, whose terms cancel: it is as exact as the largest of its tensor.
"""

import pytest
import torch
import torch.nn.functional as F

from penstock.core import use
from penstock.ops import descent
from penstock.ops.calls import run

CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
SHAPES = [(2, 37, 3, 16, 32), (1, 16, 1, 5, 16), (2, 1, 2, 7, 16), (1, 17, 2, 64, 64), (0, 3, 1, 8, 16)]


def draw(rule, shape, dtype):
    batch, time, heads, key, value = shape
    q, k = F.normalize(torch.randn(2, batch, time, heads, key, dtype=dtype), dim=-1)
    v, *gates = torch.randn(4, batch, time, heads, value, dtype=dtype)
    keep, write, limit = (x.sigmoid() for x in gates)
    keep[:, ::5], write[:, 1::5], limit[:, 2::5] = 1, 0, 100
    state = torch.randn(batch, heads, value, key, dtype=dtype) / key**0.5
    series = (q, k, v, keep, write, limit) if rule == "yaad" else (q, k, v, keep, write)
    return series, state.log_softmax(-1) if rule == "memora" else state


def calls(rule):
    number = float(descent.RULES.index(rule))
    return [
        lambda *x, name=name: run(descent.OPERATION, name, x[:-1], x[-1], None, number) for name in ("reference", "numba")
    ]


@pytest.mark.parametrize("rule", descent.RULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_the_loop_in_values_and_gradients(rule, shape, dtype):
    torch.manual_seed(0)
    series, state = draw(rule, shape, dtype)
    results = []
    for call in calls(rule):
        variables = [x.clone().requires_grad_() for x in (*series, state)]
        o, last = call(*variables)
        torch.manual_seed(1)
        loss = (o * torch.randn_like(o)).sum() + (last * torch.randn_like(last)).sum()
        results.append((o, last, *torch.autograd.grad(loss, variables)))
    for found, expected in zip(results[1], results[0], strict=True):
        largest = expected.abs().max().item() if expected.numel() else 0
        torch.testing.assert_close(found, expected, rtol=CLOSE[dtype]["rtol"], atol=CLOSE[dtype]["atol"] * max(1, largest))


@pytest.mark.parametrize("rule", descent.RULES)
def test_a_state_is_handed_over_anywhere(rule):
    torch.manual_seed(0)
    series, state = draw(rule, (2, 40, 2, 16, 16), torch.float64)
    call = getattr(descent, rule.upper())
    whole, last = call(series, state, 1, 0)
    first, between = call(tuple(x[:, :19] for x in series), state, 1, 0)
    second, after = call(tuple(x[:, 19:] for x in series), between, 1, 0)
    torch.testing.assert_close((torch.cat((first, second), 1), after), (whole, last), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", descent.RULES)
def test_gradients_have_gradients(rule):
    torch.manual_seed(0)
    series, state = draw(rule, (1, 3, 1, 2, 16), torch.float64)
    found = []
    for call in calls(rule):
        variables = [x.clone().requires_grad_() for x in (*series, state)]
        grads = torch.autograd.grad(call(*variables)[0].square().sum(), variables, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), variables))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_who_is_served():
    torch.manual_seed(0)
    series, state = draw("yaad", (1, 4, 1, 8, 16), torch.float32)
    assert [v.backend for v in descent.OPERATION.explain(series, state, None, 1.0) if v.runs] == ["numba"]
    narrow, small = draw("yaad", (1, 4, 1, 8, 8), torch.float32)
    assert "whole vectors" in descent.OPERATION.explain(narrow, small, None, 1.0)[0].reason
    with use("reference"):
        expected = descent.YAAD(series, state, 1, 0)
    torch.testing.assert_close(descent.YAAD(series, state, 1, 0), expected, **CLOSE[torch.float32])


@pytest.mark.parametrize("rule", descent.RULES)
def test_the_kernel_is_an_operator_that_compilers_know(rule):
    torch.manual_seed(0)
    series, state = draw(rule, (1, 18, 1, 4, 16), torch.float32)
    series = [x.requires_grad_() for x in series]
    arguments = (series, state, None, [float(descent.RULES.index(rule))], True)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.penstock.descent.default, arguments, test_utils=tests)
