"""Sparse activations in trained models: what is dropped, what it costs, and that it is undone without a trace."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from penstock import adapt, build
from penstock.core import ConfigError, DataError
from penstock.inspect import watch
from penstock.models import LanguageModel
from penstock.nn.skipping.chess import Thresholded
from penstock.nn.skipping.inputs import SparseLinear
from penstock.ops import register_flops

METHODS = [adapt.WINA, adapt.TEAL, adapt.CHESS, adapt.CATS]
MAPS, LAYERS = METHODS[:2], METHODS[2:]


def language(dim=32, **choice):
    torch.manual_seed(0)
    return LanguageModel(16, dim, 2, **choice).eval()


def batches(count=2):
    torch.manual_seed(1)
    return [torch.randint(16, (4, 24)) for _ in range(count)]


def sparse(model, what, data, where="layers.*"):
    handle = adapt.insert(model, what, where)
    handle.calibrate(data, budgets=())
    return handle


@pytest.mark.parametrize("method", METHODS)
def test_removed_it_is_bit_for_bit_what_it_was(method):
    model, tokens = language(), batches()
    before = {name: (p, p.clone(), p.stride()) for name, p in model.named_parameters()}
    modules, expected = dict(model.named_modules()), model(tokens[0])
    handle = sparse(model, method(0.5), tokens)
    assert not torch.allclose(model(tokens[0]), expected)
    assert handle.remove() is model
    assert dict(model.named_modules()) == modules
    for name, p in model.named_parameters():
        same, value, stride = before[name]
        assert p is same
        assert torch.equal(p, value)
        assert p.stride() == stride
    assert torch.equal(model(tokens[0]), expected)
    assert not any("forward" in vars(part) or "_replaced_by" in vars(part) for part in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_attention_of_transformers_has_its_adapter_in_files(method, tmp_path):
    model, tokens = language(), batches()
    handle = sparse(model, method(0.4), tokens)
    expected = model(tokens[0])
    handle.save(tmp_path)
    other = language()
    assert adapt.load(other, tmp_path).budget == 0.4
    assert torch.equal(other(tokens[0]), expected)
    with pytest.raises(DataError, match="other weights"):
        adapt.load(language(dim=64), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_before_calibration_and_with_all_of_the_budget_nothing_changes(method):
    model, tokens = language().double(), batches()
    expected = model(tokens[0])
    handle = adapt.insert(model, method(0.5))
    torch.testing.assert_close(model(tokens[0]), expected)
    handle.calibrate(tokens, budgets=())
    assert not torch.allclose(model(tokens[0]), expected)
    handle.budget = 1.0
    torch.testing.assert_close(model(tokens[0]), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0.3, 0.7])
def test_the_asked_share_is_kept_on_the_data_and_about_it_on_other_data(method, budget):
    model, tokens = language(), batches(4)
    handle = sparse(model, method(budget), tokens[:3])
    for data, near in ((torch.cat(tokens[:3]), 0.035), (tokens[3], 0.08)):
        handle.spent()
        with watch(model) as gates:
            model(data)
        opened = [row.mean for row in gates.table() if row.path.endswith("keep")]
        assert opened
        assert all(abs(share - budget) < near for share in opened), opened
        assert abs(handle.spent() - budget) < near


@torch.no_grad()
@pytest.mark.parametrize("method", MAPS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_map_is_that_of_the_inputs_that_count_most(method, transposed):
    torch.manual_seed(0)
    x, layer = torch.randn(40, 12, dtype=torch.float64), torch.nn.Linear(12, 7).double()
    mine = layer
    if transposed:
        mine = pytest.importorskip("transformers").pytorch_utils.Conv1D(7, 12).double()
        mine.weight.copy_(layer.weight.mT)
        mine.bias.copy_(layer.bias)
    handle = sparse(torch.nn.Sequential(mine).eval(), method(0.5), [x])
    counts = layer.weight.norm(dim=0) if method is adapt.WINA else torch.ones(12)
    expected = torch.zeros(40, 7, dtype=torch.float64)
    level = (x.abs() * counts).flatten().quantile(0.5)
    for t in range(40):
        expected[t] += layer.bias
        for i in range(12):
            if x[t, i].abs() * counts[i] >= level:
                expected[t] += x[t, i] * layer.weight[:, i]
    torch.testing.assert_close(handle.model(x), expected, atol=1e-6, rtol=1e-6)
    ours = SparseLinear.of(layer, 0.5, informed=method is adapt.WINA)
    ours.calibrate(x)
    assert ((ours(x) - expected).abs().amax(-1) < 1e-6).float().mean() > 0.97
    handle.model.train()
    best = (x.abs() * counts).topk(6, -1).indices
    kept = torch.zeros_like(x).scatter(-1, best, 1.0) * x
    torch.testing.assert_close(handle.model(x), kept @ layer.weight.mT + layer.bias)


@torch.no_grad()
@pytest.mark.parametrize("method", LAYERS)
def test_a_layer_is_that_of_the_channels_that_count_most(method):
    torch.manual_seed(0)
    layer, x = build("swiglu", dim=6, hidden=10).double(), torch.randn(2, 30, 6, dtype=torch.float64)
    a = torch.nn.functional.silu(layer.to_gate(x))
    expected = Thresholded(copy.deepcopy(layer.to_value), copy.deepcopy(layer.out), 0.6, informed=method is adapt.CHESS)
    expected.calibrate(x, a)
    handle = sparse(torch.nn.Sequential(layer).eval(), method(0.4), list(x.split(1)))
    torch.testing.assert_close(handle.model(x), expected(x, a), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("method", "share"), [(adapt.WINA, 0.3), (adapt.TEAL, 0.3), (adapt.CHESS, (1 + 2 * 0.3) / 3)])
def test_a_row_costs_what_is_kept(method, share):
    register_flops()
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(build("swiglu", dim=128, hidden=512)).eval(), torch.randn(256, 128)
    sparse(model, method(0.3), [x])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for row in x[:20]:
            model(row)
    assert abs(counter.get_total_flops() / (20 * 2 * 3 * 128 * 512) - share) < 0.02


@torch.no_grad()
@pytest.mark.parametrize("method", MAPS)
def test_a_token_of_a_whole_model_reads_only_the_weights_of_what_is_kept(method):
    """Weights of NaN would show in the logits; all linear maps of the layers are given them where an input is dropped."""
    model, tokens = language(128), batches()
    handle, kept = sparse(model, method(0.5), tokens), {}
    _, state = model.follow(tokens[0][:1, :8], None)
    hooks = [
        part.keep.register_forward_hook(lambda _, __, keep, part=part: kept.update({part: keep.flatten()}))
        for part in handle.parts.values()
    ]
    expected, _ = model.follow(tokens[0][:1, 8:9], state)
    for hook in hooks:
        hook.remove()
    assert len(kept) == 14
    assert all(0.3 < keep.mean() < 0.7 for keep in kept.values())
    for part, keep in kept.items():
        part.layer.weight[:, keep == 0] = torch.nan
    assert torch.equal(model.follow(tokens[0][:1, 8:9], state)[0], expected)


def test_methods_stack_where_they_are_apart_and_are_refused_where_not():
    model, tokens = language(), batches()
    expected = model(tokens[0])
    first = sparse(model, adapt.CHESS(), tokens)
    second = sparse(model, adapt.TEAL(), tokens, "*.mixer.project.query")
    assert list(second.parts) == ["layers.0.mixer.project.query", "layers.1.mixer.project.query"]
    with pytest.raises(ConfigError, match="is replaced already: remove"):
        adapt.insert(model, adapt.WINA(), "layers.0.channel.out")
    second.remove()
    first.remove()
    assert torch.equal(model(tokens[0]), expected)


def test_it_can_still_be_trained_and_copied():
    model, tokens = language(), batches()
    handle = adapt.insert(model, adapt.WINA(), freeze=False)
    handle.calibrate(tokens, budgets=())
    copied = copy.deepcopy(model)
    assert copied.layers[0].channel.out.weight.mT.is_contiguous()
    model.train()(tokens[0]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(copied(tokens[0]), model.eval()(tokens[0]))


def test_a_weight_that_is_used_twice_is_left_alone():
    model = language(tied=False)
    model.layers[1].channel.out.weight = model.layers[0].channel.out.weight
    parts = adapt.insert(model, adapt.TEAL(), "*").parts
    assert "head" in parts
    assert "layers.0.channel.out" not in parts


def test_mistakes_are_named():
    model = language()
    for budget in (0, 1.1, True, "half"):
        with pytest.raises(ConfigError, match="budget must be"):
            adapt.WINA(budget)
    with pytest.raises(ConfigError, match="where must match a linear map of the model, and 'nowhere' matches none of lay"):
        adapt.insert(model, adapt.WINA(), "nowhere")
    with pytest.raises(ConfigError, match=r"a gated feed-forward layer of the model, and .* matches none of none"):
        adapt.insert(language(channel="ffn"), adapt.CATS())
    handle = adapt.insert(model, adapt.WINA())
    with pytest.raises(DataError, match="data must have a batch"):
        handle.calibrate([])
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(DataError, match=r"wina: what layers\.0\.mixer\S* is given on the data is not finite"):
        handle.calibrate([torch.full((1, 4), 3)])


@pytest.mark.peer
@pytest.mark.parametrize("method", METHODS)
def test_a_llama_of_transformers_is_made_sparse_too(method):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **sizes)).eval()
    handle = sparse(model, method(0.5), [{"input_ids": batch} for batch in batches()])
    assert len(handle.parts) == (14 if method in MAPS else 2)
    assert model.generate(batches()[0][:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)
