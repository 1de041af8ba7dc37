import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def linear(state, part, u):
    return state[f"from_{part}.weight"] @ u + state[f"from_{part}.bias"]


def lstm(state, x, dim):
    y = np.zeros_like(x)
    for b in range(len(x)):
        h, c = np.zeros((2, dim))
        for t in range(len(x[b])):
            i, f, g, o = np.split(linear(state, "input", x[b, t]) + linear(state, "state", h), 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = y[b, t] = sigmoid(o) * np.tanh(c)
    return y


def gru(state, x, dim):
    y = np.zeros_like(x)
    for b in range(len(x)):
        h = np.zeros(dim)
        for t in range(len(x[b])):
            (xr, xz, xn), (hr, hz, hn) = np.split(linear(state, "input", x[b, t]), 3), np.split(linear(state, "state", h), 3)
            r, z = sigmoid(xr + hr), sigmoid(xz + hz)
            h = y[b, t] = z * h + (1 - z) * np.tanh(xn + r * hn)
    return y
