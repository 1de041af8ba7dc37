"""Early exits: examples that leave are not computed further, and get what a full computation would have given them."""

import pytest
import torch
import torch.nn.functional as F

from penstock.core import ConfigError, DataError, anneal
from penstock.models import JEIDNN, Classifier, EarlyExit, build_model
from penstock.models.exits import uncertainty


def backbone(dtype=torch.float64, seed=0, layers=4):
    torch.manual_seed(seed)
    return Classifier(3, 16, layers, features=4, dtype=dtype)


def inputs(batch=9, seed=1, dtype=torch.float64):
    return torch.randn(batch, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at_medians(model):
    """Set the level of each exit so that half of all examples are ready there."""
    with torch.no_grad():
        logits = model.every(inputs(64, seed=2))
        for n in range(len(model.after)):
            model.levels[n] = model.scores(logits[n], n).median()
    return model


def taken(model, x):
    """Return the exit that each example takes, the end counted last, and the logits there, all computed in full."""
    logits = model.every(x)
    exits = torch.full((len(x),), len(logits) - 1)
    for n in reversed(range(len(model.after))):
        exits = torch.where(model.scores(logits[n], n) >= model.levels[n], n, exits)
    return exits, torch.stack(logits)[exits, torch.arange(len(x))]


@pytest.mark.parametrize("kind", [EarlyExit, JEIDNN])
def test_each_example_gets_the_logits_of_its_exit_and_no_layer_behind_is_computed_for_it(kind):
    model, x = at_medians(kind(backbone(), [1, 3])).eval(), inputs(12)
    exits, expected = taken(model, x)
    assert len(exits.unique()) == 3
    rows = [0] * 4
    for n, block in enumerate(model.backbone.blocks()):
        block.register_forward_hook(lambda _m, given, _y, n=n: rows.__setitem__(n, rows[n] + len(given[0])))
    torch.testing.assert_close(model(x), expected)
    later = [(exits > 0).sum().item(), (exits > 1).sum().item()]
    assert rows == [12, later[0], later[0], later[1]]


@pytest.mark.parametrize("kind", [EarlyExit, JEIDNN])
def test_gradients_equal_those_of_the_full_computation(kind):
    model = at_medians(kind(backbone(), [1, 3]))
    grads = []
    for call in (model, lambda x: taken(model, x)[1]):
        model.zero_grad()
        call(inputs()).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_all_leave_at_once_or_none_does(level):
    model = EarlyExit(backbone()).eval()
    model.levels.fill_(level)
    last = 0 if level == 0.0 else 3
    torch.testing.assert_close(model(inputs()), model.every(inputs())[last])
    assert model(inputs(0)).shape == (0, 3)


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("kind", [EarlyExit, JEIDNN])
def test_a_calibrated_budget_is_kept_on_other_data(kind, budget):
    model = kind(backbone(torch.float32)).eval()
    model.calibrate(inputs(2000, seed=2, dtype=torch.float32), budget)
    exits, _ = taken(model, inputs(2000, seed=3, dtype=torch.float32))
    assert abs(model.costs[exits].mean() - budget) < 0.02


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="early-exit: after must be rising layers from 1 to 3"):
        EarlyExit(backbone(), [2, 2])
    with pytest.raises(ConfigError, match="early-exit: after must be rising layers"):
        EarlyExit(backbone(), [4])
    with pytest.raises(ConfigError, match="jei-dnn: backbone must classify whole sequences"):
        JEIDNN(Classifier(3, 16, 2, features=4, per_position=True))
    model = EarlyExit(backbone())
    for budget in (0, -1, 1.1):
        with pytest.raises(ConfigError, match="budget"):
            model.calibrate(inputs(), budget)
    with pytest.raises(ConfigError, match=r"budget must be at least the 25\.0% of the first exit"):
        model.calibrate(inputs(), 0.1)
    with pytest.raises(DataError, match="early-exit: the scores of token 0 are not numbers"):
        model(inputs() * torch.nan)


def test_the_probabilities_to_leave_are_a_product_and_sum_to_one():
    model = JEIDNN(backbone())
    logits = model.every(inputs())
    p = model.leaving(logits)
    g = [model.scores(one, n) for n, one in enumerate(logits[:-1])]
    torch.testing.assert_close(p[:, 1], g[1] * (1 - g[0]))
    torch.testing.assert_close(p[:, 3], (1 - g[0]) * (1 - g[1]) * (1 - g[2]))
    torch.testing.assert_close(p.sum(1), torch.ones(9, dtype=torch.float64))


def test_what_the_gates_look_at():
    sure, even = uncertainty(torch.tensor([[50.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(sure, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(even, torch.tensor([1 / 3, torch.tensor(3.0).log(), 0.0, torch.tensor(3.0).log()]))


def test_the_losses_of_heads_and_gates_are_those_of_the_definition():
    model, x, labels = JEIDNN(backbone(), [1, 2], cost=0.5), inputs(), torch.arange(9) % 3
    logits = model.every(x)
    error = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits], 1)
    p = model.leaving(logits)
    heads = sum((p[n, :2] * error[n, :2]).sum() * error[n, :2].sum() / (p[n, :2] * error[n, :2]).sum() for n in range(9)) / 9
    torch.testing.assert_close(model.joint_loss(x, labels), heads)
    best = (error + 0.5 * torch.tensor([0.25, 0.5, 1.0])).argmin(1)
    gates, total = 0.0, []
    for n in (0, 1):
        wanted = (n >= best).double()
        weight = min(float((1 - wanted.mean()) / max(float(wanted.mean()), 1e-6)), 5.0)
        g = model.scores(logits[n], n)
        total.append(-(weight * wanted * g.log() + (1 - wanted) * (1 - g).log()).mean())
    gates = sum(total)
    torch.testing.assert_close(model.gates_loss(x, labels), gates)


def test_a_frozen_backbone_stays_as_it_is():
    model = JEIDNN(backbone()).train()
    assert not model.backbone.training
    assert model.heads.training
    before = {name: p.clone() for name, p in model.backbone.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (model.heads_loss(inputs(), torch.arange(9) % 3) + model.gates_loss(inputs(), torch.arange(9) % 3)).backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.backbone.named_parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("backbone."))


def test_from_scratch_the_backbone_learns_with_the_heads_and_then_the_gates_do():
    torch.manual_seed(0)
    model = build_model({"model": "jei-dnn", "classes": 3, "dim": 16, "layers": 3, "features": 4}, dtype=torch.float64)
    x, labels, learned = inputs(), torch.arange(9) % 3, []
    for share in (0.0, 0.4, 0.6):
        anneal(model.train(), share)
        model.zero_grad()
        loss = model.objective(x, labels)
        loss.backward()
        learned.append({name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None})
        expected = model.joint_loss(x, labels) + model.gates_loss(x, labels) if share > 0.5 else model.heads_loss(x, labels)
        torch.testing.assert_close(loss, expected)
    assert learned == [{"backbone", "norms", "heads"}] * 2 + [{"norms", "heads", "gates"}]
    assert not model.backbone.training
    assert model.share(x) == pytest.approx(model.depths(x).mean())


@pytest.mark.slow
def test_compiled_the_program_stops_at_exits_and_gives_the_same():
    torch._dynamo.reset()
    model = EarlyExit(backbone(layers=3)).eval()
    model.calibrate(inputs(64, seed=2), 0.6)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(inputs()), model(inputs()))
