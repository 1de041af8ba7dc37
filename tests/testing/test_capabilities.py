"""Capabilities are what is measured: True, or the reason why not."""

import pytest
import torch

import penstock
import toys
from penstock.core import Backend, BackendError, Operation
from penstock.testing import capabilities
from penstock.testing.harness import draw, make
from penstock.testing.work import work

DOUBLE = Operation(
    "double",
    Backend("numba", lambda x: x + x, lambda x: "only on Sundays"),
    Backend("reference", lambda x: 2 * x, lambda x: None),
)


def test_a_sound_layer_can_do_everything():
    found = capabilities(toys.Gated)
    assert found == dict.fromkeys(("compile", "export", "bfloat16", "autocast", "double backward"), True)


def test_what_fails_is_shown_with_its_reason():
    def mix(self, x, gate):
        return self.out(gate * self.to_value(x)) * (1 if x.sum() > 0 else 2)

    found = capabilities(toys.variant(toys.AbstractGated, {"mix": mix}, **toys.GATED))
    assert found["double backward"] is True
    assert "Data-dependent" in found["compile"] or "data-dependent" in found["compile"], found["compile"]
    assert found["export"].startswith("torch.export: ")
    assert all("\n" not in reason for reason in found.values() if reason is not True)


def test_backends_are_listed_where_an_operation_is_called():
    def mix(self, x, gate):
        y = self.out(gate * self.to_value(x))
        return DOUBLE.pick(None, y)(y)

    pick = Operation.pick
    found = capabilities(toys.variant(toys.AbstractGated, {"mix": mix}, **toys.GATED))
    assert Operation.pick is pick, "the measurement left its mark"
    assert found["reference backend"] is True
    assert found["numba backend"] == "double: backend 'numba' cannot serve this call: only on Sundays"
    assert "there is no 'torch' backend" in found["torch backend"]


def test_work_counts_products_by_their_formula_and_the_rest_by_element():
    layer = torch.nn.Linear(4, 3)
    assert work(layer, (torch.zeros(2, 4),)) == 2 * 2 * 4 * 3
    assert work(torch.nn.ReLU(), (torch.zeros(2, 4),)) == 8
    assert work(torch.nn.Flatten(), (torch.zeros(2, 4, 5),)) == 0


def test_work_sees_through_attention_and_operations():
    def attend(x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    few, many = (work(attend, (torch.zeros(1, 1, time, 8),)) for time in (32, 64))
    assert 3.5 < many / few <= 4.5
    hgrn = make(penstock.get("hgrn-real"))
    few, many = (work(hgrn, draw(hgrn, batch=1, time=time)) for time in (32, 64))
    assert many / few == pytest.approx(2, rel=0.1)


def test_counting_leaves_the_choice_of_a_backend_alone():
    work(torch.nn.ReLU(), (torch.zeros(1),))
    with pytest.raises(BackendError):
        DOUBLE.pick("numba", torch.zeros(1))
    assert DOUBLE.pick(None, torch.zeros(1)) is DOUBLE.backends[1].call
