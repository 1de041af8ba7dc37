"""Feed-forward layers with blocks of hidden units switched off, each random quantity at its most likely value."""

import math

import numpy as np

VARIANTS = {"conditional-mlp": [{"blocks": 12}, {"blocks": 1}]}


def _scores(state, x):
    narrow = np.tanh(state["gater.0.weight"] @ x + state["gater.0.bias"])
    return state["gater.2.weight"] @ narrow + state["gater.2.bias"]


def _layer(state, x, gate, hidden, blocks):
    rows = x.reshape(-1, x.shape[-1])
    y = np.zeros_like(rows)
    for n, row in enumerate(rows):
        scores = _scores(state, row)
        y[n] = state["out.bias"]
        for i in range(hidden):
            h = gate(scores[i * blocks // hidden])
            y[n] += state["out.weight"][:, i] * h * max(0.0, state["inner.weight"][i] @ row + state["inner.bias"][i])
    return y.reshape(x.shape)


def conditional_mlp(state: dict[str, np.ndarray], x: np.ndarray, dim: int, hidden: int, blocks: int) -> np.ndarray:
    return _layer(state, x, lambda a: 1.0 if 1 / (1 + math.exp(-a)) > 0.5 else 0.0, hidden, blocks)


def conditional_mlp_smooth(state: dict[str, np.ndarray], x: np.ndarray, dim: int, hidden: int, blocks: int) -> np.ndarray:
    def gate(a):
        root = math.sqrt(1 / (1 + math.exp(-a)))
        return root if root > 0.5 else 0.0

    return _layer(state, x, gate, hidden, blocks)


def conditional_mlp_noisy(state: dict[str, np.ndarray], x: np.ndarray, dim: int, hidden: int, blocks: int) -> np.ndarray:
    return _layer(state, x, lambda a: max(0.0, a), hidden, blocks)
