import math

import numpy as np

VARIANTS = {"gss": [{"inner": 1, "size": 1}, {"inner": 4, "hidden": 2, "size": 6}]}


def gelu(z):
    return z * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])


def gss(state, x, dim, inner, hidden, size):
    y = np.zeros_like(x)
    rate = -np.exp(state["space.log_decay"]) + 1j * np.exp(state["space.log_angle"])
    C = (state["space.read"][0] + 1j * state["space.read"][1]) * (np.exp(rate) - 1) / rate
    for b in range(len(x)):
        s = np.zeros((inner, size), complex)
        for t in range(len(x[b])):
            u = gelu(state["to_inner.weight"] @ x[b, t])
            u = (u - u.mean()) / np.sqrt(u.var() + 1e-5) * state["space.norm.weight"] + state["space.norm.bias"]
            s = np.exp(rate) * s + u[:, None]
            z = (C * s).sum(1).real + state["space.skip"] * u
            v = gelu(state["to_gate.weight"] @ x[b, t])
            y[b, t] = state["out.weight"] @ ((state["to_hidden.weight"] @ z) * v) + state["out.bias"]
    return y
