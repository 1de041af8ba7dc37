"""What is particular to gated linear attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from penstock.ops import explain, gated_linear_attention, register_flops
from penstock.ops.gated_linear_attention import numba_cpu


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
def test_a_decay_of_minus_infinity_forgets_exactly(backend):
    q, k, v = torch.randn(3, 1, 40, 2, 16)
    g = torch.full((1, 40, 2, 16), -0.1)
    g[:, 25] = -torch.inf
    o, state = gated_linear_attention(q, k, v, g, backend=backend)
    late, last = gated_linear_attention(q[:, 25:], k[:, 25:], v[:, 25:], g[:, 25:], backend=backend)
    torch.testing.assert_close(o[:, 25:], late)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
def test_a_decay_of_one_sums_exactly(backend):
    k = torch.randn(1, 50, 2, 16, dtype=torch.float64)
    _, state = gated_linear_attention(k, k, k, torch.zeros(1, 1), backend=backend)
    torch.testing.assert_close(state, torch.einsum("bthk,bthv->bhkv", k, k))


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_gradients_of_strong_gates_keep_their_digits(backend):
    """Against float64, at gates twenty times as strong as usual, where the cumulative-sum identity keeps four digits."""
    q, k, v = torch.randn(3, 1, 200, 2, 32)
    g = 20 * F.logsigmoid(torch.randn(1, 200, 2, 32))
    weight = torch.randn(1, 200, 2, 32)

    def gradient(dtype, backend):
        gate = g.to(dtype).requires_grad_()
        o, _ = gated_linear_attention(*(x.to(dtype) for x in (q, k, v)), gate, backend=backend)
        return torch.autograd.grad(o, gate, weight.to(dtype))[0].double()

    expected = gradient(torch.float64, "reference")
    error = (gradient(torch.float32, backend) - expected).norm() / expected.norm()
    assert error < 1e-6


def test_the_vector_exponential_is_as_good_as_torchs():
    q = torch.ones(1, 1, 1, 16)
    for dtype, tolerance in ((torch.float32, 2e-7), (torch.float64, 4e-16)):
        low = -87.0 if dtype == torch.float32 else -708.0
        for x in torch.linspace(low, 0, 999, dtype=dtype):
            state = torch.ones(1, 1, 16, 16, dtype=dtype)
            _, last = gated_linear_attention(q.to(dtype), 0 * q, 0 * q, x.view(1, 1), state, backend="numba")
            assert abs(last[0, 0, 0, 0].item() / math.exp(x.item()) - 1) < tolerance


def test_a_nan_is_not_swallowed():
    q = torch.ones(1, 20, 1, 16)
    g = torch.zeros(1, 20, 1, 16)
    g[0, 10] = torch.nan
    o, state = gated_linear_attention(q, q, q, g, torch.ones(1, 1, 16, 16), backend="numba")
    assert not o[:, :10].isnan().any()
    assert o[:, 10:].isnan().all()
    assert state.isnan().all()


def test_memory_kept_for_the_backward_pass_grows_by_spans():
    q, k, v = torch.randn(3, 1, 1024, 2, 64)
    _, state, marks = numba_cpu.forward([q, k, v, -k.abs()], torch.zeros(1, 2, 64, 64), None, True, 1.0)
    assert marks.numel() <= (1024 // numba_cpu.SPAN + 1) * state.numel()


def test_peak_memory_is_that_of_inputs_outputs_and_a_quarter():
    tensors = [torch.randn(1, 2048, 4, 64, requires_grad=True) for _ in range(3)]
    g = (-torch.rand(1, 2048, 4, 64)).requires_grad_()
    o, _ = gated_linear_attention(*tensors, g)
    o.sum().backward()
    size = 2048 * 4 * 64 * 4
    with torch.profiler.profile(profile_memory=True) as profile:
        o, _ = gated_linear_attention(*tensors, g)
        torch.autograd.grad(o, [*tensors, g], o)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    inputs, outputs = 4 * size, 5 * size
    assert inputs + peak <= 1.25 * (inputs + outputs)


def test_operations_are_counted():
    q = torch.randn(1, 10, 2, 16, requires_grad=True)
    register_flops()
    with FlopCounterMode(display=False) as counter:
        gated_linear_attention(q, q, q, torch.zeros(1, 1))[0].sum().backward()
    assert counter.get_total_flops() == (5 + 14) * 10 * 2 * 16 * 16


@pytest.mark.parametrize(("heads", "chosen"), [(4, "reference"), (32, "numba")])
def test_one_step_is_worth_the_kernel_where_the_state_is_large(heads, chosen):
    q, k, v = torch.randn(3, 1, 1, heads, 128)
    verdicts = explain(gated_linear_attention, q, k, v, -q.abs(), torch.zeros(1, heads, 128, 128))
    assert [verdict.backend for verdict in verdicts if verdict.runs] == [chosen]


@pytest.mark.parametrize("key", [16, 21])
def test_queries_and_keys_that_heads_share_are_read_as_they_lie(key):
    """As in Mamba-2: outputs and gradients are those of queries and keys copied for each head."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 70, 1, key, dtype=torch.float64)
    v, g = torch.randn(2, 70, 3, 16, dtype=torch.float64), F.logsigmoid(torch.randn(2, 70, 3, 1, dtype=torch.float64))
    found = []
    for copied in (False, True):
        variables = [x.clone().requires_grad_() for x in (q, k, v, g)]
        spread = [x.repeat(1, 1, 3, 1) if copied else x.expand(-1, -1, 3, -1) for x in variables[:2]]
        o, last = gated_linear_attention(*spread, *variables[2:], backend="numba")
        weight = torch.linspace(-1, 1, o.numel(), dtype=torch.float64).view_as(o)
        found.append((o, last, *torch.autograd.grad((o * weight).sum() + last.square().sum(), variables)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    assert numba_cpu.once(q.expand(-1, -1, 3, -1)).shape[2] == 1
