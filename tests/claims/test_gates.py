"""What the papers say that gates trained as such do. Figures in comments are ranges over the seeds that were tried."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from penstock.gates import (
    Budget,
    ConditionalMLP,
    ConditionalMLPNoisy,
    ConditionalMLPSmooth,
    CostGate,
    HardConcrete,
    LeastVarianceBaseline,
    ReZero,
    TrainableGate,
    bernoulli,
    prune,
    reinforce,
)


class Deep(nn.Module):
    """A hundred layers, gated residuals or plain."""

    def __init__(self, gated, depth=100, width=32):
        super().__init__()
        self.read, self.out = nn.Linear(8, width), nn.Linear(width, 4)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(ReZero() for _ in range(depth)) if gated else None
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def body(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if self.gates is None else self.gates[i](x, lambda x, layer=layer: F.relu(layer(x)))[0]
        return x

    def forward(self, x):
        return self.out(self.body(self.read(x)))


@pytest.mark.slow
@pytest.mark.claim("rezero")
def test_rezero_trains_a_hundred_layers_where_the_plain_network_stalls():
    losses = {}
    for gated in (True, False):
        torch.manual_seed(0)
        net = Deep(gated)
        x = torch.randn(512, 8)
        y = (x[:, 0] * x[:, 1] > 0).long() * 2 + (x[:, 2] * x[:, 3] > 0).long()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(90):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        losses[gated] = loss.item()
        if gated:
            assert min(abs(gate.alpha.item()) for gate in net.gates) > 0
    assert losses[True] < 0.05  # 0.000 to 0.007 over 7 seeds
    assert losses[False] > 0.7  # 0.88 to 1.39


@pytest.mark.claim("rezero")
def test_a_fresh_network_has_singular_values_of_one():
    net = Deep(gated=True).double()
    x = torch.randn(32, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(net.body, x)
    torch.testing.assert_close(torch.linalg.svdvals(jacobian), torch.ones(32, dtype=torch.float64))
    plain = torch.autograd.functional.jacobian(Deep(gated=False).double().body, x)
    assert torch.linalg.svdvals(plain).median() < 1e-3


@pytest.mark.claim("rezero")
def test_at_the_first_step_only_the_gates_move():
    net = Deep(gated=True)
    F.cross_entropy(net(torch.randn(64, 8)), torch.randint(4, (64,))).backward()
    assert all(not layer.weight.grad.any() for layer in net.layers)
    assert all(gate.alpha.grad != 0 for gate in net.gates)


@pytest.mark.claim("trainable-gate")
@pytest.mark.parametrize("shape", ["constant", "bump"])
def test_trainable_gates_close_the_channels_that_are_no_use(shape):
    """Six of sixteen channels carry the output. Penalty and task find them; taking the others out changes nothing."""
    torch.manual_seed(0)
    useful = torch.randperm(16)[:6]
    first, second, gate = nn.Linear(10, 16), nn.Linear(16, 4), TrainableGate(16, shape=shape)
    with torch.no_grad():
        second.weight.mul_(torch.full((16,), 0.08).index_fill(0, useful, 4.0))
    teacher = copy.deepcopy(nn.Sequential(first, nn.ReLU(), second)).requires_grad_(False)
    budget = Budget(6 / 16, "channels")
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters(), *gate.parameters()], 3e-3)
    for _ in range(300):
        x = torch.randn(128, 10)
        loss = F.mse_loss(second(gate(torch.relu(first(x)))), teacher(x)) + budget.penalty(gate.openness())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sorted(gate.openness().nonzero().flatten().tolist()) == sorted(useful.tolist())  # in 6 of 6 seeds
    x = torch.randn(1000, 10)
    gated = second(gate(torch.relu(first(x))))
    assert F.mse_loss(gated, teacher(x)) < 0.01 * teacher(x).var()
    small, reader = prune(first, gate.openness(), second)
    assert small.out_features == 6
    torch.testing.assert_close(reader(torch.relu(small(x))), gated)


@pytest.mark.claim("hard-concrete")
def test_hard_concrete_gates_find_the_inputs_that_count():
    torch.manual_seed(0)
    weights = torch.zeros(20)
    used = torch.randperm(20)[:5]
    weights[used] = torch.tensor([0.6, -0.7, 0.9, 1.2, -1.4])
    gate, layer = HardConcrete(20), nn.Linear(20, 1)
    optimizer = torch.optim.Adam([{"params": layer.parameters(), "lr": 0.01}, {"params": gate.parameters(), "lr": 0.03}])
    for _ in range(600):
        x = torch.randn(128, 20)
        y = x @ weights + 0.3 * torch.randn(128)
        loss = F.mse_loss(layer(gate(x)).squeeze(-1), y) + 0.6 * gate.share()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gate.eval()
    assert sorted(gate.openness().nonzero().flatten().tolist()) == sorted(used.tolist())  # in 6 of 6 seeds
    assert gate.openness()[used].tolist() == [1] * 5
    assert F.mse_loss(layer(gate(x)).squeeze(-1), y) < 0.15  # the noise alone is 0.09


BLOCKS, RATE = 12, 0.25


def clusters(seed):
    """Return batches of a task that is another linear map in each of six clusters."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2.5 * torch.randn(6, 8, generator=generator)
    maps = torch.randn(6, 8, 8, generator=generator) / 8**0.5

    def draw(n):
        place = torch.randint(6, (n,), generator=generator)
        offset = torch.randn(n, 8, generator=generator)
        return centers[place] + offset, torch.einsum("nij,nj->ni", maps[place], offset)

    return draw


def blind_loss(mlp, x, y):
    """Return the loss with gates that open at the rate and look at nothing."""
    return F.mse_loss(mlp.mix(x, (torch.rand(len(x), BLOCKS) < RATE).float()), y)


def gated_loss(mlp, x, y):
    return F.mse_loss(mlp(x), y) + mlp.penalty(x)


def reinforced_loss(baseline):
    def loss(mlp, x, y):
        scores = mlp.score(x)
        gates = bernoulli(scores)
        error = (mlp.mix(x, gates) - y).square().mean(-1)
        term = reinforce(gates, scores, error, baseline(gates, scores, error.detach()))
        return error.mean() + mlp.penalty(x) + term.mean()

    return loss


def trained(cls, loss, seed=0):
    """Return a trained layer, its share of the variance that is not explained, and the share of gates that are open."""
    torch.manual_seed(seed)
    draw = clusters(seed)
    mlp = cls(8, 96, BLOCKS, gater=16, rate=RATE)
    optimizer = torch.optim.Adam(mlp.parameters(), 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss(mlp, *draw(256)).backward()
        optimizer.step()
    x, y = draw(4000)
    with torch.no_grad():
        gates = (torch.rand(4000, BLOCKS) < RATE).float() if loss is blind_loss else mlp.draw(mlp.score(x))
        error = F.mse_loss(mlp.mix(x, gates), y) / y.var()
    return mlp, error.item(), (gates != 0).float().mean().item()


@pytest.mark.slow
@pytest.mark.claim("conditional-mlp")
def test_straight_through_gates_switch_blocks_at_their_rate_and_are_worth_it():
    """Gates that look at the input halve the error of gates that do not, at nearly the same number of open blocks."""
    mlp, error, rate = trained(ConditionalMLP, gated_loss)
    _, blind, _ = trained(ConditionalMLP, blind_loss)
    assert error < 0.45  # 0.29 to 0.40 over 6 seeds
    assert blind > 0.6  # 0.67 to 0.72
    assert rate == pytest.approx(RATE, abs=0.1)  # 0.30 to 0.33: the task pulls it up
    x, y = clusters(0)(4000)
    mlp.eval()
    assert F.mse_loss(mlp(x), y) / y.var() < 0.45  # 0.26 to 0.39


@pytest.mark.slow
@pytest.mark.claim("conditional-mlp-smooth")
@pytest.mark.claim("conditional-mlp-noisy")
@pytest.mark.claim("reinforce")
def test_straight_through_trains_the_conditional_network_best():
    """The paper's order at the top: straight-through first. Below it, REINFORCE and the noisy rectifier are near each other,
    and stochastic times smooth learns slowest; at this length it is not yet better than gates that see nothing.
    """
    _, straight, _ = trained(ConditionalMLP, gated_loss)
    errors = {
        "reinforce": trained(ConditionalMLP, reinforced_loss(LeastVarianceBaseline(BLOCKS))),  # 0.57 to 0.63
        "noisy": trained(ConditionalMLPNoisy, gated_loss),  # 0.62 to 0.75
        "smooth": trained(ConditionalMLPSmooth, gated_loss),  # 0.76 to 0.82
    }
    for _, error, rate in errors.values():
        assert error > straight + 0.1
        assert error < 0.9
        assert rate == pytest.approx(RATE, abs=0.03)  # 0.25 to 0.27
    assert errors["reinforce"][1] < errors["smooth"][1] - 0.1


@pytest.mark.claim("prism")
def test_a_slow_look_near_the_threshold_gets_most_of_what_a_slow_look_everywhere_gets():
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(2, 20_000, generator=generator, dtype=torch.float64)
    need, accept = torch.sigmoid(logits)
    fast = torch.sigmoid(logits + 0.6 * torch.randn(2, 20_000, generator=generator, dtype=torch.float64))
    costs, shares = [], []
    for margin in (0, 0.05, 0.1, 0.2, 1):
        gate = CostGate(1, 2, margin)
        verdicts = gate(*fast, lambda events: (need[events], accept[events]))
        costs.append(gate.cost(verdicts.act, need, accept).mean().item())
        shares.append(verdicts.slow.mean().item())
    assert costs == sorted(costs, reverse=True)
    assert (shares[0], shares[-1]) == (0, 1)
    assert shares[2] < 0.25  # 0.20 over 5 seeds
    assert costs[0] - costs[2] > 0.6 * (costs[0] - costs[-1])  # 0.67 to 0.69
