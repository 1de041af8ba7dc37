"""Attention that has become a recurrence: its equation, its limits, decoding, padding, and what its state takes."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from cases import batch, small

from penstock import adapt
from penstock.adapt.linear import banded
from penstock.adapt.methods.liger import Liger
from penstock.adapt.methods.lizard import Lizard, teach
from penstock.core import ConfigError

METHODS = {"liger": lambda: Liger(4), "lizard": lambda: Lizard(4)}
MODELS = ("llama", "qwen3", "mixtral", "qwen3moe")


def logits(model, tokens, **words):
    with torch.no_grad():
        return model(input_ids=tokens, **words)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(model):
    return model.model.layers[0].self_attn


def heads(layer, x, groups):
    """Return queries, keys and values of a sequence, head by head, with keys and values repeated."""
    maps = (layer.q_proj, layer.k_proj, layer.v_proj)
    q, k, v = (each(x)[0].detach().double().unflatten(-1, (-1, 8)).numpy() for each in maps)
    return q, k.repeat(groups, 1), v.repeat(groups, 1)


def test_banded_equals_a_loop():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 4, 3), torch.randn(2, 9, 2, 3), torch.randn(2, 9, 2, 3)
    mask, sinks = torch.rand(2, 9) > 0.3, torch.randn(4, 2)
    y = banded(q, k, v, 4, mask, sinks)
    for b, t, h in np.ndindex(2, 5, 4):
        seen = [s for s in range(t + 4 - 3, t + 5) if mask[b, s]]
        scores = np.array([float(q[b, t, h] @ k[b, s, h // 2]) / 3**0.5 for s in seen])
        weights = np.exp(scores) / (np.exp(scores).sum() + sinks[h].exp().sum().item())
        wanted = sum((w * v[b, s, h // 2] for w, s in zip(weights, seen, strict=True)), torch.zeros(3))
        torch.testing.assert_close(y[b, t, h], wanted, rtol=1e-4, atol=1e-5)


def test_liger_without_a_window_is_its_equation():
    model, tokens = small("llama"), batch("llama")["input_ids"][:1]
    seen = []
    attention(model).o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    attention(model).register_forward_pre_hook(lambda _, args, words: seen.append(words["hidden_states"]), with_kwargs=True)
    adapt.insert(model, Liger(4, alpha=0.7, beta=0.0), where="layers.0.*")
    logits(model, tokens)
    q, k, v = heads(attention(model), seen[0], 1)
    for h in range(4):
        state = np.zeros((8, 8))
        for t in range(tokens.shape[1]):
            gate = (1 / (1 + np.exp(-k[t, h]))) ** (1 / 16)
            state = gate[:, None] * state + np.outer(softmax(k[t, h]), v[t, h])
            wanted = 0.7 * softmax(q[t, h]) @ state
            np.testing.assert_allclose(seen[1][0, t].unflatten(-1, (4, 8))[h].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_lizard_is_its_equation():
    torch.manual_seed(0)
    model, tokens = small("llama"), batch("llama")["input_ids"][:1]
    seen = []
    attention(model).o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    attention(model).register_forward_pre_hook(lambda _, args, words: seen.append(words["hidden_states"]), with_kwargs=True)
    handle = adapt.insert(model, Lizard(3, sinks=2), where="layers.0.*")
    (part,) = handle.parts.values()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.5)
    logits(model, tokens)
    q, k, v = heads(attention(model), seen[0], 1)
    gamma = torch.sigmoid(part.to_gate(seen[0]))[0, :, 0].detach().double().numpy()
    wq, wk, sinks = (x.detach().double().numpy() for x in (part.query_map, part.key_map, part.sinks))

    def phi(x, w):
        return np.concatenate([softmax(x @ w), softmax(-x @ w)])

    for h in range(4):
        for t in range(tokens.shape[1]):
            far = [gamma[s + 1 : t + 1].prod() * phi(q[t, h], wq[h]) @ phi(k[s, h], wk[h]) for s in range(t + 1)]
            wanted = sum(w * v[s, h] for s, w in enumerate(far)) / sum(far)
            near = np.exp([q[t, h] @ k[s, h] / 8**0.5 for s in range(max(0, t - 2), t + 1)])
            local = near @ v[max(0, t - 2) : t + 1, h] / (near.sum() + np.exp(sinks[h]).sum())
            got = seen[1][0, t].unflatten(-1, (4, 8))[h].numpy()
            np.testing.assert_allclose(got, wanted + part.alpha.item() * local, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_liger_with_a_whole_window_alone_is_the_model(name):
    model = small(name)
    expected = logits(model, batch(name)["input_ids"]).logits
    keys = list(model.state_dict())
    handle = adapt.insert(model, Liger(64, alpha=0.0, beta=1.0))
    torch.testing.assert_close(logits(model, batch(name)["input_ids"]).logits, expected, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == keys
    assert not list(handle.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_piece_by_piece_equals_the_whole_and_the_state_does_not_grow(method, name):
    model, tokens = small(name), batch(name)["input_ids"]
    adapt.insert(model, METHODS[method]())
    whole, cache, found, sizes = logits(model, tokens).logits, None, [], []
    for piece in (tokens[:, :5], tokens[:, 5:7], *tokens[:, 7:].split(1, 1)):
        out = logits(model, piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
        layer = cache.layers[0]
        sizes.append(sum(x.numel() for x in (*layer.states, layer.keys, layer.values)))
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-3, atol=1e-3)
    assert cache.get_seq_length() == 12
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_padding_on_the_left_changes_nothing(method):
    model, tokens = small("llama"), batch("llama")["input_ids"]
    adapt.insert(model, METHODS[method]())
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), tokens), 1)
    mask = (torch.arange(15) >= 3).long().expand(2, -1)
    places = (torch.arange(15) - 3).clamp_min(0).expand(2, -1)
    found = logits(model, padded, attention_mask=mask, position_ids=places).logits[:, 3:]
    torch.testing.assert_close(found, logits(model, tokens).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_it_generates(method):
    model, tokens = small("qwen3"), batch("qwen3")["input_ids"]
    adapt.insert(model, METHODS[method]())
    words = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids=tokens, **words)
    assert torch.equal(cached, model.generate(input_ids=tokens, use_cache=False, **words))
    model.generate(input_ids=tokens, num_beams=3, **words)


def test_teaching_brings_lizard_near_to_the_attention_and_trains_its_parts_alone():
    model, tokens = small("llama"), batch("llama")["input_ids"]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = logits(model, tokens).logits
    handle = adapt.insert(model, Lizard(4))
    gaps = teach(handle, [tokens] * 60, lr=1e-2)
    assert gaps[-1] < 0.6 * gaps[0]
    assert not torch.allclose(logits(model, tokens).logits, expected)
    handle.remove()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(ConfigError, match="rotary positions"):
        adapt.insert(small("gpt2"), Liger())
    model, tokens = small("llama"), batch("llama")["input_ids"]
    cache = logits(model, tokens, use_cache=True).past_key_values
    handle = adapt.insert(model, Liger())
    with pytest.raises(ConfigError, match="from its start"):
        logits(model, tokens, past_key_values=cache)
    cache = logits(model, tokens, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="softmax attention cannot read"):
        logits(handle.remove(), tokens, past_key_values=cache)
    other = adapt.insert(model, Liger())
    with pytest.raises(ConfigError, match="lizard"):
        teach(other, [tokens])
    with pytest.raises(ConfigError, match="replaced already"):
        adapt.insert(model, Lizard())


@pytest.mark.parametrize("method", METHODS)
def test_lora_on_the_maps_of_a_converted_layer_learns(method):
    """It takes the place of the maps after the conversion has taken over the layer."""
    peft = pytest.importorskip("peft")
    model = small("llama")
    adapt.insert(model, METHODS[method]())
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    tuned(**batch("llama"), labels=batch("llama")["input_ids"], use_cache=False).loss.backward()
    missed = [name for name, p in tuned.named_parameters() if "lora_B" in name and (p.grad is None or not p.grad.any())]
    assert not missed
    assert sum("lora_B" in name for name, _ in tuned.named_parameters()) == 4 * len(model.model.layers)


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_of_fixed_size_gives_way_to_states(method):
    """Its mask has room for tokens that are still to come, which are not there and no padding either."""
    model, tokens = small("llama"), batch("llama")["input_ids"]
    adapt.insert(model, METHODS[method]())
    model.eval()
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    words = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None, "attention_mask": mask}
    expected = model.generate(tokens, **words)
    found = model.generate(tokens, **words, cache_implementation="static", disable_compile=True)
    assert torch.equal(found, expected)
