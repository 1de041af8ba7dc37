"""What gating softmax attention does, at toy scale."""

import pytest
import torch
import torch.nn.functional as F
from toy import fit, opened, read_text

import penstock
from penstock.models import LanguageModel
from penstock.ops.attention import rotary


@pytest.mark.claim("gated-attention")
@pytest.mark.parametrize("position", ["G1", "G2", "G3", "G4", "G5"])
@pytest.mark.parametrize("grain", ["elementwise", "headwise"])
def test_a_gate_that_stays_open_is_plain_attention(position, grain):
    """Open by its bias; and with neither weight nor bias a gate after attention is one half."""
    gated = penstock.build("gated-attention", dim=8, heads=2, position=position, grain=grain, bias=True).double()
    plain = penstock.build("attention", dim=8, heads=2, bias=True).double()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gate" not in name})
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        gated.to_gate.weight.zero_()
        gated.to_gate.bias.fill_(40.0)
        torch.testing.assert_close(gated(x), plain(x))
        gated.to_gate.bias.zero_()
        if position in ("G1", "G5"):
            torch.testing.assert_close(gated(x), plain(x) / 2)


@pytest.mark.claim("gated-attention-ns")
def test_the_control_for_sparsity_is_never_less_than_half_open():
    gated = penstock.build("gated-attention-ns", dim=8, heads=2)
    with torch.no_grad():
        gated.to_gate.weight.mul_(100)
    gate = opened(gated, torch.randn(2, 50, 8))
    assert gate.min() >= 0.5
    assert gate.max() > 0.99


@pytest.mark.claim("gated-attention-additive")
def test_what_is_added_goes_through_the_output_map():
    gated = penstock.build("gated-attention-additive", dim=8, heads=2).double()
    plain = penstock.build("attention", dim=8, heads=2).double()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gate" not in name})
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(gated(x) - plain(x), gated.out(F.silu(gated.to_gate(x))))


def seldom_copy(first_is_empty):
    """Draw sequences in which a marked token asks for the content before it, and all others for nothing."""
    x = torch.zeros(64, 24, 16)
    content, marked = torch.randn(64, 24, 6), torch.rand(64, 24) < 0.2
    marked[:, :2] = False
    if first_is_empty:
        content[:, 0] = 0
        x[:, 0, 0] = 1
    x[:, 1:, 1] = 1
    x[..., 2] = 2 * marked
    x[..., 4:10] = content
    y = torch.zeros_like(x)
    y[..., 4:10] = content.roll(1, dims=1) * marked.unsqueeze(-1)
    return x, y, marked


def learn_to_copy(name, seed, first_is_empty, **options):
    """Return the trained layer, and the share of the target's variance that it leaves."""
    torch.manual_seed(seed)
    layer = penstock.build(name, dim=16, heads=1, **options)
    fit(
        layer,
        lambda step: seldom_copy(first_is_empty)[:2],
        lambda layer, x, y: F.mse_loss(layer(x), y),
        steps=600,
        learning_rate=5e-3,
    )
    x, y, _ = seldom_copy(first_is_empty)
    with torch.no_grad():
        return layer, (F.mse_loss(layer(x), y) / y.square().mean()).item()


@pytest.mark.slow
@pytest.mark.claim("gated-attention")
def test_only_a_gate_can_do_nothing_where_there_is_no_sink():
    """A softmax hands out all its weight; with no empty token to spend it on, the layer cannot stay silent.

    Left of the variance, over five seeds: 0.46 to 0.51 without a gate, 0.32 to 0.38 where it cannot close, 0.30 to 0.42 at
    the values (G2), 0.12 to 0.17 by head at G1, 0.03 to 0.06 by channel: the paper's order of positions and functions.
    """
    left = [
        learn_to_copy(name, 0, first_is_empty=False, **options)[1]
        for name, options in (
            ("gated-attention", {}),
            ("gated-attention", {"grain": "headwise"}),
            ("gated-attention-ns", {"grain": "headwise"}),
            ("attention", {}),
        )
    ]
    assert left == sorted(left)
    assert left[0] < 0.1
    assert left[1] < 0.2
    assert left[3] > 0.4


def sink(layer, x):
    """Return the attention of each query to the first token `(B, T)` of a layer with one head."""
    q, k, _ = layer.project(x)
    scores = rotary(q)[:, :, 0] @ rotary(k)[:, :, 0].mT / q.shape[-1] ** 0.5
    later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    return scores.masked_fill(later, -torch.inf).softmax(-1)[..., 0]


@pytest.mark.slow
@pytest.mark.claim("gated-attention")
def test_a_gate_takes_some_of_the_sinks_work():
    """Where the first token is empty, a silent query spends its attention there: 0.981 to 0.987 of it over five seeds.

    With the gate it is 0.935 to 0.975, less by 0.012 at least at each seed, and the gate is 0.32 to 0.34 open for silent
    queries and 0.70 to 0.75 for those that read. The fall from 0.47 to 0.05 of the large models does not show in one layer,
    where a sink costs nothing.
    """
    plain, _ = learn_to_copy("attention", 0, first_is_empty=True)
    gated, left = learn_to_copy("gated-attention", 0, first_is_empty=True)
    x, _, marked = seldom_copy(first_is_empty=True)
    silent = ~marked
    silent[:, :4] = False
    with torch.no_grad():
        assert sink(gated, x)[silent].mean() < sink(plain, x)[silent].mean() - 0.01
    gate = opened(gated, x)
    assert gate[silent].mean() < 0.7 * gate[marked].mean()
    assert left < 0.02


@pytest.mark.slow
@pytest.mark.claim("gated-attention")
def test_a_gated_language_model_stands_a_larger_learning_rate_with_sparse_gates():
    """At equal parameters and five times the best learning rate, over five seeds.

    Losses are 2.19 to 2.30 with gates and 2.48 to 2.56 without, better by 0.21 at least at each seed; gates are 0.24 to 0.29
    open, and 47% to 53% of them less than 0.1. At the best rate the two are within 0.05, the gated better at four seeds.
    """
    losses, gates = [], []
    for mixer, hidden in (("attention", 170), ("gated-attention", 149)):
        torch.manual_seed(0)
        model = LanguageModel(256, 64, 2, mixer, {"mechanism": "swiglu", "hidden": hidden})
        for block in model.layers:
            if mixer == "gated-attention":
                block.mixer.gate.register_forward_hook(lambda gate, given, openness: gates.append(openness.detach()))
        losses.append(read_text(model, 0, steps=200, learning_rate=2e-2))
    assert losses[1] < losses[0] - 0.1
    last = torch.cat([gate.flatten() for gate in gates[-2:]])
    assert last.mean() < 0.4
    assert (last < 0.1).float().mean() > 0.3
