import numpy as np

VARIANTS = {"gmu": [{"memory_dim": 3}], "gmu-normalized": [{"memory_dim": 3}]}


def gated(state, x, m):
    z = state["to_gate.weight"] @ x
    return m * z / (1 + np.exp(-z))


def gmu(state, streams, dim, memory_dim):
    y, (x, m) = np.zeros_like(streams[0]), streams
    for b in range(len(x)):
        for t in range(len(x[b])):
            y[b, t] = state["out.weight"] @ gated(state, x[b, t], m[b, t])
    return y


def gmu_normalized(state, streams, dim, memory_dim):
    y, (x, m) = np.zeros_like(streams[0]), streams
    for b in range(len(x)):
        for t in range(len(x[b])):
            z = gated(state, x[b, t], m[b, t])
            y[b, t] = state["out.weight"] @ (z / np.sqrt(np.mean(z**2) + 1e-5) * state["norm.weight"])
    return y
