"""Small models of each architecture, and every method that is put into them: what `test_adapters.py` runs over."""

from dataclasses import dataclass, field
from functools import cache

import torch
import transformers as hf

from penstock import adapt

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
GROUPED = {**SIZES, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **SPECIAL, num_key_value_heads=4))


def _qwen3():
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED))


def _gpt2():
    return hf.GPT2LMHeadModel(hf.GPT2Config(**SPECIAL, vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))


def _mixtral():
    return hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, **SPECIAL, num_key_value_heads=2, num_local_experts=4))


def _qwen3moe():
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**GROUPED, **EXPERTS))


def _bert():
    return hf.BertForMaskedLM(hf.BertConfig(**SIZES))


def _vit():
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=5))


DECODERS = {"llama": _llama, "qwen3": _qwen3, "gpt2": _gpt2, "mixtral": _mixtral, "qwen3moe": _qwen3moe}
ROTARY = ("llama", "qwen3", "mixtral", "qwen3moe")
MODELS = {**DECODERS, "bert": _bert, "vit": _vit}


def small(name, seed=0):
    """Return a model with weights large enough that everything in it matters."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@cache
def batch(name, seed=1):
    """Return what the model is called with."""
    made = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=made)}
    return {"input_ids": torch.randint(1, 64, (2, 12), generator=made)}


def labels(name):
    """Return what the model is trained on."""
    return {"labels": torch.tensor([1, 2]) if name == "vit" else batch(name)["input_ids"]}


@dataclass(frozen=True)
class Case:
    """A method, the architectures it claims, and what it promises.

    Args:
        make: what is inserted.
        models: the architectures it claims.
        near: how far outputs may move at insertion; None where the paper changes the model.
        trains: whether it has parameters.
        changes: whether outputs in evaluation are others.
        compiles: whether one graph is compiled.
        decodes: whether generation with a cache is that without.
        where: where it is put.
        ready: called with the handle and a batch before outputs are compared.
    """

    make: object
    models: tuple = tuple(MODELS)
    near: float | None = 0.0
    trains: bool = True
    changes: bool = True
    compiles: bool = True
    decodes: bool = True
    where: str = "layers.*"
    ready: object = field(default=lambda handle, data: None)


def skipping(handle, data):
    """Draw gates that differ from token to token, and set the levels."""
    for part in handle.parts.values():
        torch.nn.init.normal_(part.to_gate.weight, std=0.3)
    handle.calibrate([data], budgets=(0.6,))
    handle.budget = 0.6


def middle(handle, data):
    """Draw gates that close some tokens early, some late and some not at all."""
    for part in handle.parts.values():
        torch.nn.init.normal_(part.to_gate.weight, std=0.2)


def calibrated(handle, data):
    """Set the levels."""
    handle.calibrate([data], budgets=(0.6,))


def leaving(handle, data):
    """Draw gates that tell examples apart, and set the level so that some leave."""
    drawn(handle, data)
    handle.calibrate([data], budgets=(0.5,))


def drawn(handle, data):
    """Draw all parameters."""
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def running(handle, data):
    """Have modules run that were not taught."""
    drawn(handle, data)
    for part in handle.parts.values():
        part.stage.fill_(3)


def changing(handle, data):
    """Draw the buffers that say what is changed."""
    for part in handle.parts.values():
        for name, buffer in part.named_buffers():
            assert name in ("change", "factor")
            torch.nn.init.normal_(buffer)


CASES = {
    "acm": Case(lambda: adapt.ACMs(3, 24), ("llama", "gpt2", "mixtral", "vit"), ready=running, compiles=False),
    "codebook-features": Case(lambda: adapt.Codebook(24), near=None, ready=drawn),
    "codebook-features-layer": Case(lambda: adapt.Codebook(24, 2, "layer"), ("mixtral", "bert"), near=None, ready=drawn),
    "gated-attention": Case(adapt.GatedAttention, near=3e-3, ready=drawn),
    "gated-attention-g2": Case(lambda: adapt.GatedAttention("G2", "headwise"), near=3e-3, ready=drawn),
    "gated-attention-g3": Case(lambda: adapt.GatedAttention("G3"), ("qwen3", "gpt2", "vit"), near=3e-3, ready=drawn),
    "gated-attention-g4": Case(
        lambda: adapt.GatedAttention("G4", "headwise"), ("qwen3", "gpt2", "vit"), near=3e-3, ready=drawn
    ),
    "gated-attention-g5": Case(lambda: adapt.GatedAttention("G5"), ("qwen3", "gpt2", "vit"), near=3e-3, ready=drawn),
    "heavy-hitters": Case(lambda: adapt.HeavyHitters(24), tuple(DECODERS), near=1e-5, trains=False),
    "liger": Case(lambda: adapt.Liger(4), ROTARY, near=None, trains=False),
    "lizard": Case(lambda: adapt.Lizard(4), ROTARY, near=None, ready=drawn),
    "gateskip": Case(lambda: adapt.GateSkip(0.6), near=0.06, ready=skipping),
    "gateskip-token": Case(lambda: adapt.GateSkip(0.6, grain="token", share="model"), near=0.06, ready=skipping),
    "skip-middle": Case(lambda: adapt.SkipMiddle(0.6), tuple(DECODERS), near=1e-5, ready=middle),
    "wina": Case(adapt.WINA, ("llama", "gpt2", "mixtral", "bert", "vit"), near=1e-5, trains=False, ready=calibrated),
    "chess": Case(adapt.CHESS, ("llama", "qwen3"), near=1e-5, trains=False, ready=calibrated),
    "jei-dnn": Case(adapt.JEIDNN, ("vit",), ready=leaving),
    "moh": Case(lambda: adapt.MoH(0.25, 0.5), near=None, trains=False),
    "test-time-registers": Case(lambda: adapt.Registers({0: [3, 5], 1: [7]}), ("vit", "bert"), near=None, trains=False),
    "lf-steering": Case(lambda: adapt.LFSteering(40, 4), trains=False, ready=changing, where="layers.1"),
    "norga": Case(lambda: adapt.NoRGa(3), near=None, ready=drawn),
    "pill": Case(lambda: adapt.PILL(6, 12, 8), ROTARY, near=None, ready=drawn),
    "vhr": Case(adapt.VHR, trains=False, ready=changing),
    "seer-attention": Case(lambda: adapt.SeerAttention(block=2), tuple(DECODERS), changes=False, ready=drawn),
    "seer-attention-sparse": Case(
        lambda: adapt.SeerAttention(0.3, block=2), tuple(DECODERS), near=None, ready=drawn, decodes=False
    ),
    "sf-attention": Case(lambda: adapt.SFAttention(4, 1), tuple(DECODERS), trains=False, changes=False),
}
