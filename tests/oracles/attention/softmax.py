import math

import numpy as np

VARIANTS = {
    "attention": [{"heads": 4, "kv_heads": 2}, {"heads": 8, "kv_heads": 1, "bias": True}],
    "gated-attention": [
        {"position": "G2"},
        {"position": "G3", "kv_heads": 1},
        {"position": "G4", "bias": True},
        {"position": "G5"},
        {"position": "G1", "grain": "headwise"},
        {"position": "G2", "grain": "headwise", "kv_heads": 1},
        {"position": "G3", "grain": "headwise"},
        {"position": "G4", "grain": "headwise"},
        {"position": "G5", "grain": "headwise"},
        {"shared": True},
        {"shared": True, "grain": "headwise"},
    ],
    "gated-attention-ns": [{"position": "G2"}],
    "gated-attention-additive": [{"position": "G2"}, {"grain": "headwise"}],
}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def heads_of(state, x, width):
    """(T, D) -> q (T, H, d), k and v (T, G, d)"""
    return {part: linear(state, f"project.{part}", x).reshape(len(x), -1, width) for part in ("query", "key", "value")}


def rotate(x, t):
    y, d = x.copy(), len(x)
    for i in range(d // 2):
        angle = t * 10000.0 ** (-2 * i / d)
        y[i] = x[i] * math.cos(angle) - x[i + d // 2] * math.sin(angle)
        y[i + d // 2] = x[i] * math.sin(angle) + x[i + d // 2] * math.cos(angle)
    return y


def attend(q, k, v):
    o = np.zeros_like(q)
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            p = [math.exp(rotate(q[t, h], t) @ rotate(k[s, g], s) / math.sqrt(q.shape[2])) for s in range(t + 1)]
            o[t, h] = sum(p[s] * v[s, g] for s in range(t + 1)) / sum(p)
    return o


def attention(state, x, dim, heads, kv_heads=None, bias=False):
    parts = [heads_of(state, row, dim // heads) for row in x]
    return np.stack([linear(state, "out", attend(**rename(part)).reshape(-1, dim)) for part in parts])


def rename(part):
    return {"q": part["query"], "k": part["key"], "v": part["value"]}


def gated(state, x, heads, apply, position="G1", grain="elementwise", shared=False, kv_heads=None, bias=False):
    """apply(y, z) gates one number by its logit; q, k and v are gated before they are rotated."""
    y = np.zeros_like(x)
    for b, row in enumerate(x):
        part = heads_of(state, row, x.shape[2] // heads)

        def let_through(signal, here, row=row):
            if here != position:
                return signal
            z = linear(state, "to_gate", row).reshape(len(row), 1 if shared else signal.shape[1], -1)
            return np.vectorize(apply)(signal, np.broadcast_to(z, signal.shape))

        part = {name: let_through(part[name], here) for name, here in (("query", "G4"), ("key", "G3"), ("value", "G2"))}
        o = let_through(attend(**rename(part)), "G1").reshape(len(row), -1)
        y[b] = let_through(linear(state, "out", o)[:, None], "G5")[:, 0]
    return y


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def gated_attention(state, x, dim, heads, **options):
    return gated(state, x, heads, lambda y, z: y * sigmoid(z), **options)


def gated_attention_ns(state, x, dim, heads, **options):
    return gated(state, x, heads, lambda y, z: y * (0.5 + 0.5 * sigmoid(z)), **options)


def gated_attention_additive(state, x, dim, heads, **options):
    return gated(state, x, heads, lambda y, z: y + z * sigmoid(z), **options)
