import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from penstock.core import ConfigError
from penstock.gates import ConditionalMLP, ConditionalMLPNoisy, ConditionalMLPSmooth

LAYERS = [ConditionalMLP, ConditionalMLPSmooth, ConditionalMLPNoisy]


def layer(cls=ConditionalMLP, dim=8, blocks=8, **options):
    return cls(dim, 64, blocks, **options).double()


@pytest.mark.parametrize("cls", LAYERS)
def test_what_is_left_out_changes_nothing(cls):
    mlp = layer(cls)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    gates = torch.rand(3, 5, 8, dtype=torch.float64) * (torch.rand(3, 5, 8) < 0.4)
    left_out = mlp.eval().mix(x, gates)
    torch.testing.assert_close(left_out, mlp.train().mix(x, gates), rtol=1e-12, atol=1e-12)


def test_the_work_is_what_the_gates_open():
    mlp = layer().eval()
    x = torch.randn(40, 8, dtype=torch.float64)
    for share in (0.0, 0.25, 1.0):
        gates = torch.zeros(40, 8, dtype=torch.float64)
        gates.view(-1)[: int(share * 320)] = 1
        with FlopCounterMode(display=False) as counter:
            mlp.mix(x, gates)
        assert counter.get_total_flops() == int(share * 320) * 2 * 2 * 8 * 8


def test_closed_positions_pass_the_bias_only():
    mlp = layer().eval()
    assert torch.equal(mlp.mix(torch.randn(2, 8).double(), torch.zeros(2, 8).double()), mlp.out.bias.expand(2, 8))


@pytest.mark.parametrize("cls", LAYERS)
def test_the_penalty_pulls_the_rates_to_the_target(cls):
    mlp = layer(cls, dim=8, rate=0.1)
    x = torch.randn(400, 8, dtype=torch.float64)
    optimizer = torch.optim.Adam(mlp.gater.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        mlp.penalty(x).backward()
        optimizer.step()
    assert mlp.penalty(x) < 1e-3
    gates = torch.stack([mlp.draw(mlp.score(x)) for _ in range(20)])
    assert (gates != 0).double().mean().item() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("cls", LAYERS)
def test_evaluation_takes_the_likeliest(cls):
    mlp = layer(cls).eval()
    logits = torch.tensor([-4.0, -0.9, 0.3, 4.0], dtype=torch.float64)
    root = torch.sigmoid(logits).sqrt()
    expected = {
        ConditionalMLP: torch.tensor([0.0, 0, 1, 1]).double(),
        ConditionalMLPSmooth: root * (root > 0.5),
        ConditionalMLPNoisy: torch.tensor([0, 0, 0.3, 4]).double(),
    }[cls]
    torch.testing.assert_close(mlp.settle(logits), expected)


def test_blocks_must_divide_the_hidden_units():
    with pytest.raises(ConfigError, match="conditional-mlp: blocks must divide hidden, got hidden=10, blocks=4"):
        ConditionalMLP(8, 10, 4)


def test_it_is_buildable_from_the_width_alone():
    for dim in (1, 3, 8):
        assert ConditionalMLP(dim)(torch.randn(2, dim)).shape == (2, dim)
