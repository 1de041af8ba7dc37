"""Skip-middle: spans are computed for open tokens only, as if closed ones were masked."""

import pytest
import torch
import torch.nn.functional as F

from penstock.core import ConfigError, ShapeError, auxiliary_losses
from penstock.models import SkipMiddle, build_model
from penstock.ops import plan
from penstock.ops.attention import rotary


def model_of(layers=4, bias=0.0, scale=0.5, seed=0):
    torch.manual_seed(seed)
    model = SkipMiddle(11, 16, layers, dtype=torch.float64)
    with torch.no_grad():
        for score in model.scores:
            score.weight.normal_(std=scale)
            score.bias.fill_(bias)
    return model


def tokens(batch=3, time=12, seed=1):
    return torch.randint(11, (batch, time), generator=torch.Generator().manual_seed(seed))


def masked_layer(block, x, gate):
    """Return the layer of all tokens, closed ones masked."""
    before, after, channel_before, channel_after = block.norms
    q, k, v = block.project(before(x))
    scores = torch.einsum("bthd,bshd->bhts", rotary(q), rotary(k)) / block.project.width**0.5
    scores = scores + gate.clamp(1e-6, 1).log()[:, None, None, :]
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & (gate > 0)[:, None, None, :]
    weights = torch.where(seen, scores, -torch.inf).softmax(-1).nan_to_num(0.0)
    a = block.out(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))
    x = x + gate.unsqueeze(-1) * after(a)
    return x + gate.unsqueeze(-1) * channel_after(block.channel(channel_before(x)))


def masked(model, tokens):
    x, closed, gates = model.first_norm(model.embedding(tokens)), 0.0, []
    for block, score in zip(model.layers, model.scores, strict=False):
        closed = closed + F.relu(score(x).squeeze(-1))
        gates.append(1 - closed.clamp(0, 1))
        x = masked_layer(block, x, gates[-1])
    for block, gate in zip(model.layers[model.middle :], reversed(gates), strict=True):
        x = masked_layer(block, x, gate)
    return F.linear(model.norm(x), model.embedding.weight), gates


def test_values_and_gradients_equal_those_of_the_masked_form():
    model = model_of().eval()
    open_ = [(gate > 0).double().mean().item() for gate in masked(model, tokens())[1]]
    assert 0.2 < open_[1] < open_[0] < 1
    grads = []
    for call in (model, lambda x: masked(model, x)[0]):
        model.zero_grad()
        y = call(tokens())
        y.square().mean().backward()
        grads.append((y.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    for name, grad in grads[0][1].items():
        torch.testing.assert_close(grad, grads[1][1][name], msg=name)


def test_closed_tokens_are_not_computed_and_the_span_leaves_them_as_they_are(monkeypatch):
    monkeypatch.setattr(plan, "LEAST", 1)  # so that sequences with fewer open tokens are not filled up
    model, rows = model_of(bias=5.0).eval(), []
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, given, _y: rows.append(given[0].shape))
    expected = F.linear(model.norm(model.first_norm(model.embedding(tokens()))), model.embedding.weight)
    torch.testing.assert_close(model(tokens()), expected)
    assert rows == []
    model = model_of().eval()
    opened = [int((gate > 0).sum()) for gate in masked(model, tokens())[1]]
    counts = [0] * 4
    for n, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _m, x, _y, n=n: counts.__setitem__(n, counts[n] + x[1].numel()))
    model(tokens())
    assert counts == [*opened, *reversed(opened)]
    assert opened[1] < opened[0] < tokens().numel()


def test_its_share_is_that_of_the_layers_computed():
    model = model_of().eval()
    opened = [int((gate > 0).sum()) for gate in masked(model, tokens())[1]]
    assert model.share(tokens()) == sum(opened) / (2 * tokens().numel())


@pytest.mark.parametrize("budget", [0.4, 0.8, 1.0])
def test_a_calibrated_budget_is_kept_on_other_data(budget):
    model = model_of(6, bias=-2.0, scale=0.2).eval()
    model.calibrate(tokens(96, 16), budget)
    assert abs(model.share(tokens(96, 16, seed=2)) - budget) < 0.02
    moved = [score.bias + model.moved for score in model.scores[1:]]
    for score, bias in zip(model.scores[1:], moved, strict=True):
        score.bias.data = bias.data
    model.moved.zero_()
    torch.testing.assert_close(model(tokens()), masked(model, tokens())[0])


def test_budgets_that_cannot_be_kept_are_refused():
    for budget in (0, 1.1):
        with pytest.raises(ConfigError, match="budget: target must be a share above 0 and at most 1"):
            model_of().calibrate(tokens(), budget)
    with pytest.raises(ConfigError, match=r"skip-middle: budget must be at least the 50\.0% of the outer layers, got 0\.3"):
        model_of().calibrate(tokens(), 0.3)


def test_open_gates_are_a_transformer_with_norms_around_its_branches():
    model = model_of(bias=-50.0).eval()
    torch.testing.assert_close(model(tokens()), masked(model, tokens())[0])
    assert all(bool((gate == 1).all()) for gate in masked(model, tokens())[1])


def test_no_output_depends_on_later_tokens():
    model, x = model_of().eval(), tokens()
    changed = torch.cat([x[:, :6], (x[:, 6:] + 1) % 11], 1)
    torch.testing.assert_close(model(changed)[:, :6], model(x)[:, :6])


def test_the_losses_follow_the_gates_moments():
    model = model_of().train()
    model.weights.copy_(torch.tensor([[0.3, 0.5], [0.2, -0.1]]))
    weights = model.weights.clone()
    with auxiliary_losses(model) as losses:
        model(tokens())
    gates = [gate.detach() for gate in masked(model, tokens())[1]]
    mean = torch.stack([gate.mean() for gate in gates])
    variance = torch.stack([gate.var(correction=0) for gate in gates])
    torch.testing.assert_close(losses.total().detach(), (weights[0] * mean + weights[1] * variance).sum() / 2)
    line = torch.tensor([1.0, 0.0], dtype=torch.float64)
    off = torch.stack([mean - line, variance - line * (1 - line)])
    torch.testing.assert_close(model.weights, weights + 1e-3 * torch.where(off.abs() > 0.01, off, 0.0))


def test_spec_and_bad_arguments():
    model = model_of()
    assert build_model(model.spec()).spec() == model.spec()
    with pytest.raises(ConfigError, match="layers must be even, got 3"):
        SkipMiddle(11, 16, 3)
    with pytest.raises(ConfigError, match="needs a channel mixer"):
        SkipMiddle(11, 16, 2, channel=None)
    with pytest.raises(ShapeError, match="SkipMiddle: tokens must be integers"):
        model(torch.randn(2, 3))
