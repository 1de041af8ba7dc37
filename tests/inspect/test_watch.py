"""Watching gates: what is counted, that no hook is left behind, and that compiled code neither hides gates nor suffers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import penstock
from penstock.core import ConfigError, Gate
from penstock.inspect import watch


class Layer(nn.Module):
    """A module that is no mechanism, with gates whose values a test hands in."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, openness):
        return self.gate(openness)


def mechanisms():
    return nn.Sequential(penstock.build("glu", dim=8), penstock.build("swiglu", dim=8))


def hooks(model):
    return sum(len(part._forward_hooks) for part in model.modules())


def test_statistics_equal_those_of_numpy():
    glu = penstock.build("glu", dim=8, hidden=12)
    x, y = torch.randn(3, 5, 8), torch.randn(2, 7, 8)
    with watch(glu) as gates:
        glu(4 * x)
        glu(4 * y)
    (row,) = gates.table()
    g = torch.cat([torch.sigmoid(glu.to_gate(4 * part)).detach().flatten(0, 1) for part in (x, y)]).double().numpy()
    assert (row.path, row.mechanism, row.range) == ("gate", "glu", "(0, 1)")
    assert (row.calls, row.count) == (2, g.size)
    entropy = -(g * np.log2(g) + (1 - g) * np.log2(1 - g)).mean()
    units = g.mean(axis=0)
    expected = (g.mean(), g.min(), g.max(), (g < 0.1).mean(), (g > 0.9).mean(), entropy, units.min(), units.max())
    actual = (row.mean, row.least, row.most, row.closed, row.open, row.entropy, *row.load)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert row.histogram == np.histogram(g, bins=16, range=(0, 1))[0].tolist()
    assert 0 < row.closed < 1
    assert 0 < row.open < 1


def test_a_gate_without_a_card_has_no_range_and_no_entropy():
    layer = Layer()
    with watch(layer) as gates:
        layer(torch.tensor([[-9.0, 9.0]]))
    (row,) = gates.table()
    assert (row.mechanism, row.range, row.entropy) == ("", "", None)
    assert row.histogram == [1, *[0] * 14, 1]
    assert row.load == (-9.0, 9.0)


def test_routing_weights_have_an_entropy_over_the_last_axis():
    from toys import Shares

    router = Shares(dim=4, experts=4)
    with torch.no_grad():
        router.score.weight.zero_()
    with watch(router) as gates:
        router(torch.randn(6, 4))
    assert gates.table()[0].entropy == pytest.approx(1.0)
    with torch.no_grad():
        router.score.weight.copy_(1000 * torch.eye(4))
    with watch(router) as gates:
        router(torch.eye(4))
    assert gates.table()[0].entropy == pytest.approx(0.0, abs=1e-6)
    assert gates.table()[0].load == pytest.approx((0.25, 0.25))


def test_every_nth_row_is_looked_at():
    layer = Layer()
    values = torch.arange(20.0).view(2, 10, 1)
    with watch(layer, every=7) as gates:
        layer(values)
    (row,) = gates.table()
    assert (row.count, row.mean) == (3, 7.0)


def test_scalar_and_empty_openness():
    layer = Layer()
    with watch(layer) as gates:
        layer(torch.tensor(0.25))
        layer(torch.zeros(0, 3))
    (row,) = gates.table()
    assert (row.count, row.mean, row.calls) == (1, 0.25, 1)


def test_load_is_left_out_where_the_last_axis_changes_its_size():
    layer = Layer()
    with watch(layer) as gates:
        layer(torch.ones(2, 3))
        layer(torch.ones(2, 4))
    assert gates.table()[0].load is None
    assert gates.table()[0].mean == 1


def test_a_shared_gate_is_one_row_and_counts_every_call():
    layer = Layer()
    model = nn.Sequential(layer, layer)
    with watch(model) as gates:
        model(torch.ones(2, 3))
    (row,) = gates.table()
    assert (row.path, row.calls, row.count) == ("0.gate", 2, 12)


def test_a_gate_that_was_not_called_has_no_row():
    model = mechanisms()
    with watch(model) as gates:
        model[0](torch.randn(2, 8))
    assert [row.path for row in gates.table()] == ["0.gate"]


def test_a_gate_in_a_part_of_a_mechanism_belongs_to_the_mechanism():
    from toys import Nested

    with watch(nn.Sequential(Nested(dim=4))) as gates:
        gates.model(torch.randn(2, 4))
    assert [(row.path, row.mechanism) for row in gates.table()] == [("0.part.gate", "toy-nested")]


def test_nothing_is_read_from_the_device_while_the_model_runs():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    names = []
    model = mechanisms()
    with watch(model), Calls():
        model(torch.randn(2, 8))
    assert "scatter_add_" in names
    assert not {"_local_scalar_dense", "item", "nonzero"} & set(names)


@pytest.mark.gpu
def test_a_watched_model_is_not_waited_for():
    model, x = mechanisms().cuda(), torch.randn(2, 8, device="cuda")
    with watch(model) as gates:
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [row.calls for row in gates.table()] == [1, 1]


def test_gradients_and_outputs_are_those_of_the_unwatched_model():
    model, x = mechanisms(), torch.randn(3, 8)
    plain = model(x)
    plain.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with watch(model, keep=True):
        seen = model(x)
        seen.sum().backward()
    assert torch.equal(plain, seen)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))


def test_inference_mode_inside_and_outside():
    model, x = mechanisms(), torch.randn(3, 8)
    with torch.inference_mode(), watch(model) as inner:
        model(x)
    with watch(model) as outer:
        with torch.inference_mode():
            model(x)
        model(x)
    assert [row.calls for row in inner.table()] == [1, 1]
    assert [row.calls for row in outer.table()] == [2, 2]
    with torch.inference_mode():
        gates = watch(model)
    with gates:
        model(x)
    assert [row.calls for row in gates.table()] == [1, 1]


def test_low_precision_is_counted_in_full():
    glu = penstock.build("glu", dim=8, dtype=torch.bfloat16)
    with watch(glu, keep=True) as gates:
        glu(torch.randn(10_000, 8, dtype=torch.bfloat16))
    (row,) = gates.table()
    g = gates.values("gate").double().numpy()
    assert row.count == g.size
    assert row.mean == pytest.approx(g.mean(), rel=1e-6)
    assert row.entropy == pytest.approx(-(g * np.log2(g) + (1 - g) * np.log2(1 - g)).mean(), rel=1e-6)


def test_values_are_those_of_the_latest_call():
    layer = Layer()
    with watch(layer, keep=True) as gates:
        layer(torch.zeros(2))
        out = layer(torch.ones(3))
        out.mul_(5)
    assert gates.values("gate").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: watch([]), "watch: model must be a torch module, got list"),
        (lambda: watch(Layer(), every=0), "watch: every must be an integer of at least 1, got 0"),
        (lambda: watch(Layer()).values("gates"), "watch: unknown gate 'gates'; did you mean 'gate'?"),
        (lambda: watch(Layer()).values("gate"), "keep=True"),
        (lambda: watch(Layer(), keep=True).values("gate"), "watch: the gate 'gate' was not called"),
    ],
)
def test_a_slip_is_told_in_one_line(ask, message):
    with pytest.raises(ConfigError) as told:
        ask()
    assert message in str(told.value)


class TestHooks:
    def test_none_is_left_after_the_block(self):
        model = mechanisms()
        with watch(model):
            assert hooks(model) == 2
            model(torch.randn(2, 8))
        assert hooks(model) == 0

    def test_none_is_left_after_an_error_in_the_model(self):
        model = nn.Sequential(mechanisms(), nn.Linear(5, 5))
        with pytest.raises(RuntimeError), watch(model) as gates:
            model(torch.randn(2, 8))
        assert hooks(model) == 0
        assert len(gates.table()) == 2

    def test_another_hook_on_a_gate_stays(self):
        model = mechanisms()
        seen = []
        model[0].gate.register_forward_hook(lambda *_: seen.append(1))
        with watch(model):
            model(torch.randn(2, 8))
        model(torch.randn(2, 8))
        assert len(seen) == 2

    def test_nested_watches_count_apart(self):
        model, x = mechanisms(), torch.randn(2, 8)
        with watch(model) as outer:
            model(x)
            with watch(model[0]) as inner:
                model(x)
            model(x)
        assert [row.calls for row in outer.table()] == [3, 3]
        assert [row.calls for row in inner.table()] == [1]
        assert hooks(model) == 0

    def test_entered_again_it_goes_on_counting_until_it_is_cleared(self):
        model, x = mechanisms(), torch.randn(2, 8)
        gates = watch(model)
        for _ in range(2):
            with gates:
                model(x)
        assert gates.table()[0].calls == 2
        gates.clear()
        assert len(gates.table()) == 0
        with gates:
            model(x)
        assert gates.table()[0].calls == 1

    def test_entered_twice_at_once_is_refused(self):
        model = mechanisms()
        gates = watch(model)
        with gates, pytest.raises(ConfigError, match="already watching"):
            gates.__enter__()
        with gates, pytest.raises(ConfigError, match="while watching"):
            gates.clear()
        assert hooks(model) == 0

    def test_a_forgotten_copy_of_the_model_is_not_needed_for_pickling(self):
        import copy

        model = mechanisms()
        with watch(model):
            model(torch.randn(2, 8))
        assert hooks(copy.deepcopy(model)) == 0


class TestCompiled:
    @pytest.fixture(autouse=True)
    def _forget(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    def compile(self, model, counter):
        def backend(graph, _examples):
            counter.append(graph)
            return graph.forward

        return torch.compile(model, backend=backend, fullgraph=True)

    def test_gates_of_code_compiled_before_are_seen_and_it_is_kept(self):
        model, x, graphs = mechanisms(), torch.randn(2, 8), []
        compiled = self.compile(model, graphs)
        plain = compiled(x)
        with watch(model) as gates:
            torch.testing.assert_close(compiled(x), plain)
        compiled(x)
        assert [row.calls for row in gates.table()] == [1, 1]
        assert len(graphs) == 1, "the model was compiled again"

    def test_gates_are_compiled_in_on_demand_and_out_again(self):
        model, x, graphs = mechanisms(), torch.randn(2, 8), []
        compiled = self.compile(model, graphs)
        compiled(x)
        with watch(model, compiled=True) as gates:
            for _ in range(3):
                compiled(x)
        assert len(graphs) == 2, "one graph before, one with the hooks"
        assert [row.calls for row in gates.table()] == [3, 3]
        compiled(x)
        assert [row.calls for row in gates.table()] == [3, 3], "hooks remain in compiled code"
        assert len(graphs) == 3

    def test_compiled_and_eager_statistics_agree(self):
        model, x = mechanisms(), torch.randn(5, 8)
        with watch(model) as eager:
            model(x)
        with watch(model, compiled=True) as gates:
            torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        for one, other in zip(eager.table(), gates.table(), strict=True):
            assert one.histogram == other.histogram
            assert math.isclose(one.mean, other.mean, rel_tol=1e-6)
            assert (one.entropy is None) == (other.entropy is None)

    def test_an_error_gives_compiled_code_back(self):
        model, x, graphs = mechanisms(), torch.randn(2, 8), []
        compiled = self.compile(model, graphs)
        compiled(x)
        with pytest.raises(ZeroDivisionError), watch(model):
            _ = 1 / 0
        compiled(x)
        assert len(graphs) == 1
        with watch(model):
            pass
        compiled(torch.randn(3, 8))
        assert len(graphs) == 2, "the stance of the compiler was not restored"


def test_code_first_compiled_while_watching_is_forgotten(tmp_path):
    import subprocess
    import sys

    script = """
import sys, torch, penstock
model = torch.nn.Sequential(penstock.build("glu", dim=8))
assert "torch._dynamo" not in sys.modules
with penstock.inspect.watch(model) as gates:
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(2, 8))
compiled(torch.randn(2, 8))
print(gates.table()[0].calls)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "1", done.stderr
