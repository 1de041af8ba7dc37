import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gateloop(state, x, dim):
    y = np.zeros_like(x)
    linear = lambda part, u: state[f"to_{part}.weight"] @ u + state.get(f"to_{part}.bias", 0)  # noqa: E731
    for b in range(len(x)):
        for t in range(len(x[b])):
            for s in range(t + 1):
                way = 1.0
                for j in range(s + 1, t + 1):
                    way = way * sigmoid(linear("decay", x[b, j])) * np.exp(1j * linear("angle", x[b, j]))
                y[b, t] += linear("query", x[b, t]) * np.real(way) * linear("key", x[b, s]) * linear("value", x[b, s])
            g = linear("gate", x[b, t])
            y[b, t] = state["out.weight"] @ (y[b, t] * g * sigmoid(g))
    return y
