import numpy as np

VARIANTS = {"base-conv": [{"width": 1}, {"width": 9}], "base-conv-long": [{"length": 3}, {"hidden": 1}, {"bands": 3}]}


def gated(state, x, taps, bias):
    y = np.zeros_like(x)
    for b in range(len(x)):
        for t in range(len(x[b])):
            c = bias + sum(taps[lag] * x[b, t - lag] for lag in range(min(t + 1, len(taps))))
            y[b, t] = c * (state["to_gate.weight"] @ x[b, t] + state["to_gate.bias"]) + x[b, t]
    return y


def base_conv(state, x, dim, width=3):
    return gated(state, x, state["taps"].T[::-1], state["bias"])


def base_conv_long(state, x, dim, length, hidden, bands=1):
    taps = np.zeros((x.shape[1], dim))
    for lag in range(len(taps)):
        p = lag / length
        turns = 2 * np.pi * p * np.array([1e-4, *((bands - 1 - 1e-4) * f / (bands - 1) + 1e-4 for f in range(1, bands))])
        z = np.array([p, *np.cos(turns), *-np.sin(turns)])
        for layer in ("first", "second", "third"):
            z = np.sin(state["frequency"] * (state[f"{layer}.weight"] @ z + state[f"{layer}.bias"]))
        for c in range(dim):
            rate = np.log(100) * (1 / 1.5 + (1 / 0.3 - 1 / 1.5) * c / (dim - 1))
            taps[lag, c] = state["last.weight"][c] @ z * np.exp(-rate * p)
    taps[0] += 1
    return gated(state, x, taps, 0)
