"""Plans of rows: gather, compute and put back equals computing everything and multiplying by zero."""

import pytest
import torch

from penstock.ops import plan as plans
from penstock.ops.plan import Plan, add, add_masked, alike, plan_routes, plan_rows, plan_tokens, put


def blocks(count, seen=None):
    maps = [torch.randn(3, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(count)]

    def block(weight):
        def run(rows):
            if seen is not None:
                seen.append(len(rows))
            return torch.tanh(rows @ weight)

        return run

    return [block(weight) for weight in maps]


@pytest.mark.parametrize("dropped", [0.0, 0.4, 1.0])
def test_routes_equal_the_masked_form_in_values_and_gradients(dropped):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.rand(8, 2, generator=generator, dtype=torch.float64).requires_grad_()
    indices = torch.rand(8, 4, generator=generator).argsort(1)[:, :2]
    indices = torch.where(torch.rand(8, 2, generator=generator) < dropped, -1, indices)
    plan = plan_routes(weights, indices, 4)
    real, masked = (form(plan, x, blocks(4), x * 1.0) for form in (add, add_masked))
    torch.testing.assert_close(real, masked, atol=1e-12, rtol=0)
    towards = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(real, [x, weights], towards, retain_graph=True, materialize_grads=True),
        torch.autograd.grad(masked, [x, weights], towards, retain_graph=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_block_is_given_its_rows_and_is_not_called_on_none():
    seen = []
    indices = torch.tensor([[0], [2], [2], [-1]])
    add(plan_routes(None, indices, 4), torch.zeros(4, 3, dtype=torch.float64), blocks(4, seen), torch.zeros(4, 3))
    assert seen == [1, 2]


def test_rows_are_put_in_the_place_of_those_they_came_from():
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    keep = torch.tensor([True, False, True, False, False])
    y = put(plan_rows(keep), x, lambda rows: rows + 1, x)
    assert torch.equal(y[keep], x[keep] + 1)
    assert torch.equal(y[~keep], x[~keep])


def test_nothing_kept_changes_nothing_and_calls_nothing():
    x = torch.randn(3, 2)

    def block(rows):
        raise AssertionError(f"called on {len(rows)} rows")

    assert put(plan_rows(torch.zeros(3)), x, block, x) is x


def test_ties_keep_the_order_of_tokens():
    plan = plan_routes(None, torch.tensor([[1], [0], [1], [0]]), 2)
    assert plan.rows.tolist() == [1, 3, 0, 2]
    assert plan.bounds == [0, 2, 4]
    assert isinstance(plan, Plan)


@pytest.mark.parametrize("kept", [[[1, 0, 1, 0], [0, 1, 1, 0]], [[0, 0], [0, 0]], [[1, 0, 0], [1, 1, 0]]])
def test_tokens_are_planned_in_their_order_and_what_fills_up_weighs_nothing(kept):
    keep = torch.tensor(kept)
    most = int(keep.sum(1).max())
    plan, places = plan_tokens(keep)
    assert places.shape == (len(kept), most)
    for row, at in enumerate(places.tolist()):
        wanted = keep[row].nonzero().flatten().tolist()
        assert at[: len(wanted)] == wanted
    assert plan.rows.tolist() == (places + keep.shape[1] * torch.arange(len(kept)).unsqueeze(1)).flatten().tolist()
    there = torch.ones(plan.rows.shape) if plan.weights is None else plan.weights
    assert int(there.sum()) == int(keep.sum())
    fixed, same = plan_tokens(keep, most)
    assert torch.equal(same, places)
    assert torch.equal(fixed.rows, plan.rows)


def test_sequences_are_grouped_by_how_many_tokens_they_keep(monkeypatch):
    keep = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0]])
    for least, expected in ((3, [[2, 4], [0, 3]]), (5, [[2, 4, 0, 3]])):
        monkeypatch.setattr(plans, "LEAST", least)
        assert [group.tolist() for group in alike(keep, 2)] == expected
    assert [group.tolist() for group in alike(keep[[0, 3]], 2)] == [[0, 1]]
    assert [group.tolist() for group in alike(keep[[1, 2, 4]], 2)] == [[1, 2]]
    assert alike(keep[1:2], 2) == []


def test_a_compiled_program_goes_on_after_a_plan_and_computes_the_same():
    x = torch.randn(6, 3, dtype=torch.float64)
    keep = torch.tensor([1, 0, 1, 1, 0, 0])
    (block,) = blocks(1)

    def whole(x, keep):
        return put(plan_rows(keep), x * 2, block, x) + 1

    torch._dynamo.reset()
    try:
        torch.testing.assert_close(torch.compile(whole, backend="aot_eager")(x, keep), whole(x, keep))
    finally:
        torch._dynamo.reset()
