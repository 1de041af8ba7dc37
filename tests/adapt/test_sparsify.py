"""A trained model gets sparse activations, and gets rid of them again without a trace."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from penstock import build
from penstock.adapt import sparsify
from penstock.core import ConfigError, DataError
from penstock.inspect import watch
from penstock.models import LanguageModel
from penstock.ops import register_flops

METHODS = ("wina", "teal", "chess", "cats")


def language(dim=32, **choice):
    torch.manual_seed(0)
    return LanguageModel(16, dim, 2, **choice).eval()


def batches(count=2):
    torch.manual_seed(1)
    return [torch.randint(16, (4, 24)) for _ in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_removed_it_is_bit_for_bit_what_it_was(method):
    model, tokens = language(), batches()
    before = {name: (p, p.clone(), p.stride()) for name, p in model.named_parameters()}
    modules, expected = dict(model.named_modules()), model(tokens[0])
    changed = sparsify(model, method, 0.5, tokens)
    assert changed.paths
    assert not torch.allclose(model(tokens[0]), expected)
    assert changed.remove() is model
    assert dict(model.named_modules()) == modules
    for name, p in model.named_parameters():
        same, value, stride = before[name]
        assert p is same
        assert torch.equal(p, value)
        assert p.stride() == stride
    assert torch.equal(model(tokens[0]), expected)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_without_sparsity_nothing_changes(method):
    model, tokens = language().double(), batches()
    expected = model(tokens[0])
    sparsify(model, method, 0.0, tokens)
    torch.testing.assert_close(model(tokens[0]), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_the_asked_share_is_dropped_on_the_data_and_about_it_on_other_data(method, sparsity):
    model, tokens = language(), batches(4)
    sparsify(model, method, sparsity, tokens[:3], rows=10_000)
    for data, near in ((torch.cat(tokens[:3]), 0.035), (tokens[3], 0.08)):
        with watch(model) as gates:
            model(data)
        opened = [row.mean for row in gates.table() if row.path.endswith("keep")]
        assert opened
        assert all(abs(share - (1 - sparsity)) < near for share in opened), opened


@pytest.mark.parametrize(("method", "share"), [("wina", 0.3), ("teal", 0.3), ("chess", (1 + 2 * 0.3) / 3)])
def test_a_row_costs_what_is_kept(method, share):
    register_flops()
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(build("swiglu", dim=128, hidden=512)), torch.randn(300, 128)
    sparsify(model, method, 0.7, [x], where="*", rows=10_000)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for row in x[:20]:
            model(row)
    assert abs(counter.get_total_flops() / (20 * 2 * 3 * 128 * 512) - share) < 0.02


@torch.no_grad()
@pytest.mark.parametrize("method", ["wina", "teal"])
def test_a_token_of_a_whole_model_reads_only_the_weights_of_what_is_kept(method):
    """Weights of NaN would show in the logits; all linear maps of the layers are given them where an input is dropped."""
    model, tokens = language(128), batches()
    changed, kept = sparsify(model, method, 0.5, tokens), {}
    _, state = model.follow(tokens[0][:1, :8], None)
    maps = {path: model.get_submodule(path) for path in changed.paths}
    hooks = [m.keep.register_forward_hook(lambda _m, _x, keep, m=m: kept.update({m: keep.flatten()})) for m in maps.values()]
    expected, _ = model.follow(tokens[0][:1, 8:9], state)
    for hook in hooks:
        hook.remove()
    assert len(kept) == 14 == sum(isinstance(part, torch.nn.Linear) for part in model.modules())
    assert all(0.3 < keep.mean() < 0.7 for keep in kept.values())
    for each, keep in kept.items():
        each.weight[:, keep == 0] = torch.nan
    assert torch.equal(model.follow(tokens[0][:1, 8:9], state)[0], expected)


def test_only_what_is_named_is_replaced():
    model = language()
    changed = sparsify(model, "teal", 0.5, batches(), where="layers.1.mixer.*")
    assert changed.paths
    assert all(path.startswith("layers.1.mixer.") for path in changed.paths)


def test_methods_can_be_stacked_and_taken_off_in_turn():
    model, tokens = language(), batches()
    expected = model(tokens[0])
    first = sparsify(model, "chess", 0.5, tokens)
    second = sparsify(model, "teal", 0.5, tokens, where="*.mixer.project.query")
    assert len(second.paths) == 2
    second.remove()
    first.remove()
    assert torch.equal(model(tokens[0]), expected)


def test_it_can_still_be_trained_and_copied():
    model, tokens = language(), batches()
    sparsify(model, "wina", 0.5, tokens)
    copied = copy.deepcopy(model)
    assert copied.layers[0].channel.out.weight.mT.is_contiguous()
    model(tokens[0]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(copied(tokens[0]), model(tokens[0]))


def test_a_weight_that_is_used_twice_is_left_alone():
    model = language(tied=False)
    model.layers[1].channel.out.weight = model.layers[0].channel.out.weight
    paths = sparsify(model, "teal", 0.5, batches(), where="*").paths
    assert "head" in paths
    assert "layers.0.channel.out" not in paths


def test_mistakes_are_named():
    model, tokens = language(), batches()
    with pytest.raises(ConfigError, match="did you mean 'wina'"):
        sparsify(model, "winna", 0.5, tokens)
    for sparsity in (1, -0.1, True, "half"):
        with pytest.raises(ConfigError, match="sparsity must be a number of at least 0 and below 1"):
            sparsify(model, "wina", sparsity, tokens)
    with pytest.raises(ConfigError, match="where must match a linear map"):
        sparsify(model, "wina", 0.5, tokens, where="nowhere.*")
    with pytest.raises(ConfigError, match="gated feed-forward layer"):
        sparsify(language(channel="ffn"), "cats", 0.5, tokens)
    with pytest.raises(DataError, match="data must have a batch"):
        sparsify(model, "wina", 0.5, [])
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(DataError, match=r"what layers\.0\.mixer\S* is given on the data is not finite"):
        sparsify(model, "wina", 0.5, [torch.full((1, 4), 3)])
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.peer
@pytest.mark.parametrize("method", METHODS)
def test_a_llama_of_transformers_is_sparsified_too(method):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **sizes)).eval()
    tokens = batches()
    expected = model(tokens[0]).logits
    changed = sparsify(model, method, 0.5, [{"input_ids": batch} for batch in tokens])
    assert len(changed.paths) == (14 if method in ("wina", "teal") else 2)
    assert not torch.allclose(model(tokens[0]).logits, expected)
    assert model.generate(tokens[0][:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)
    changed.remove()
    assert torch.equal(model(tokens[0]).logits, expected)
