"""Limits in which one layer is another, and layers against PyTorch's own."""

import pytest
import torch
from torch import nn

import penstock
from penstock.nn.recurrence.rwkv import NOTHING, weighted_mean
from penstock.ops import gated_linear_attention, linear_recurrence
from penstock.testing.harness import gates_held, make, seeded


@pytest.mark.parametrize(("name", "peer"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_pytorchs_layer_with_the_same_weights_gives_the_same(name, peer):
    ours = penstock.build(name, dim=5, dtype=torch.float64)
    theirs = peer(5, 5, batch_first=True, dtype=torch.float64)
    names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    x = torch.randn(3, 11, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.claim("gateloop")
def test_a_constant_decay_is_retention():
    with seeded(0):
        q, k, v = torch.randn(3, 1, 9, 1, dtype=torch.float64)
    gamma, theta = 0.9, 0.7
    turn = torch.polar(torch.tensor(gamma, dtype=torch.float64), torch.tensor(theta, dtype=torch.float64))
    y = q * linear_recurrence(turn, k * v)[0].real
    place = theta * torch.arange(9, dtype=torch.float64).view(1, 9, 1)
    turned = [torch.stack((part * place.cos(), part * place.sin()), dim=-1) for part in (q, k)]
    log_decay = torch.tensor(gamma, dtype=torch.float64).log()
    retained = gated_linear_attention(*turned, v.unsqueeze(-1), log_decay, scale=1.0)[0].squeeze(-1)
    torch.testing.assert_close(y, retained, rtol=1e-12, atol=1e-12)


@pytest.mark.claim("gateloop")
def test_a_closed_decay_leaves_the_present_token_only():
    layer = make(penstock.get("gateloop"))
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    changed = torch.cat((torch.randn(2, 4, 6, dtype=torch.float64), x[:, 4:]), dim=1)
    with torch.no_grad():
        free = layer(x)[:, 4:] - layer(changed)[:, 4:]
        layer.to_decay.weight.zero_()
        layer.to_decay.bias.fill_(-1e4)
        held = layer(x)[:, 4:] - layer(changed)[:, 4:]
    assert free.abs().max() > 1e-3
    assert not held.any()


@pytest.mark.claim("gsa")
def test_a_slot_is_untouched_or_overwritten_at_the_ends_of_its_gate():
    layer = make(penstock.get("gsa"))
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    _, state = layer.extend(x, None)
    with gates_held(layer, 1.0):
        assert torch.equal(layer.extend(x, state)[1], state)
    with gates_held(layer, 0.0):
        forgotten = layer.extend(x, state)[1]
    k, v = (torch.nn.functional.silu(part(x[:, -1])).view(2, 2, 1, 4) for part in (layer.to_key, layer.to_value))
    torch.testing.assert_close(forgotten, torch.cat((k, v), dim=-1).expand(2, 2, 3, 8))


@pytest.mark.claim("mingru")
def test_an_open_update_gate_forgets_all():
    layer = make(penstock.get("mingru"))
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    with gates_held(layer, 1.0):
        torch.testing.assert_close(layer(x), layer.to_candidate(x))


@pytest.mark.claim("gss")
def test_the_fourier_form_equals_the_recurrence_and_runs_on_longer_sequences():
    layer = make(penstock.get("gss"), {"size": 16}, dtype=torch.float32)
    with seeded(0):
        x = torch.randn(1, 300, 8)
    state, steps = layer.init_state(1), []
    with torch.no_grad():
        for token in x.unbind(1):
            y, state = layer.step(token, state)
            steps.append(y)
        whole = layer(x)
    assert (torch.stack(steps, 1) - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.claim("spikegpt-time")
def test_the_weighted_mean_has_exact_gradients_and_bears_any_key():
    with seeded(0):
        k, v = (torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        rate, bonus = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    start = torch.zeros(2, 3, 3, dtype=torch.float64)
    start[:, 2] = NOTHING

    def in_two_pieces(k, v, rate, bonus):
        y, state = weighted_mean(k[:, :2], v[:, :2], rate, bonus, start)
        return torch.cat((y, weighted_mean(k[:, 2:], v[:, 2:], rate, bonus, state)[0]), dim=1)

    assert torch.autograd.gradcheck(in_two_pieces, (k, v, rate, bonus))
    large, _ = weighted_mean(1e4 * k.detach(), v.detach(), rate.detach(), bonus.detach(), start)
    assert large.isfinite().all()


@pytest.mark.claim("yaad")
def test_a_value_far_off_moves_the_memory_no_further_than_its_limit():
    """The memory itself is held; a claim on outliers in a trained model would need a training run."""
    from penstock.ops.descent import YAAD

    def yaad(memory, k, v, keep, write, limit):
        return YAAD(tuple(part.unsqueeze(1) for part in (k, k, v, keep, write, limit)), memory, 1, 0)[1]

    with seeded(0):
        memory, k, v = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    k, ones, limit = nn.functional.normalize(k, dim=-1), torch.ones(1, 1, 4), torch.full((1, 1, 4), 0.5)
    near, far = (yaad(memory, k, scale * v, ones, ones, limit) - memory for scale in (1e2, 1e4))
    torch.testing.assert_close(far.norm(), torch.tensor(0.5))
    torch.testing.assert_close(near.norm(), torch.tensor(0.5))
    plain = yaad(memory, k, 1e4 * v, ones, ones, 1e6 * limit) - memory
    assert plain.norm() > 1e3
