"""The table of times has every operation, and its peers compute the same thing."""

import pytest
import torch

from penstock import ops
from penstock.bench import ops as bench
from penstock.bench import sparse
from penstock.models import LanguageModel


def test_the_table_times_every_operation():
    rows = bench.table(batch=1, length=40, heads=2, size=16, rounds=1)
    assert set(ops.OPERATIONS) <= {row.operation for row in rows}
    assert all(row.forward > 0 and row.both > 0 for row in rows)
    assert all(row.times == 1 for row in rows if row.code == "penstock")


@pytest.mark.parametrize("case", list(bench.cases(2, 70, 2, 16)), ids=lambda case: f"{case.operation} {case.shape}")
def test_codes_that_are_compared_compute_the_same(case):
    """Up to the scale of the queries, which other people's code may leave out."""
    first, *others = [code(*case.tensors) for name, code in case.codes.items() if "bound" not in name]
    for other in others:
        ratio = (first * other).sum() / (other * other).sum()
        assert min(abs(ratio - 1), abs(ratio - 0.25)) < 1e-3
        torch.testing.assert_close(first, ratio * other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("load", "pinned", "said"), [(9.0, "true", "loads"), (0.0, "", "pinned"), (0.0, "true", None)])
def test_what_spoils_timings_is_said(monkeypatch, load, pinned, said):
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(bench.torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("OMP_PROC_BIND", pinned)
    monkeypatch.delenv("GOMP_CPU_AFFINITY", raising=False)
    assert said is bench.disturbance() is None or said in bench.disturbance()


def test_sparse_layers_are_timed_beside_dense_ones():
    rows = sparse.table(64, 16, 32, rounds=2, depth=1, tokens=8)
    whole = [(row.code, row.sparsity) for row in rows if row.what == "LanguageModel, 1 x 16 to 32"]
    dense = [("torch, F.linear", 0.0), ("penstock, LanguageModel", 0.0)]
    assert whole == [*dense, *(("penstock, wina", sparsity) for sparsity in sparse.SPARSITIES)]
    assert {row.code for row in rows} >= {"torch, F.linear", "penstock, sparse_linear", "penstock, wina", "penstock, chess"}
    assert all(row.milliseconds > 0 and row.times > 0 for row in rows)
    assert all(row.times == 1 for row in rows if row.code == "torch, F.linear")


def test_a_model_with_torchs_maps_is_the_same_on_the_same_parameters():
    model, tokens = LanguageModel(32, 16, 2).eval(), torch.arange(12).view(1, 12)
    twin = sparse.with_torchs_maps(model)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in model.parameters()]
    assert sum(type(part) is torch.nn.Linear for part in twin.modules()) == 14
    torch.testing.assert_close(twin(tokens), model(tokens))
