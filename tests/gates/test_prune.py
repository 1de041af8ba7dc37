import copy

import pytest
import torch
from torch import nn

from penstock.core import ConfigError
from penstock.gates import HardConcrete, TrainableGate, TrainableGateImage, prune, prune_norm


def whole_numbers(module):
    """Give a module integer weights, with which sums are exact in any order."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-5, 6, parameter.shape))
    return module.double()


def close(gate, *channels):
    with torch.no_grad():
        gate.weight.fill_(0.1)
        gate.weight[list(channels)] = -0.1


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_pruned_linear_layers_give_the_same_bits():
    first, second = whole_numbers(nn.Linear(5, 8)), whole_numbers(nn.Linear(8, 3))
    gate = TrainableGate(8).double()
    close(gate, 0, 3, 7)
    x = torch.randint(-5, 6, (20, 5)).double()
    before = second(gate(torch.relu(first(x))))
    small, reader = prune(first, gate.openness(), second)
    assert (small.out_features, reader.in_features) == (5, 5)
    assert torch.equal(reader(torch.relu(small(x))), before)
    assert count(small, reader) == 5 * 6 + 3 * 6
    assert count(first, second) == 8 * 6 + 3 * 9


@pytest.mark.parametrize(("conv", "spatial"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_pruned_convolutions_give_the_same_bits(conv, spatial):
    first = whole_numbers(conv(3, 6, 3, padding=1, stride=2, bias=False))
    second = whole_numbers(conv(6, 4, 3, padding=1))
    openness = torch.tensor([1, 0, 1, 1, 0, 0]).double()
    x = torch.randint(-5, 6, (2, 3, *[6] * spatial)).double()
    before = second(torch.relu(first(x)) * openness.view(-1, *[1] * spatial))
    small, reader = prune(first, openness, second)
    assert (small.out_channels, reader.in_channels) == (3, 3)
    assert small.bias is None
    assert torch.equal(reader(torch.relu(small(x))), before)


def test_a_linear_layer_may_read_flattened_feature_maps():
    first, second = whole_numbers(nn.Conv2d(2, 4, 3)), whole_numbers(nn.Linear(4 * 9, 5))
    gate = TrainableGateImage(4).double()
    close(gate, 1, 2)
    x = torch.randint(-5, 6, (3, 2, 5, 5)).double()
    before = second(gate(torch.relu(first(x))).flatten(1))
    small, reader = prune(first, gate.openness(), second)
    assert reader.in_features == 18
    assert torch.equal(reader(torch.relu(small(x)).flatten(1)), before)


@pytest.mark.parametrize("affine", [True, False])
def test_a_normalization_between_is_pruned_too(affine):
    first, norm, second = nn.Conv2d(2, 5, 3).double(), nn.BatchNorm2d(5, affine=affine).double(), nn.Conv2d(5, 2, 1).double()
    x = torch.randn(8, 2, 6, 6, dtype=torch.float64)
    norm(first(x))
    norm.eval()
    openness = torch.tensor([0, 1, 1, 0, 1]).double()
    before = second(torch.relu(norm(first(x))) * openness[:, None, None])
    small, reader = prune(first, openness, second)
    thin = prune_norm(norm, openness)
    assert thin.num_features == 3
    torch.testing.assert_close(reader(torch.relu(thin(small(x)))), before, rtol=1e-12, atol=1e-12)
    thin.train()(small(x))


def test_a_gate_that_is_half_open_moves_into_the_reader():
    first, second = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()
    gate = HardConcrete(6).double().eval()
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-5.0, -1.0, 0.0, 0.7, 5.0, -4.0]))
    x = torch.randn(9, 4, dtype=torch.float64)
    small, reader = prune(first, gate.openness(), second)
    assert small.out_features == 4
    torch.testing.assert_close(reader(small(x)), second(gate(first(x))))


def test_what_is_pruned_goes_on_training_and_the_given_layers_stay():
    first, second = nn.Linear(4, 6), nn.Linear(6, 2)
    first.bias.requires_grad_(False)
    kept = copy.deepcopy((first.state_dict(), second.state_dict()))
    small, reader = prune(first, torch.tensor([1.0, 0, 0, 1, 1, 1]), second)
    reader(small(torch.randn(3, 4))).sum().backward()
    assert small.weight.grad is not None
    assert not small.bias.requires_grad
    for layer, state in zip((first, second), kept, strict=True):
        for name, value in layer.state_dict().items():
            assert torch.equal(value, state[name])
    assert first.weight.grad is None


@pytest.mark.parametrize(
    ("layers", "openness", "message"),
    [
        ((nn.ReLU(), nn.Linear(4, 2)), torch.ones(4), "producer must be a Linear or a Conv layer, got ReLU"),
        ((nn.Linear(3, 4), nn.Embedding(4, 2)), torch.ones(4), "consumer must be a Linear or a Conv layer, got Embedding"),
        ((nn.Conv1d(4, 4, 1, groups=2), nn.Linear(4, 2)), torch.ones(4), "producer must not be grouped, got groups=2"),
        ((nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(5), r"openness must have shape \(4,\), one per channel, got \(5,\)"),
        (
            (nn.Linear(3, 4), nn.Linear(6, 2)),
            torch.ones(4),
            "consumer must read the producer's 4 channels, got one with 6 inputs",
        ),
        ((nn.Conv1d(3, 4, 1), nn.Conv1d(8, 2, 1)), torch.ones(4), "got one with 8 inputs"),
        ((nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(4), "all 4 channels are closed; take out the layers instead"),
    ],
)
def test_prune_refuses(layers, openness, message):
    with pytest.raises(ConfigError, match=f"prune: .*{message}"):
        prune(layers[0], openness, layers[1])


def test_prune_norm_refuses():
    with pytest.raises(ConfigError, match="norm must be a BatchNorm layer, got LayerNorm"):
        prune_norm(nn.LayerNorm(4), torch.ones(4))
    with pytest.raises(ConfigError, match=r"openness must have shape \(4,\), got \(3,\)"):
        prune_norm(nn.BatchNorm1d(4), torch.ones(3))


@pytest.mark.parametrize("shape", ["constant", "bump"])
def test_the_share_has_the_shaped_gradient(shape):
    gate = TrainableGate(4, shape=shape)
    close(gate, 1)
    share = gate.share()
    assert share == 0.75
    share.backward()
    p = torch.sigmoid(gate.weight.detach())
    expected = torch.ones(4) if shape == "constant" else p * (1 - p)
    torch.testing.assert_close(gate.weight.grad, expected / 4)


def test_the_gate_learns_from_what_its_channel_does_to_the_loss():
    gate = TrainableGateImage(3)
    close(gate, 2)
    x, wanted = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    (gate(x) * wanted).sum().backward()
    torch.testing.assert_close(gate.weight.grad, (x * wanted).sum((0, 2, 3)))
