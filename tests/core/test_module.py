"""Shapes that a mechanism checks, and the gate that shows what passes it."""

import pytest
import torch

import toys
from penstock.core import Gate, PenstockError, ShapeError


@pytest.fixture
def layer():
    return toys.Gated(8)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("... dim", (8,)),
        ("... dim", (2, 8)),
        ("... dim", (2, 3, 4, 8)),
        ("batch time dim", (0, 5, 8)),
        ("batch dim time", (2, 8, 3)),
        ("... dim hidden", (8, 6)),
    ],
)
def test_a_shape_that_fits_passes(layer, shape, sizes):
    layer.check_shape(torch.empty(sizes), shape)


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ("... dim", (9,), "toy-gated: x must have shape (... dim) with dim=8, got (9,)"),
        ("... dim", (), "toy-gated: x must have shape (... dim) with dim=8, got ()"),
        ("batch time dim", (2, 8), "toy-gated: x must have shape (batch time dim) with dim=8, got (2, 8)"),
        ("batch time dim", (1, 2, 3, 8), "toy-gated: x must have shape (batch time dim) with dim=8, got (1, 2, 3, 8)"),
        ("... dim hidden", (6, 8), "toy-gated: x must have shape (... dim hidden) with dim=8, hidden=6, got (6, 8)"),
        ("batch time", (3,), "toy-gated: x must have shape (batch time), got (3,)"),
    ],
)
def test_a_shape_that_does_not_fit_is_told_with_its_sizes(layer, shape, sizes, message):
    with pytest.raises(ShapeError) as told:
        layer.check_shape(torch.empty(sizes), shape)
    assert str(told.value) == message
    assert isinstance(told.value, PenstockError)
    assert isinstance(told.value, ValueError)


def test_the_argument_is_named_as_the_caller_calls_it(layer):
    with pytest.raises(ShapeError, match=r"toy-gated: the keys must have shape"):
        layer.check_shape(torch.empty(2), "batch time dim", "the keys")


def test_a_gate_is_an_identity_that_a_hook_sees():
    gate, seen = Gate(), []
    gate.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = torch.randn(3, requires_grad=True)
    assert gate(x) is x
    assert seen[0] is x
    assert not list(gate.parameters())


def test_a_contract_cannot_be_built():
    from penstock.core import ChannelMixer

    with pytest.raises(TypeError, match="abstract"):
        ChannelMixer()


def test_a_mixer_without_steps_says_so():
    from penstock.core import SequenceMixer, mechanism

    @mechanism("toy-whole", paper="toy", at="eq. 1", example={})
    class Whole(SequenceMixer):
        """Sees the whole sequence."""

        def forward(self, x):
            return x

    for ask in (lambda: Whole().init_state(1), lambda: Whole().extend(torch.zeros(1, 1, 1), None)):
        with pytest.raises(NotImplementedError, match="toy-whole does not go step by step"):
            ask()
