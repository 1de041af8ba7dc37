"""Small decoders in a cache of fixed size: one that keeps what got attention, and one that keeps the latest tokens."""

import pytest
import torch
import torch.nn.functional as F
from toy import fit

hf = pytest.importorskip("transformers")

from penstock import adapt  # noqa: E402
from penstock.bench.tasks.text import Text  # noqa: E402

KEYS, VALUES, NOISE, LENGTH = 8, 8, 16, 64


def decoder(seed, vocabulary):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **special, vocab_size=vocabulary, intermediate_size=96))


def facts(count, draw):
    """Return noise with a key and its value in every four tokens, what follows, and where a known key stands."""
    x = KEYS + VALUES + torch.randint(NOISE, (count, LENGTH + 1), generator=draw)
    values = torch.randint(VALUES, (count, KEYS), generator=draw)
    used = torch.rand(count, KEYS, generator=draw).argsort(1)[:, :4]
    asked, known = torch.zeros_like(x, dtype=torch.bool), torch.zeros(count, KEYS, dtype=torch.bool)
    rows = torch.arange(count)
    for begin in range(0, LENGTH - 3, 4):
        at = begin + torch.randint(3, (count,), generator=draw)
        key = used[rows, torch.randint(4, (count,), generator=draw)]
        x[rows, at], x[rows, at + 1] = key, KEYS + values[rows, key]
        asked[rows, at], known[rows, key] = known[rows, key], True
    return x[:, :-1], x[:, 1:], asked[:, :-1]


def loss_on_facts(model, x, y, asked):
    return F.cross_entropy(model(x).logits[asked], y[asked])


def loss_on_bytes(model, x, y, *_):
    return F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())


@torch.no_grad()
def loss(model, x, y, counted, **cache):
    """Return the loss of tokens that are read one by one, in a cache of fixed size or a full one."""
    handle = adapt.insert(model, adapt.HeavyHitters(**cache)) if cache else None
    seen = hf.DynamicCache(config=model.config)
    logits = torch.stack([model(x[:, t : t + 1], past_key_values=seen).logits[:, 0] for t in range(x.shape[1])], 1)
    if handle:
        handle.remove()
    return F.cross_entropy(logits[counted], y[counted]).item()


def compared(model, x, y, counted, size):
    """Return the loss in a full cache, of heavy hitters, of the first four tokens and the latest, and of the latest."""
    caches = ({}, {"size": size}, {"size": size, "recent": size - 4, "sinks": 4}, {"size": size, "recent": size})
    return [loss(model, x, y, counted, **cache) for cache in caches]


def with_facts(seed, size=16):
    draw, model = torch.Generator().manual_seed(seed), decoder(seed, KEYS + VALUES + NOISE)
    fit(model, lambda _: facts(32, draw), loss_on_facts, steps=500, learning_rate=8e-3)
    x, y, asked = facts(128, torch.Generator().manual_seed(99))
    asked[:, : LENGTH // 2] = False
    return compared(model, x, y, asked, size)


def with_text(seed, size=32):
    text, model = Text(length=160, held_out=64), decoder(seed, 256)
    fit(model, lambda step: text.batch("train", seed, step, 16), loss_on_bytes, steps=250, learning_rate=6e-3)
    x, y = next(text.evaluation("valid", 64))[:2]
    return compared(model, x, y, (torch.arange(160) >= 64).expand(len(x), -1), size)


@pytest.mark.slow
@pytest.mark.claim("heavy-hitters")
def test_what_got_attention_is_worth_more_than_what_is_near():
    """Four keys with values of their own in each text, and noise between, in a cache of 16 where 64 tokens are read.

    The decoders have learned to look at the values of a text, but not well whose they are (2.08 is to know nothing,
    of 1.39 to know the four). Loss, seeds 0 to 4: 1.188 / 1.184 / 1.187 / 1.194 / 1.186 in a full cache, 1.301 / 1.219 /
    1.315 / 1.224 / 1.336 with heavy hitters and the latest eight, 2.262 / 2.293 / 2.288 / 2.239 / 2.258 with the first four
    tokens and the latest twelve, and 2.228 / 2.232 / 2.267 / 2.145 / 2.222 with the latest alone.
    """
    full, heavy, sinks, latest = with_facts(0)
    assert heavy < full + 0.25
    assert heavy < min(sinks, latest) - 0.6


@pytest.mark.slow
@pytest.mark.claim("heavy-hitters")
def test_where_attention_is_to_what_is_near_little_is_lost_and_nothing_won():
    """Decoders of bytes, in a cache of 32 where 160 are read: here it is not true that heavy hitters lose less than recency.

    Loss after the first 64, seeds 0 to 4: 2.356 / 2.196 / 2.332 / 2.081 / 2.241 in a full cache, 2.369 / 2.206 / 2.345 /
    2.091 / 2.253 with heavy hitters, 2.362 / 2.203 / 2.337 / 2.092 / 2.245 with the first four and the latest, and 2.361 /
    2.202 / 2.336 / 2.093 / 2.242 with the latest alone: so small a model of bytes looks at the last few of them.
    """
    full, heavy, sinks, latest = with_text(0)
    assert max(heavy, sinks, latest) < full + 0.02
    assert heavy < min(sinks, latest) + 0.015
