"""Against Hugging Face transformers, with the weights copied across."""

import pytest
import torch

import penstock
from penstock.models import LanguageModel

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer
PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def llama(kv_heads=2):
    """Return a small Llama and the same model here, in float64."""
    config = transformers.LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config).double().eval()
    mixer = {"mechanism": "attention", "heads": 4, "kv_heads": kv_heads}
    channel = {"mechanism": "swiglu", "hidden": 40}
    ours = LanguageModel(23, 32, 3, mixer, channel, tied=False, dtype=torch.float64).eval()
    state = {
        "embedding.weight": theirs.model.embed_tokens.weight,
        "norm.weight": theirs.model.norm.weight,
        "head.weight": theirs.lm_head.weight,
    }
    for i, layer in enumerate(theirs.model.layers):
        torch.nn.init.normal_(layer.input_layernorm.weight)
        torch.nn.init.normal_(layer.post_attention_layernorm.weight)
        here = {
            "mixer_norm": layer.input_layernorm,
            "channel_norm": layer.post_attention_layernorm,
            "mixer.out": layer.self_attn.o_proj,
            "channel.to_gate": layer.mlp.gate_proj,
            "channel.to_value": layer.mlp.up_proj,
            "channel.out": layer.mlp.down_proj,
        }
        here |= {f"mixer.project.{part}": getattr(layer.self_attn, name) for part, name in PARTS.items()}
        state |= {f"layers.{i}.{name}.weight": module.weight for name, module in here.items()}
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_language_model_of_attention_and_swiglu_is_llama(kv_heads):
    theirs, ours = llama(kv_heads)
    tokens = torch.randint(23, (2, 17))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits)


def test_both_generate_the_same_tokens():
    theirs, ours = llama()
    prompt = torch.randint(1, 23, (2, 5))
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    assert torch.equal(ours.generate(prompt, 20), expected)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_gate_is_that_of_qwen3_next(kv_heads):
    """Its attention is the gated one, with norms of queries and keys in between, which are taken out here."""
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    config = transformers.Qwen3NextConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        attn_implementation="eager",
    )
    theirs = qwen.Qwen3NextAttention(config, 0).double().eval()
    theirs.q_norm = theirs.k_norm = torch.nn.Identity()
    ours = penstock.build("gated-attention", dim=32, heads=4, kv_heads=kv_heads, dtype=torch.float64)
    query, gate = theirs.q_proj.weight.view(4, 2, 8, 32).unbind(1)
    ours.load_state_dict(
        {
            "project.query.weight": query.reshape(32, 32),
            "to_gate.weight": gate.reshape(32, 32),
            "project.key.weight": theirs.k_proj.weight,
            "project.value.weight": theirs.v_proj.weight,
            "out.weight": theirs.o_proj.weight,
        }
    )
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    turn = qwen.Qwen3NextRotaryEmbedding(config)(x, torch.arange(9).unsqueeze(0))
    later = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1).expand(2, 1, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x, turn, later)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ours", "activation"), [("reglu", "relu"), ("geglu", "gelu"), ("swiglu", "silu")])
def test_the_gated_layers_are_llamas_with_another_activation(ours, activation):
    from transformers.models.llama.modeling_llama import LlamaMLP

    config = transformers.LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, hidden_act=activation)
    theirs = LlamaMLP(config).double()
    layer = penstock.build(ours, dim=8, hidden=12, dtype=torch.float64)
    layer.load_state_dict(
        {
            "to_gate.weight": theirs.gate_proj.weight,
            "to_value.weight": theirs.up_proj.weight,
            "out.weight": theirs.down_proj.weight,
        }
    )
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), theirs(x))


def test_the_sigmoid_layer_is_that_of_torch():
    """Torch activates the second half of what it is given."""
    layer = penstock.build("glu", dim=8, hidden=12, dtype=torch.float64)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    both = torch.cat((layer.to_value(x), layer.to_gate(x)), -1)
    torch.testing.assert_close(layer(x), layer.out(torch.nn.functional.glu(both)))
