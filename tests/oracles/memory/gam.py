import numpy as np

VARIANTS = {"gam": [{"width": 1}, {"width": 5}]}


def gam(state, x, dim, slots, width=3):
    linear = lambda name, u: u @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    M, y = state["memory"], np.zeros_like(x)
    for b in range(len(x)):
        for t in range(len(x[b])):
            local = state["bias"].copy()
            for back in range(width):
                if t >= back:
                    local += state["taps"][:, width - 1 - back] * x[b, t - back]
            p = np.exp(M @ x[b, t])
            a, c = (1 / (1 + np.exp(-linear(f"to_{part}_gate", x[b, t]))) for part in ("local", "memory"))
            y[b, t] = a * local + c * (p / p.sum() @ M)
    return y
