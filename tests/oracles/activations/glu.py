import math

import numpy as np

VARIANTS = {"glu": [{"bias": True}]}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def feed(state, x, phi):
    g, v = linear(state, "to_gate", x), linear(state, "to_value", x)
    return linear(state, "out", np.vectorize(phi)(g) * v)


def glu(state, x, dim, hidden, bias=False):
    return feed(state, x, lambda z: 1 / (1 + math.exp(-z)))


def bilinear(state, x, dim, hidden):
    return feed(state, x, lambda z: z)


def reglu(state, x, dim, hidden):
    return feed(state, x, lambda z: max(0.0, z))


def geglu(state, x, dim, hidden):
    return feed(state, x, lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2)


def swiglu(state, x, dim, hidden):
    return feed(state, x, lambda z: z / (1 + math.exp(-z)))
