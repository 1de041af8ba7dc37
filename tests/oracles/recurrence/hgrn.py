import numpy as np

VARIANTS = {name: [{"layer": 0}, {"layer": 2}, {"layer": 0, "layers": 1}] for name in ("hgrn", "hgrn-real")}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def normalize(z, weight, bias):
    return (z - z.mean()) / np.sqrt(z.var() + 1e-5) * weight + bias


def recurrence(state, x, layer, turn, read, put):
    linear = lambda name, u: u @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    E = np.exp(state.get("bounds", np.zeros((1, x.shape[2]))))
    gamma = sum(E[i] for i in range(layer + 1)) / E.sum(0) - E[0] / E.sum(0)
    y = np.zeros_like(x)
    for b in range(len(x)):
        h = 0
        for t in range(len(x[b])):
            f = gamma + (1 - gamma) * sigmoid(linear("to_forget", x[b, t]))
            c = linear("to_candidate", x[b, t])
            h = f * turn * h + (1 - f) * put(c * sigmoid(c))
            g = linear("to_gate", x[b, t])
            y[b, t] = linear("out", normalize(read(h), state["norm.weight"], state["norm.bias"]) * g * sigmoid(g))
    return y


def hgrn(state, x, dim, layer, layers):
    turn = np.exp(1j * state["theta"])
    read = lambda h: np.concatenate([h.real, h.imag])  # noqa: E731
    return recurrence(state, x, layer, turn, read, lambda c: c[0::2] + 1j * c[1::2])


def hgrn_real(state, x, dim, layer, layers):
    return recurrence(state, x, layer, 1.0, lambda h: h, lambda c: c)
