"""The hard concrete gate as it is at test time."""

import math

import numpy as np


def hard_concrete(state: dict[str, np.ndarray], x: np.ndarray, dim: int) -> np.ndarray:
    gamma, zeta = -0.1, 1.1
    y = np.zeros_like(x)
    for j in range(dim):
        z = 1 / (1 + math.exp(-state["log_alpha"][j])) * (zeta - gamma) + gamma
        y[..., j] = x[..., j] * min(1.0, max(0.0, z))
    return y
