"""A cache of heavy hitters: against NumPy and loops, equal to a full one while it is not full, and of one size after."""

from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from cases import DECODERS, batch, small
from transformers import DynamicCache

from penstock import adapt
from penstock.adapt.heavy import HeavyLayer
from penstock.core import ConfigError

KEEP = {"max_new_tokens": 12, "do_sample": False}


def kept(q, k, v, size, recent, sinks, prompt):
    """Return what each token is given `(H, T, D)`, by loops: keys and values `(G, T, D)` have fewer heads."""
    heads, times, width = q.shape
    y, share = np.zeros((heads, times, v.shape[2])), heads // len(k)
    for group in range(len(k)):
        seen, got = [], np.zeros(times)
        for t in range(times):
            if t >= prompt and len(seen) == size:
                seen.remove(min((s for s in seen if sinks <= s <= t - recent), key=lambda s: got[s]))
            seen.append(t)
            for h in range(group * share, (group + 1) * share):
                a = np.exp([q[h, t] @ k[group, s] / np.sqrt(width) for s in seen])
                y[h, t] = sum(w * v[group, s] for w, s in zip(a / a.sum(), seen, strict=True))
                got[seen] += a / a.sum()
            if t == prompt - 1:
                free = [s for s in seen if sinks <= s <= t - recent]
                best = sorted(free, key=lambda s: -got[s])[: max(0, size - (len(seen) - len(free)))]
                seen = [s for s in seen if s in best or s not in free]
    return y


def attended(layer, q, k, v, prompt):
    parts, cuts = [], [0, prompt, *range(prompt + 1, q.shape[2] + 1)]
    for a, b in pairwise(cuts):
        if b > a:
            parts.append(layer.attend(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], None, q.shape[-1] ** -0.5))
    return torch.cat(parts, 2)


def drawn(heads=4, groups=2, times=20, texts=2):
    made = torch.Generator().manual_seed(0)
    sizes = ((texts, heads, times, 3), (texts, groups, times, 3), (texts, groups, times, 5))
    return [2 * torch.randn(size, dtype=torch.float64, generator=made) for size in sizes]


@pytest.mark.parametrize(
    ("size", "recent", "sinks", "prompt"),
    [(6, 3, 0, 1), (6, 3, 0, 9), (6, 1, 2, 0), (6, 4, 2, 8), (7, 7, 0, 5), (5, 2, 0, 3), (1, 1, 0, 4), (20, 10, 0, 12)],
)
def test_it_is_the_algorithm(size, recent, sinks, prompt):
    q, k, v = drawn()
    found = attended(HeavyLayer(size, recent, sinks), q, k, v, prompt).numpy()
    for b in range(len(q)):
        expected = kept(*(x[b].numpy() for x in (q, k, v)), size, recent, sinks, prompt)
        np.testing.assert_allclose(found[b], expected, rtol=1e-6, atol=1e-6)


def test_a_prompt_is_read_by_rows_and_text_goes_on_in_pieces(monkeypatch):
    q, k, v = drawn(times=24)
    whole = attended(HeavyLayer(8, 4, 1), q, k, v, 10)
    monkeypatch.setattr("penstock.adapt.heavy.ROWS", 3)
    torch.testing.assert_close(attended(HeavyLayer(8, 4, 1), q, k, v, 10), whole)
    layer = HeavyLayer(24, 12, 0)
    parts = [
        layer.attend(x, y, z, None, 3**-0.5)
        for x, y, z in zip(*(each.split((7, 1, 9, 7), 2) for each in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, 2), attended(HeavyLayer(24, 12, 0), q, k, v, 24))


@pytest.mark.parametrize("name", DECODERS)
def test_while_it_is_not_full_it_is_the_full_cache(name):
    model, data = small(name), batch(name)["input_ids"]
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), data), 1)
    masks = [{}, {"attention_mask": (padded > 0).long()}]
    expected = [model.generate(tokens, **KEEP, **mask) for tokens, mask in zip((data, padded), masks, strict=True)]
    handle = adapt.insert(model, adapt.HeavyHitters(24, 3))
    for tokens, mask, wanted in zip((data, padded), masks, expected, strict=True):
        assert torch.equal(model.generate(tokens, **KEEP, **mask), wanted)
    handle.remove()
    adapt.insert(model, adapt.HeavyHitters(8, 4, 1))
    small_cache = [model.generate(tokens, **KEEP, **mask) for tokens, mask in zip((data, padded), masks, strict=True)]
    assert torch.equal(small_cache[0], small_cache[1][:, 3:])
    assert not torch.equal(small_cache[0], expected[0])


def test_memory_is_the_same_however_long_the_text_is():
    model = small("qwen3")
    adapt.insert(model, adapt.HeavyHitters(6))
    cache, sizes, tokens = DynamicCache(config=model.config), [], batch("qwen3")["input_ids"]
    with torch.no_grad():
        model(tokens, past_key_values=cache)
        for _ in range(20):
            layer = cache.layers[1]
            sizes.append([x.untyped_storage().nbytes() for x in (layer.keys, layer.values, *layer.states)])
            place = layer.keys.data_ptr()
            model(tokens[:, :1], past_key_values=cache)
            assert layer.keys.data_ptr() == place
    assert all(each == sizes[0] for each in sizes)
    assert sizes[0][0] == 2 * 2 * 6 * 8 * 4
    assert cache.get_seq_length() == 32
    assert (layer.states[0] >= 29).sum(-1).eq(3).all()


@pytest.mark.parametrize(
    "words", [{"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}, {"cache_implementation": "static"}]
)
def test_it_serves_beams_and_takes_the_place_of_any_cache(words):
    model = small("llama")
    adapt.insert(model, adapt.HeavyHitters(24))
    found = model.generate(batch("llama")["input_ids"], **KEEP, **words)
    adapt.remove(model)
    assert torch.equal(model.generate(batch("llama")["input_ids"], **KEEP, **words), found)


@pytest.mark.slow
def test_a_step_compiles_as_one_graph():
    model, tokens = small("llama"), batch("llama")["input_ids"]
    adapt.insert(model, adapt.HeavyHitters(6))
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(tokens, past_key_values=cache)
            found.append(torch.stack([run(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(8)]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_it_says_what_it_needs():
    with pytest.raises(ConfigError, match="at most size=4 in all, got 3 and 2"):
        adapt.HeavyHitters(4, 3, 2)
    with pytest.raises(ConfigError, match="causal attention to all tokens, with a cache"):
        adapt.insert(small("bert"), adapt.HeavyHitters())
    model = small("llama")
    cache = DynamicCache(config=model.config)
    model(**batch("llama"), past_key_values=cache)
    adapt.insert(model, adapt.HeavyHitters())
    with pytest.raises(ConfigError, match="must read the text from its start"):
        model(**batch("llama"), past_key_values=cache)


def test_what_it_kept_is_for_it_alone_and_training_is_the_models_own():
    model, data = small("llama"), {**batch("llama"), "labels": batch("llama")["input_ids"]}
    expected = model.train()(**data).loss
    handle = adapt.insert(model, adapt.HeavyHitters(4), freeze=False)
    assert torch.equal(model(**data).loss, expected)
    cache = DynamicCache(config=model.config)
    model.eval()(**batch("llama"), past_key_values=cache)
    with handle.off(), pytest.raises(ConfigError, match="the cache holds what heavy-hitters kept"):
        model(**batch("llama"), past_key_values=cache)
