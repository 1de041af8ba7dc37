"""EViT: which patches are kept, what becomes of the others, and that nothing is computed for them."""

import math

import pytest
import torch
import torch.nn.functional as F

from penstock.core import ConfigError, ShapeError
from penstock.inspect.work import counting
from penstock.models.evit import EViT


def model_of(seed=0, **more):
    torch.manual_seed(seed)
    model = EViT(3, 16, 4, features=5, patches=10, dtype=torch.float64, **{"drops": [1, 2], "keep": 0.5, **more})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.eval()


def inputs(batch=3, seed=1):
    return torch.randn(batch, 10, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defined(model, image):
    """Return the logits of one image by the definition, a patch and a head at a time."""
    x = [model.first[0, 0], *model.embedding(image)]
    x = [token + place for token, place in zip(x, model.places[0], strict=True)]
    for number, layer in enumerate(model.layers):
        q, k, v = (part[0] for part in layer.project(layer.norm(torch.stack(x)).unsqueeze(0)))
        heads, width = q.shape[1:]
        rows = [
            [torch.stack([q[i, h] @ k[j, h] for j in range(len(x))]).div(width**0.5).softmax(0) for h in range(heads)]
            for i in range(len(x))
        ]
        mixed = [torch.cat([row @ v[:, h] for h, row in enumerate(rows[i])]) for i in range(len(x))]
        x = [token + layer.out(y) for token, y in zip(x, mixed, strict=True)]
        n = len(x) - 1
        keep = math.ceil(model.keep * n) if number in model.drops else n
        if keep < n:
            a = sum(rows[0]) / heads
            order = sorted(range(1, n + 1), key=lambda j: -a[j].item())
            fused = sum(a[j] * x[j] for j in order[keep:])
            x = [x[0], *(x[j] for j in sorted(order[:keep])), *([fused] if model.fuse else [])]
        x = [token + layer.from_hidden(F.gelu(layer.to_hidden(layer.channel_norm(token)))) for token in x]
    return model.head(model.norm(x[0]))


@pytest.mark.parametrize("more", [{}, {"fuse": False}, {"keep": 0.75}, {"keep": 1.0}], ids=str)
def test_values_and_gradients_are_those_of_the_definition(more):
    model, x = model_of(**more), inputs(2)
    grads = []
    for call in (model, lambda x: torch.stack([defined(model, image) for image in x])):
        model.zero_grad()
        y = call(x)
        y.square().sum().backward()
        grads.append((y.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    for name, grad in grads[0][1].items():
        torch.testing.assert_close(grad, grads[1][1][name], msg=name)


def test_dropped_patches_are_in_no_later_layer_and_the_work_falls():
    model, seen = model_of(), []
    for layer in model.layers:
        layer.to_hidden.register_forward_hook(lambda _m, given, _y: seen.append(given[0].shape[1]))
    model(inputs())
    assert seen == [11, 1 + 5 + 1, 1 + 3 + 1, 5]
    work = []
    for share in (0.3, 0.6, 1.0):
        model.keep = share
        with counting() as counter:
            model(inputs())
        work.append(counter.total)
    assert work == sorted(work)
    assert work[0] < 0.65 * work[2]


def test_the_weights_are_those_of_the_model_that_keeps_all():
    plain, model = model_of(keep=1.0), model_of(seed=5)
    model.load_state_dict(plain.state_dict())
    model.keep = 1.0
    assert torch.equal(model(inputs()), plain(inputs()))


@pytest.mark.parametrize("more", [{}, {"fuse": False}, {"keep": 1.0}, {"drops": [0, 3]}], ids=str)
def test_its_share_is_that_of_the_tokens_computed(more):
    model, seen = model_of(**more), []
    for layer in model.layers:
        for part in (layer.project, layer.to_hidden):
            part.register_forward_hook(lambda _m, given, _y: seen.append(given[0].shape[1]))
    model(inputs())
    assert model.share(inputs()) == sum(seen) / (8 * 11)


@pytest.mark.parametrize("budget", [0.45, 0.6, 0.8, 1.0])
def test_it_keeps_a_budget(budget):
    model = EViT(3, 16, 4, features=5, patches=64)
    model.calibrate(torch.empty(0), budget)
    assert abs(model.share(torch.empty(0)) - budget) < 0.02
    with pytest.raises(ConfigError, match=r"evit: budget must be at least the 40\.4% of the first layers, got 0\.2"):
        model.calibrate(torch.empty(0), 0.2)


def test_one_graph_when_compiled():
    torch._dynamo.reset()
    model = model_of()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(inputs()), model(inputs()))


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="evit: drops must be blocks from 0 to 3"):
        model_of(drops=[4])
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match="keep must be a number above 0 and at most 1"):
            model_of(keep=share)
    with pytest.raises(ConfigError, match="share above 0 and at most 1"):
        model_of().keep = 0.0
    with pytest.raises(ShapeError, match="evit: x must be"):
        model_of()(inputs()[:, 1:])
