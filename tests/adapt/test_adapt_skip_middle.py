"""Skip-middle in trained decoders: what it computes is what its definition says, and nothing else is computed."""

import pytest
import torch
import transformers as hf
from cases import GROUPED, batch, middle, skipping, small
from test_adapters import run

from penstock import adapt
from penstock.adapt.methods.skip_middle import SkipMiddlePart
from penstock.core import ConfigError

TOKENS = batch("llama")["input_ids"]


def olmo2():
    """Return a decoder with norms behind its branches, as the paper's."""
    torch.manual_seed(0)
    model = hf.Olmo2ForCausalLM(hf.Olmo2Config(**{**GROUPED, "num_hidden_layers": 4})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 * (parameter.dim() == 1), std=0.2)
    return model


def turned(x, angles):
    """Return `x` `(H, T, D)` turned by its positions."""
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def attended(layer, x, gate, rate):
    """Return what the attention of a LLaMA layer gives the tokens that are open, token by token: `(T, D) -> (T, D)`."""
    core, y = layer.self_attn, torch.zeros_like(x)
    q, k, v = (each(x).unflatten(-1, (-1, 8)).transpose(0, 1) for each in (core.q_proj, core.k_proj, core.v_proj))
    angles = torch.arange(len(x))[:, None] * torch.cat((rate, rate))
    q, k = turned(q, angles), turned(k, angles)
    for i in range(len(x)):
        seen = [j for j in range(i + 1) if gate[j] > 0]
        if gate[i] > 0:
            scores = (q[:, None, i] * k[:, seen]).sum(-1) / 8**0.5 + gate[seen].log()
            y[i] = core.o_proj((scores.softmax(-1).unsqueeze(-1) * v[:, seen]).sum(1).flatten())
    return y


def defined(model, gates, tokens):
    """Return the logits of a LLaMA whose layers are gated by `(w, b)` each, by the paper's equations."""
    h, closed, kept = model.model.embed_tokens(tokens), 0, []
    layers = model.model.layers
    for index, layer in enumerate(layers):
        if index < len(gates):
            w, b = gates[index]
            closed = closed + (h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ w + b).relu()
            kept.append(1 - closed.clamp(max=1))
        gate = kept[min(index, len(layers) - 1 - index)]
        h = h + gate[:, None] * attended(layer, layer.input_layernorm(h), gate, model.model.rotary_emb.inv_freq)
        h = h + gate[:, None] * layer.mlp(layer.post_attention_layernorm(h))
    return model.lm_head(model.model.norm(h)), torch.stack(kept)


def rows(model):
    """Return a list that every layer's maps to queries and upwards append the tokens to that they are given."""
    found = [[] for _ in model.model.layers]
    for layer, seen in zip(model.model.layers, found, strict=True):
        for part in (layer.self_attn.q_proj, layer.mlp.up_proj):
            part.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].shape[:-1].numel()))
    return found


@torch.no_grad()
def test_a_decoder_with_gates_is_what_the_equations_say():
    model = small("llama").double()
    handle = adapt.insert(model, adapt.SkipMiddle())
    middle(handle, None)
    gates = [(part.to_gate.weight[0], part.to_gate.bias) for part in handle.parts.values()]
    seen = rows(model)
    found = model(TOKENS[:1]).logits[0]
    expected, openness = defined(small("llama").double(), gates, TOKENS[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # norms of transformers are float32
    some = (openness > 0).sum(1).tolist()
    assert 0 < some[1] < some[0] < 12
    assert ((openness > 0) & (openness < 1)).any()
    assert [each[:2] for each in seen] == [[some[0]] * 2, [some[1]] * 2, [some[0]] * 2]


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: small("llama"), lambda: small("gpt2"), olmo2])
def test_what_is_left_out_makes_no_difference(make, monkeypatch):
    model = make()
    expected = model(TOKENS).logits
    handle = adapt.insert(model, adapt.SkipMiddle())
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    middle(handle, None)
    found = model(TOKENS).logits
    assert not torch.allclose(found, expected, atol=1e-2)
    monkeypatch.setattr(SkipMiddlePart, "dense", lambda _: True)
    torch.testing.assert_close(model(TOKENS).logits, found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_closed_gate_is_the_identity_over_the_span_and_computes_nothing():
    model = olmo2()
    handle = adapt.insert(model, adapt.SkipMiddle(), "layers.1")
    handle.parts["layers.1"].to_gate.bias.fill_(1.0)
    outputs, seen = {}, rows(model)
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _, __, y, index=index: outputs.update({index: y}))
    model.generate(TOKENS, max_new_tokens=3, do_sample=False)
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[2], outputs[3])
    assert [len(each) > 0 for each in seen] == [True, False, False, True]
    assert handle.spent() == 0


@torch.no_grad()
def test_calibration_keeps_budgets_and_chance_costs_the_same():
    model = small("llama")
    handle = adapt.insert(model, adapt.SkipMiddle())
    for part in handle.parts.values():
        torch.nn.init.normal_(part.to_gate.weight, std=0.03)
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(1, 64, (4, 32))}]
    handle.calibrate(data, budgets=(0.5, 0.8))
    for budget in (0.5, 0.8):
        handle.budget = budget
        handle.spent()
        model(**data[0])
        assert abs(handle.spent() - budget) < 0.06
        for part in handle.parts.values():
            part.random = True
        model(**data[0])
        assert abs(handle.spent() - budget) < 0.12
        for part in handle.parts.values():
            part.random = False


@torch.no_grad()
@pytest.mark.parametrize("what", [adapt.SkipMiddle, adapt.GateSkip])
def test_a_cache_of_fixed_size_and_beams_give_the_same(what):
    model = small("llama")
    handle = adapt.insert(model, what(0.6))
    (middle if what is adapt.SkipMiddle else skipping)(handle, {"input_ids": TOKENS})
    words = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(TOKENS, **words)
    assert torch.equal(model.generate(TOKENS, **words, cache_implementation="static", disable_compile=True), expected)
    beams = [model.generate(TOKENS, **words, num_beams=2, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)


def test_gates_are_held_to_the_budget():
    model = small("llama").train()
    handle = adapt.insert(model, adapt.SkipMiddle(0.5, rate=0.5))
    data = {"input_ids": TOKENS, "labels": TOKENS}
    assert model(**data).loss.isfinite()
    assert all((part.weights[0] > 0) == (part.wanted() < 1) for part in handle.parts.values())
    assert [part.wanted() for part in handle.parts.values()] == [1.0, 0.0]
    model(**data).loss.backward()
    inner = handle.parts["layers.1"]
    assert inner.to_gate.bias.grad < 0  # a step of descent closes the gate
    assert inner.penalty().item() == 0.25  # weight 0.5 of the first call, mean 1, shared by two gates
    with torch.no_grad():
        inner.to_gate.bias.fill_(-1.0)
    inner.to_gate.bias.grad = None
    model(**data).loss.backward()
    assert inner.to_gate.bias.grad < 0  # and that of one which no token feels


def test_where_it_does_not_belong_it_says_so():
    for name in ("bert", "vit"):
        with pytest.raises(ConfigError, match="skip-middle: it is for causal decoders"):
            adapt.insert(small(name), adapt.SkipMiddle())
    model = small("llama")
    cache = model(TOKENS, use_cache=True).past_key_values
    adapt.insert(model, adapt.SkipMiddle())
    with pytest.raises(ConfigError, match="the cache was filled without the gates"):
        model(TOKENS[:, -1:], past_key_values=cache)
    assert run(model, "llama").isfinite().all()
