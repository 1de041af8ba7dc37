"""Early exits in trained classifiers: who has left is computed no further, and answers are those of the exits taken."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from cases import SIZES, batch, drawn, small

from penstock import adapt
from penstock.core import ConfigError
from penstock.models.exits import gating_loss, leaving, uncertainty, weighted_loss

LABELS = torch.tensor([1, 2, 0, 1, 4, 3])


def bert():
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**{**SIZES, "num_hidden_layers": 4}, num_labels=5)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def texts():
    """Return sentences of different lengths."""
    torch.manual_seed(1)
    tokens = torch.randint(1, 64, (6, 10))
    mask = (torch.arange(10) < torch.tensor([10, 4, 7, 10, 3, 9])[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def images():
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(6, 3, 16, 16)}


MODELS = [pytest.param(bert, texts, id="bert"), pytest.param(lambda: small("vit"), images, id="vit")]


def layers_of(model):
    return [place.host for place in adapt.places(model) if place.kind == "layer"]


def fitted(model, data, what=adapt.JEIDNN, budget=0.5, **words):
    handle = adapt.insert(model, what(budget), **words)
    torch.manual_seed(3)
    drawn(handle, None)
    handle.calibrate([data], budgets=())
    for part in handle.parts.values():
        part.level.sub_(1e-4)  # the level is a score that was seen, which rounding may move
    return handle


def answers(model, handle, data):
    """Return what examples that come alone are answered, and how many layers they take, by the equations."""
    streams, found = [], []
    parts = {part: handle.places[alias].index for alias, part in handle.parts.items()}
    hooks = [layer.register_forward_hook(lambda _, __, y: streams.append(y)) for layer in layers_of(model)]
    with handle.off():
        last = model(**data).logits
    for hook in hooks:
        hook.remove()
    for i in range(len(last)):
        taken = (last[i], len(streams))
        for part, index in parts.items():
            logits = part.head(part.norm(streams[index][i, 0]))
            gate = logits.softmax(-1).max() if part.to_gate is None else part.to_gate(uncertainty(logits)).sigmoid()
            if 1 - gate < part.level:
                taken = (logits, index + 1)
                break
        found.append(taken)
    return torch.stack([one[0] for one in found]), [one[1] for one in found]


@torch.no_grad()
@pytest.mark.parametrize("what", [adapt.JEIDNN, adapt.EarlyExits])
@pytest.mark.parametrize(("make", "draw"), MODELS)
def test_examples_get_the_answers_of_their_exits_and_are_computed_no_further(make, draw, what):
    model, data = make(), draw()
    handle = fitted(model, data, what)
    expected, depths = answers(model, handle, data)
    assert len(set(depths)) > 1
    rows = [0] * len(layers_of(model))
    for index, layer in enumerate(layers_of(model)):
        first = next(part for part in layer.modules() if isinstance(part, torch.nn.Linear))
        first.register_forward_hook(lambda _, given, __, index=index: rows.__setitem__(index, len(given[0])))
    handle.spent()
    found = model(**data, labels=LABELS)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, F.cross_entropy(expected, LABELS))
    assert rows == [sum(depth > index for depth in depths) for index in range(len(rows))]
    assert handle.spent() == pytest.approx((sum(depths) / 6 - 1) / (len(rows) - 1))
    pair = model(**data, labels=LABELS, return_dict=False)
    assert torch.equal(pair[1], found.logits)
    assert torch.equal(pair[0], found.loss)
    assert torch.equal(model(**data, return_dict=False)[0], found.logits)


@torch.no_grad()
def test_all_may_leave_at_once_or_none():
    model, data = bert(), texts()
    expected = model(**data).logits
    handle = fitted(model, data, where="layers.1")
    assert list(handle.parts) == ["layers.1"]
    part = handle.parts["layers.1"]
    part.level.fill_(2.0)
    assert len(model(**data).logits.unique(dim=0)) == 6
    assert handle.spent() == 0
    handle.budget = 1.0
    assert torch.equal(model(**data).logits, expected)
    assert model.bert(**data).last_hidden_state.shape == (6, 10, 32)  # which has no answers to give


@torch.no_grad()
def test_calibration_keeps_budgets_and_chance_costs_the_same():
    model = bert()
    torch.manual_seed(0)
    data = {"input_ids": torch.randint(1, 64, (64, 8))}
    handle = fitted(model, data)
    handle.calibrate([data], budgets=(0.3, 0.7))
    for budget in (0.3, 0.7):
        handle.budget = budget
        handle.spent()
        answered = model(**data).logits
        spent = handle.spent()
        assert abs(spent - budget) < 0.03
        for part in handle.parts.values():
            part.random = True
        assert not torch.equal(model(**data).logits, answered)
        assert handle.spent() == pytest.approx(spent)
        for part in handle.parts.values():
            part.random = False


def test_heads_and_gates_are_trained_for_each_other_and_the_model_is_not():
    model, data = bert(), texts()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    handle = adapt.insert(model, adapt.JEIDNN(cost=0.3, warm=1))
    torch.manual_seed(3)
    drawn(handle, None)
    streams = []
    hooks = [layer.register_forward_hook(lambda _, __, y: streams.append(y)) for layer in layers_of(model)]
    with torch.no_grad():
        last = model(**data).logits
    for hook in hooks:
        hook.remove()
    parts = list(handle.parts.values())
    logits = [part.head(part.norm(x[:, 0])) for part, x in zip(parts, streams, strict=False)]
    gates = torch.cat([part.to_gate(uncertainty(one)) for part, one in zip(parts, logits, strict=True)], 1)
    costs = 0.3 * torch.tensor([1, 2, 3, 4]) / 4
    gating = gating_loss([*logits, last], LABELS, gates, costs)
    plain = sum(weight * F.cross_entropy(one, LABELS) for weight, one in zip((3, 2, 1), logits, strict=True))
    model.train()
    own = F.cross_entropy(last, LABELS)
    torch.testing.assert_close(model(**data, labels=LABELS).loss, own + plain + gating)
    loss = model(**data, labels=LABELS).loss
    torch.testing.assert_close(loss, own + weighted_loss([*logits, last], LABELS, leaving(gates.sigmoid())) + gating)
    loss.backward()
    assert all(parameter.grad is not None for parameter in handle.parameters())
    assert not any(p.grad is not None for name, p in model.named_parameters() if "penstock_" not in name)
    assert handle.penalty().item() == pytest.approx(float((loss - own).detach()), rel=1e-5)


def test_where_it_does_not_belong_it_says_so():
    with pytest.raises(ConfigError, match="jei-dnn: it is for encoders that classify, and this model is a decoder"):
        adapt.insert(small("llama"), adapt.JEIDNN())
    with pytest.raises(ConfigError, match="jei-dnn: the model must choose one of several classes, got BertForMaskedLM"):
        adapt.insert(small("bert"), adapt.JEIDNN())
    model = small("vit")
    adapt.insert(model, adapt.EarlyExits())
    with pytest.raises(ConfigError, match="cannot stand beside early-exit"):
        adapt.insert(model, adapt.JEIDNN())
    assert model(**batch("vit")).logits.shape == (2, 5)
