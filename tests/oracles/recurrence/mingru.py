import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def unrolled(state, x, gates):
    y = np.zeros_like(x)
    linear = lambda part, u: state[f"to_{part}.weight"] @ u + state[f"to_{part}.bias"]  # noqa: E731
    for b in range(len(x)):
        h = 0
        for t in range(len(x[b])):
            keep, write = gates(lambda part, u=x[b, t]: sigmoid(linear(part, u)))
            h = keep * h + write * linear("candidate", x[b, t])
            y[b, t] = h
    return y


def mingru(state, x, dim):
    return unrolled(state, x, lambda gate: (1 - gate("update"), gate("update")))


def minlstm(state, x, dim):
    def gates(gate):
        f, i = gate("forget"), gate("input")
        return f / (f + i), i / (f + i)

    return unrolled(state, x, gates)
