import math

import numpy as np

VARIANTS = {"ffn": [{"bias": True}]}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def feed(state, x, phi):
    return linear(state, "out", np.vectorize(phi)(linear(state, "to_hidden", x)))


def ffn(state, x, dim, hidden, bias=False):
    return feed(state, x, lambda z: max(0.0, z))


def ffn_gelu(state, x, dim, hidden):
    return feed(state, x, lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2)


def ffn_swish(state, x, dim, hidden):
    return feed(state, x, lambda z: z / (1 + math.exp(-z)))
