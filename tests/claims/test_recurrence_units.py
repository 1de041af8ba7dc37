"""What the gates of recurrent units and of memories do, in the limits where the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import penstock
from penstock.testing.harness import gates_held, perturb


def layer(name, **arguments):
    torch.manual_seed(0)
    module = penstock.build(name, **arguments).double()
    perturb(module)
    return module


@pytest.mark.claim("rg-lru")
def test_a_closed_recurrence_gate_keeps_the_first_input_and_reads_no_other():
    unit, x = layer("rg-lru", dim=8, heads=2), torch.randn(2, 9, 8, dtype=torch.float64)
    with gates_held(nn.ModuleList([unit.recurrence_gate]), 0.0):
        y, (_, held, _) = unit.extend(x, None)
        first = unit.extend(x[:, :1], None)[1][1]
    torch.testing.assert_close(held, first)
    assert first.abs().min() > 0
    torch.testing.assert_close(y, unit.out(first.unsqueeze(1) * F.gelu(unit.to_gate(x))))


@pytest.mark.claim("rg-lru")
def test_the_state_keeps_the_scale_of_its_inputs():
    unit = layer("rg-lru", dim=8, heads=2, width=1)
    nn.init.zeros_(unit.to_recurrence.weight)
    x = torch.randn(4000, 40, 8, dtype=torch.float64)
    with gates_held(nn.ModuleList([unit.input_gate]), 1.0):
        nn.init.zeros_(unit.to_inner.bias), nn.init.zeros_(unit.bias)
        held = unit.extend(x, None)[1][1]
    torch.testing.assert_close(held.std(0), (unit.to_inner(x) * unit.taps[:, 0]).std((0, 1)), rtol=0.05, atol=0)


@pytest.mark.claim("gmu")
def test_a_memory_of_ones_leaves_a_plain_layer():
    unit, x = layer("gmu", dim=6, memory_dim=10), torch.randn(2, 5, 6, dtype=torch.float64)
    plain = F.silu(x @ unit.to_gate.weight.T) @ unit.out.weight.T
    torch.testing.assert_close(unit(x, torch.ones(2, 5, 10, dtype=torch.float64)), plain)


@pytest.mark.claim("gmu")
@pytest.mark.parametrize("name", ["gmu", "gmu-normalized"])
def test_a_token_reads_its_own_memory_only(name):
    unit = layer(name, dim=6, memory_dim=10)
    x, memory = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 10, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(unit(x, memory)[:, 2].sum(), memory)
    assert grad[:, 2].ne(0).all()
    assert not grad[:, [0, 1, 3, 4]].any()
    torch.testing.assert_close(unit(x[:, -1:], memory[:, -1:]), unit(x, memory)[:, -1:])
