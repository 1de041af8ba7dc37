"""A residual branch scaled by one number."""

import numpy as np


def BLOCK(x: np.ndarray) -> np.ndarray:
    return 0.5 * x + 1.0


def rezero(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return x + float(state["alpha"]) * BLOCK(x)
