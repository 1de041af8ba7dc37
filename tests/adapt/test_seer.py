"""Gates that foresee blocks of attention in a trained model: their equations in loops, visits, masks, caches, budgets."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers
from cases import GROUPED, SIZES, SPECIAL, drawn, small
from torch.utils.flop_counter import FlopCounterMode

from penstock import adapt
from penstock.adapt.methods import seer
from penstock.core import ConfigError
from penstock.ops import register_flops

BLOCK, WIDTH = 4, 8


def tokens(length=22, rows=2):
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model, ids, **words):
    return model(input_ids=ids, **words).logits


def gated(model, *args, **words):
    handle = adapt.insert(model, adapt.SeerAttention(*args, **words))
    drawn(handle, None)
    return handle


def rotated(x, t):
    y, half = x.copy(), len(x) // 2
    for i in range(half):
        angle = t * 10000.0 ** (-2 * i / len(x))
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return y


def softmax(scores):
    e = np.exp(np.array(scores) - max(scores))
    return e / e.sum()


def watched(model):
    """Return what the first layer's attention reads and gives: queries and keys before their rotation, values, output."""
    layer, seen = model.model.layers[0].self_attn, {}
    for name in ("q_norm", "k_norm", "v_proj"):
        getattr(layer, name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
    layer.o_proj.register_forward_pre_hook(lambda _, given: seen.update(o=given[0]))
    return seen


def heads(seen, b):
    """Return queries, keys and values of a sequence, `(T, heads, width)`, keys and values once for each head."""
    q, k, v = (seen[name][b].detach().double().reshape(-1, n, WIDTH).numpy() for name, n in
               (("q_norm", 4), ("k_norm", 2), ("v_proj", 2)))  # fmt: skip
    return q, k.repeat(2, 1), v.repeat(2, 1)


def gate(part, q, k, h):
    """Return the scores of the gate of a head, row by row, and the slices of the blocks."""
    parts = [slice(s, min(s + BLOCK, len(q))) for s in range(0, len(q), BLOCK)]
    weight = part.key_map[h].detach().double().numpy()
    keys = [np.concatenate([k[p, h].max(0), k[p, h].min(0), k[p, h].mean(0)]) @ weight for p in parts]
    rows = []
    for u, p in enumerate(parts):
        query = rotated(q[p, h].mean(0), u * BLOCK)
        rows.append([query @ rotated(keys[v], v * BLOCK) / math.sqrt(WIDTH) for v in range(u + 1)])
    return rows, parts


@pytest.mark.parametrize(("budget", "threshold"), [(0.4, None), (0.01, None), (1.0, 0.25)])
def test_it_attends_to_the_blocks_of_its_equation(budget, threshold):
    model, ids = small("qwen3"), tokens()
    handle = gated(model, budget, block=BLOCK, threshold=threshold)
    part, seen = handle.parts["layers.0.attention"], watched(model)
    logits(model, ids)
    for b, h in np.ndindex(2, 4):
        q, k, v = heads(seen, b)
        rows, parts = gate(part, q, k, h)
        n = len(parts)
        for u, p in enumerate(parts):
            most = max(1, math.floor((1 - math.sqrt(1 - budget)) * n))
            if threshold is None:
                chosen = set(np.argsort(rows[u])[::-1][:most])
            else:
                chosen = {w for w, g in enumerate(softmax(rows[u])) if g > threshold}
            chosen = set(range(u + 1)) if u >= n - 2 else chosen | {u}
            for t in range(p.start, p.stop):
                keys = [s for s in range(t + 1) if s // BLOCK in chosen]
                weights = softmax([rotated(q[t, h], t) @ rotated(k[s, h], s) / math.sqrt(WIDTH) for s in keys])
                wanted = sum(w * v[s, h] for w, s in zip(weights, keys, strict=True))
                np.testing.assert_allclose(seen["o"][b, t].view(4, WIDTH)[h].numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_distance_from_the_largest_weight_in_each_block(monkeypatch):
    model, ids = small("qwen3"), tokens()
    handle = gated(model, block=BLOCK, weight=3.0)
    part, seen = handle.parts["layers.0.attention"], watched(model)
    model.train()
    model(input_ids=ids)
    total, count = 0.0, 0
    for b, h in np.ndindex(2, 4):
        q, k, _ = heads(seen, b)
        rows, parts = gate(part, q, k, h)
        maps = [softmax([rotated(q[t, h], t) @ rotated(k[s, h], s) / math.sqrt(WIDTH) for s in range(t + 1)])
                for t in range(len(q))]  # fmt: skip
        for u in range(len(parts) // 4, len(parts)):
            most = np.array([max(max(maps[t][p]) for t in range(parts[u].start, parts[u].stop) if t >= p.start)
                             for p in parts[: u + 1]])  # fmt: skip
            target = most / most.sum()
            total += (target * (np.log(target) - np.log(softmax(rows[u])))).sum()
            count += len(parts)
    whole = part.penalty().item()
    assert whole == pytest.approx(3.0 * total / count, rel=1e-4)
    monkeypatch.setattr(seer, "MOST", 1)  # one row of blocks at a time
    model(input_ids=ids)
    assert part.penalty().item() == pytest.approx(whole, rel=1e-5)


def test_blocks_that_are_not_visited_are_not_computed():
    register_flops()
    model, ids = small("llama"), tokens(256, 1)
    handle = gated(model, 0.2, block=16)
    with FlopCounterMode(display=False) as counter:
        logits(model, ids)
    (flops,) = [n for op, n in counter.get_flop_counts()["Global"].items() if "block_attention" in str(op)]
    visits = sum(part.run for part in handle.parts.values())
    assert flops == visits * 16 * 16 * 4 * WIDTH
    assert sum(part.seen for part in handle.parts.values()) == 3 * 4 * 136
    assert handle.spent() <= (2 * 14 + 15 + 16) / 136  # two blocks in a row, but for the last two rows
    handle.budget = 1.0
    with FlopCounterMode(display=False) as counter:
        logits(model, ids)
    assert not any("block_attention" in str(op) for op in counter.get_flop_counts()["Global"])


def mistral():
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SIZES, **SPECIAL, num_key_value_heads=2, sliding_window=6)
    return transformers.MistralForCausalLM(config).eval()


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("make", [mistral, lambda: small("qwen3")], ids=["window", "grouped"])
def test_all_blocks_are_the_model_with_padding_and_in_a_window(make, side):
    model, ids = make(), tokens()
    mask = torch.ones_like(ids)
    if side:
        mask[0, slice(0, 5) if side == "left" else slice(-5, None)] = 0
    words = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    expected = logits(model, ids, **words)
    handle = gated(model, block=BLOCK, threshold=0.0)
    found = logits(model, ids, **words)
    torch.testing.assert_close(found[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-4)
    handle.remove()
    handle = gated(model, 0.1, block=BLOCK)
    few = logits(model, ids, **words)
    assert not torch.allclose(few[mask > 0], expected[mask > 0], atol=1e-2)
    alone = logits(model, ids[:1, mask[0] > 0])
    torch.testing.assert_close(few[:1][mask[:1] > 0], alone[0], rtol=1e-4, atol=1e-4)


def test_tokens_after_a_cache_attend_to_all_of_it():
    model, ids = small("llama"), tokens(30)
    handle = gated(model, 0.1, block=BLOCK)
    whole = logits(model, ids)
    steps = []
    for dense in (False, True):
        with torch.no_grad():
            cache = model(input_ids=ids[:, :24], use_cache=True).past_key_values
        words = {"past_key_values": cache, "use_cache": True}
        if dense:
            with handle.off():
                steps.append(logits(model, ids[:, 24:27], **words))
        else:
            steps.append(logits(model, ids[:, 24:27], **words))
    assert torch.equal(*steps)
    assert not torch.allclose(steps[0], whole[:, 24:27], atol=1e-2)
    words = {"max_new_tokens": 3, "do_sample": False}
    short = ids[:, : 2 * BLOCK - 2]
    assert torch.equal(model.generate(short, **words), model.generate(short, use_cache=False, **words))


def test_levels_keep_a_budget_and_are_saved(tmp_path):
    model, ids = small("llama"), tokens(128, 2)
    handle = gated(model, block=BLOCK)
    handle.calibrate([{"input_ids": ids}], budgets=(0.3, 0.6))
    spent = []
    for budget in (0.3, 0.6):
        handle.budget = budget
        found = logits(model, ids)
        spent.append(handle.spent())
    assert spent == pytest.approx([0.3, 0.6], abs=0.06)
    handle.save(tmp_path)
    other = small("llama")
    again = adapt.load(other, tmp_path)
    assert again.budget == 0.6
    assert torch.equal(logits(other, ids), found)


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
FAMILIES = {
    "yarn": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=YARN)),
    "partial": lambda: transformers.StableLmForCausalLM(transformers.StableLmConfig(**SIZES, num_key_value_heads=2)),
    "unused": lambda: transformers.SmolLM3ForCausalLM(
        transformers.SmolLM3Config(**SIZES, pad_token_id=0, no_rope_layers=[0] * 3)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_reads_queries_and_keys_before_their_rotation(family, monkeypatch):
    torch.manual_seed(0)
    model, read, mapped = FAMILIES[family]().eval(), [], []
    layer = model.model.layers[0].self_attn
    for each in (layer.q_proj, layer.k_proj):
        each.register_forward_hook(lambda _, __, y: mapped.append(y))
    pools = seer.pools
    monkeypatch.setattr(seer, "pools", lambda x, *rest: read.append(x) or pools(x, *rest))
    gated(model, 0.4, block=BLOCK)
    logits(model, tokens())
    for x, y in zip(read[:2], mapped, strict=True):
        torch.testing.assert_close(x.flatten(2), y, rtol=1e-4, atol=1e-5)


def interleaved():
    sizes = {**GROUPED, "num_key_value_heads": 4}
    return transformers.CohereForCausalLM(transformers.CohereConfig(**sizes)).eval()


def test_what_it_cannot_serve_is_refused():
    with pytest.raises(ConfigError, match="block must be a power of two"):
        adapt.SeerAttention(block=24)
    with pytest.raises(ConfigError, match="must be causal"):
        adapt.insert(small("bert"), adapt.SeerAttention())
    with pytest.raises(ConfigError, match="must pair halves of a head"):
        adapt.insert(interleaved(), adapt.SeerAttention())
    config = transformers.Gemma2Config(**GROUPED, query_pre_attn_scalar=8)
    capped = transformers.Gemma2ForCausalLM(config).eval()
    gated(capped, 0.5, block=BLOCK)
    with pytest.raises(ConfigError, match="has softcap"):
        logits(capped, tokens())
    model = small("llama")
    gated(model, 0.5, block=BLOCK)
    two = torch.ones(22, 22, dtype=torch.bool).tril()
    two[11:, :11] = False  # two texts in one row
    with pytest.raises(ConfigError, match="padding at either end, and nothing else"):
        logits(model, tokens(), attention_mask=two.expand(2, 1, -1, -1))
