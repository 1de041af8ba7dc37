"""The dense core of attention: what masks, biases and grouped heads mean, and what becomes of a query that sees nothing."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from penstock.core import Probe
from penstock.ops import register_flops
from penstock.ops.attention import (
    attention_weights,
    causal_attention,
    masked_attention,
    masked_softmax,
    read_values,
)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def loops(q, k, v, mask, bias, scale):
    """The same in NumPy and loops; mask and bias are `(B, H, T, S)`."""
    q, k, v = (x.detach().numpy() for x in (q, k, v))
    batch, times, heads, _ = q.shape
    y = np.zeros((batch, times, heads, v.shape[-1]))
    for b, t, h in np.ndindex(batch, times, heads):
        g = h * k.shape[2] // heads
        seen = [s for s in range(k.shape[1]) if mask[b, h, t, s]]
        e = [math.exp(scale * q[b, t, h] @ k[b, s, g] + float(bias[b, h, t, s])) for s in seen]
        y[b, t, h] = sum((p / sum(e) * v[b, s, g] for p, s in zip(e, seen, strict=True)), np.zeros(v.shape[-1]))
    return torch.from_numpy(y)


MASKS = {
    "none": None,
    "pairs": (5, 7),
    "keys": (2, 1, 1, 7),
    "heads": (4, 5, 7),
    "all": (2, 4, 5, 7),
}


def test_where_every_query_sees_a_key_it_may_be_said():
    q, k, v, mask = draw(2, 5, 4, 3), draw(2, 7, 2, 3), draw(2, 7, 2, 6), torch.rand(5, 7) < 0.5
    mask[:, 2] = True
    torch.testing.assert_close(masked_attention(q, k, v, mask, blind=False), masked_attention(q, k, v, mask))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("times", [5, 7, 9])
def test_it_equals_loops_in_values_and_weights(shape, biased, causal, times):
    q, k, v = draw(2, times, 4, 6), draw(2, 7, 2, 6), draw(2, 7, 2, 3)
    if shape is not None and shape[-2] == 5:
        shape = (*shape[:-2], times, 7)
    mask = None if shape is None else torch.rand(shape) < 0.5
    if mask is not None:
        mask[..., 0, :] = False
    bias = draw(4, times, 7) if biased else None
    whole = torch.ones(2, 4, times, 7, dtype=torch.bool) if mask is None else mask.expand(2, 4, times, 7)
    whole = whole.tril(7 - times) if causal else whole
    expected = loops(q, k, v, whole, torch.zeros(2, 4, times, 7) if bias is None else bias.expand(2, 4, times, 7), 0.3)
    torch.testing.assert_close(masked_attention(q, k, v, mask, bias, 0.3, causal=causal), expected)
    weights = attention_weights(q, k, mask, bias, 0.3, causal=causal)
    torch.testing.assert_close(read_values(weights, v), expected)
    assert not weights[~whole].any()


@pytest.mark.parametrize("biased", [False, True])
def test_a_query_that_sees_nothing_is_given_zero_and_gives_no_gradient(biased):
    q, k, v = (draw(2, 4, 2, 3).requires_grad_() for _ in range(3))
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]]).bool()
    bias = draw(4, 4).requires_grad_() if biased else None
    for y in (masked_attention(q, k, v, mask, bias), read_values(attention_weights(q, k, mask, bias), v)):
        assert not y[:, 1].any()
        assert y[:, 2].any()
        grads = torch.autograd.grad(y.square().sum() + y.sum(), (q, k, v, *([bias] if biased else [])))
        assert all(grad.isfinite().all() for grad in grads)
        assert not grads[0][:, 1].any()
        assert grads[0][:, 0].any()
        for grad in grads[1:3]:
            assert not grad[:, 2].any(), "no query sees key 2"
            assert grad[:, 1].any()


def test_no_key_at_all_gives_zero():
    y = masked_attention(draw(1, 2, 1, 3), draw(1, 2, 1, 3), draw(1, 2, 1, 3), torch.zeros(1, 1, 1, 2, dtype=torch.bool))
    assert y.shape == (1, 2, 1, 3)
    assert not y.any()


def test_more_queries_than_keys_see_the_past_only():
    q, k, v = draw(1, 5, 1, 4), draw(1, 3, 1, 4), draw(1, 3, 1, 4)
    y = causal_attention(q, k, v)
    assert not y[:, :2].any()
    torch.testing.assert_close(y[:, 2:], causal_attention(q[:, 2:], k, v))


def test_gradients_equal_those_of_the_weights():
    q, k, v = (draw(2, 6, 2, 4).requires_grad_() for _ in range(3))
    bias, mask = draw(2, 6, 6).requires_grad_(), torch.rand(6, 6) < 0.6
    one = torch.autograd.grad(masked_attention(q, k, v, mask, bias).sin().sum(), (q, k, v, bias))
    other = torch.autograd.grad(read_values(attention_weights(q, k, mask, bias), v).sin().sum(), (q, k, v, bias))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_of_low_precision_are_made_in_float32():
    scores = torch.randn(2, 1, 4, 300).bfloat16()
    weights = masked_softmax(scores, torch.ones(4, 300, dtype=torch.bool))
    torch.testing.assert_close(weights, scores.float().softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_of_the_values_is_kept(dtype):
    q, k, v = (torch.randn(1, 3, 2, 4, dtype=dtype) for _ in range(3))
    bias = torch.zeros(3, 3)
    assert masked_attention(q, k, v, bias=bias, causal=True).dtype == dtype
    assert read_values(attention_weights(q, k, bias=bias), v).dtype == dtype


def test_a_probe_is_given_what_makes_the_weights():
    probe, seen = Probe(), []
    probe.register_forward_hook(lambda _, inputs, out: seen.append(inputs))
    q, k, v, bias = draw(1, 3, 2, 4), draw(1, 3, 1, 4), draw(1, 3, 1, 4), draw(3, 3)
    y = masked_attention(q, k, v, None, bias, 0.5, causal=True, probe=probe)
    (made,) = seen
    weights = attention_weights(*made[:-1], causal=made[-1])
    torch.testing.assert_close(read_values(weights, v), y)


def test_operations_of_torchs_fused_attention_are_counted_as_those_of_products():
    register_flops()
    q, k, v = (torch.randn(2, 64, 4, 16).requires_grad_() for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        y = masked_attention(q, k, v)
    products = 2 * 2 * 4 * 64 * 64 * 16
    assert counter.get_total_flops() == 2 * products
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 5 * products
