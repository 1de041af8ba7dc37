import math

import numpy as np

VARIANTS = {"rg-lru": [{"heads": 1, "expand": 2}, {"width": 4, "heads": 4}]}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def affine(state, part, z):
    return state[f"{part}.weight"] @ z + state[f"{part}.bias"]


def blocks(state, part, u):
    pieces = np.split(u, len(state[f"{part}.weight"]))
    return np.concatenate([z @ W for z, W in zip(pieces, state[f"{part}.weight"], strict=True)]) + state[f"{part}.bias"]


def rg_lru(state, x, dim, heads, expand=1, width=2):
    y = np.zeros_like(x)
    rate = np.log1p(np.exp(state["log_rate"]))
    for b in range(len(x)):
        z, h = [affine(state, "to_inner", token) for token in x[b]], 0
        for t in range(len(z)):
            u = state["bias"] + sum(state["taps"][:, width - 1 - lag] * z[t - lag] for lag in range(min(t + 1, width)))
            r, i = sigmoid(blocks(state, "to_recurrence", u)), sigmoid(blocks(state, "to_input", u))
            a = np.exp(-8 * rate * r)
            h = i * u if t == 0 else a * h + np.sqrt(1 - a**2) * (i * u)
            g = affine(state, "to_gate", x[b, t])
            g = g * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in g])
            y[b, t] = affine(state, "out", h * g)
    return y
