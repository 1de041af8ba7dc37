"""The mixture of experts as an operation: sorted rows against the definition, and what a call with nothing to do returns."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from penstock import ops
from penstock.core import BackendError, ConfigError, Routing, ShapeError, use
from penstock.ops import expert_mlp, pack_experts
from penstock.ops.expert_mlp import torch as fast
from penstock.ops.expert_mlp.activation import ACTIVATIONS, GATED, activate
from penstock.ops.plan import add_masked, plan_routes


def given(n, k, *, experts=5, dim=4, hidden=6, activation="swiglu", dropped=0.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    inner = hidden * (2 if activation in GATED else 1)
    indices = torch.rand(n, experts, generator=generator).argsort(1)[:, :k]
    indices = torch.where(torch.rand(n, k, generator=generator) < dropped, -1, indices)
    weights = torch.rand(n, k, generator=generator, dtype=dtype).requires_grad_()
    maps = draw(experts, inner, dim), draw(experts, dim, hidden), draw(experts, inner), draw(experts, dim)
    return draw(n, dim), weights, indices, maps


def call(x, weights, indices, maps, **options):
    return expert_mlp(x, Routing(weights, indices, weights, {}), *maps, **options)


CASES = [(7, 2, 0.0), (7, 1, 0.0), (1, 3, 0.0), (9, 3, 0.4), (5, 2, 1.0), (0, 2, 0.0), (64, 5, 0.1)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("n", "k", "dropped"), CASES)
def test_sorted_rows_equal_the_definition(n, k, dropped, activation):
    x, weights, indices, maps = given(n, k, activation=activation, dropped=dropped)
    ours, slow = (call(x, weights, indices, maps, activation=activation, backend=name) for name in ("torch", "reference"))
    torch.testing.assert_close(ours, slow, atol=1e-12, rtol=1e-12)
    towards = torch.randn_like(ours)
    leaves = [x, weights, *maps]
    taken = indices >= 0
    for name, one, other in zip(
        ("x", "weights", "w_in", "w_out", "b_in", "b_out"),
        torch.autograd.grad(ours, leaves, towards),
        torch.autograd.grad(slow, leaves, towards),
        strict=True,
    ):
        counted = taken if name == "weights" else torch.ones(())
        torch.testing.assert_close(
            one * counted, other * counted, atol=1e-10, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dim", "hidden"), [(32, 48), (37, 51), (600, 70)])
def test_experts_with_few_rows_are_mapped_together_and_others_beside_them(dim, hidden, biased, dtype, monkeypatch):
    x, weights, _, maps = given(47, 1, experts=8, dim=dim, hidden=hidden, dtype=dtype)
    indices = torch.repeat_interleave(torch.arange(8), torch.tensor([1, 2, 3, 4, 7, 0, 10, 20]))[torch.randperm(47)]
    maps = maps if biased else (*maps[:2], None, None)
    leaves = [leaf for leaf in (x, weights, *maps) if leaf is not None]
    mapped = []
    many = fast._map
    monkeypatch.setattr(fast, "_map", lambda rows, *rest: mapped.append(len(rows)) or many(rows, *rest))
    found = call(x, weights, indices.unsqueeze(1), maps)
    assert mapped == [20, 20]
    expected = call(x, weights, indices.unsqueeze(1), maps, backend="reference")
    close = {"rtol": 1e-4, "atol": 1e-2} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found, expected, **close)
    grads = (torch.autograd.grad(y.square().mean(), leaves) for y in (found, expected))
    torch.testing.assert_close(*grads, **close)
    with torch.no_grad():
        torch.testing.assert_close(call(x, weights, indices.unsqueeze(1), maps), expected, **close)
        with use("torch"):
            call(x, weights, indices.unsqueeze(1), maps)
    assert sorted(mapped[4:]) == sorted(2 * [1, 2, 3, 4, 7, 10, 20])


def test_it_equals_every_expert_on_every_token():
    x, weights, indices, maps = given(9, 3, dropped=0.3)
    w_in, w_out, b_in, b_out = maps

    def expert(i):
        return lambda rows: activate(rows @ w_in[i].mT + b_in[i], "swiglu") @ w_out[i].mT + b_out[i]

    plan = plan_routes(weights, indices, 5)
    masked = add_masked(plan, x, [expert(i) for i in range(5)], torch.zeros_like(x))
    torch.testing.assert_close(call(x, weights, indices, maps), masked, atol=1e-12, rtol=1e-12)


def test_second_derivatives():
    x, weights, indices, maps = given(4, 2, activation="geglu")
    assert torch.autograd.gradgradcheck(
        lambda *leaves: call(*leaves[:2], indices, leaves[2:], activation="geglu"), (x, weights, *maps), fast_mode=True
    )


def test_nothing_routed_is_zeros_with_zero_gradients():
    x, weights, indices, maps = given(5, 2, dropped=1.0)
    y = call(x, weights, indices, maps)
    assert not y.any()
    for grad in torch.autograd.grad(y.sum(), [x, *maps]):
        assert grad.isfinite().all()
        assert not grad.any()


def test_a_dropped_token_is_zeros_whatever_its_neighbours_are():
    x, weights, indices, maps = given(3, 1)
    indices = torch.tensor([[-1], [0], [-1]])
    with torch.no_grad():
        x[1] = torch.inf
    y = call(x, weights, indices, maps)
    assert not y[0].any()
    assert not y[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reordered_weights_give_the_same(dtype):
    x, weights, indices, maps = given(33, 2, dim=16, hidden=32, dropped=0.2, dtype=torch.float32)
    x, maps = x.detach().to(dtype), [w.detach().to(dtype) for w in maps]
    packed = pack_experts(*maps[:2])
    with torch.no_grad():
        expected = call(x, weights, indices, maps)
        assert packed.serves(*maps[:2])
        tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        actual = call(x, weights, indices, maps, packed=packed)
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_reordered_weights_are_left_aside_once_the_weights_change():
    x, weights, indices, maps = given(3, 1, dtype=torch.float32)
    packed = pack_experts(*maps[:2])
    with torch.no_grad():
        maps[0].mul_(2)
        torch.testing.assert_close(call(x, weights, indices, maps, packed=packed), call(x, weights, indices, maps))


def test_work_is_that_of_the_routes_taken():
    ops.register_flops()
    x, weights, indices, maps = given(10, 2, dropped=0.5, dtype=torch.float32)
    taken = int((indices >= 0).sum())
    assert 0 < taken < 20
    with FlopCounterMode(display=False) as counter:
        call(x, weights, indices, maps).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * taken * (12 * 4 + 6 * 4)


def test_it_is_one_operator():
    x, weights, indices, maps = given(7, 2, dtype=torch.float32)
    w_in, w_out, b_in, b_out = maps
    opcheck(torch.ops.penstock.expert_mlp.default, (x, weights, indices, w_in, b_in, w_out, b_out, "swiglu", True))
    x, weights, w_in, w_out = (leaf.detach() for leaf in (x, weights, w_in, w_out))
    opcheck(torch.ops.penstock.expert_mlp.default, (x, weights, indices, w_in, None, w_out, None, "swiglu", False))


def test_autocast_computes_in_bfloat16():
    x, weights, indices, maps = given(7, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(x, weights, indices, maps)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert maps[0].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"activation": "swigluu"}, ConfigError, "did you mean 'swiglu'"),
        ({"indices": torch.full((7, 2), 5)}, ShapeError, "one of 5 experts"),
        ({"indices": torch.full((7, 2), -2)}, ShapeError, "one of 5 experts"),
        ({"indices": torch.zeros(6, 2, dtype=torch.long)}, ShapeError, "routing.indices"),
        ({"x": torch.zeros(7, 3)}, ShapeError, "w_out"),
        ({"backend": "numba"}, BackendError, "no 'numba' backend"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(change, error, words):
    x, weights, indices, maps = given(7, 2)
    options = {"x": x, "indices": indices} | change
    x, indices = options.pop("x"), options.pop("indices")
    with pytest.raises(error, match=words):
        call(x, weights, indices, maps, **options)


def test_weights_that_cannot_be_reordered_say_why():
    with pytest.raises(BackendError, match="float32 or bfloat16"):
        pack_experts(torch.zeros(2, 4, 4, dtype=torch.float64), torch.zeros(2, 4, 2, dtype=torch.float64))
