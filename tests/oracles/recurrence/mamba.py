import numpy as np

VARIANTS = {
    "mamba": [{"expand": 1, "width": 2}, {"rank": 4, "size": 1}],
}


def silu(z):
    return z / (1 + np.exp(-z))


def softplus(z):
    return np.log(1 + np.exp(z))


def convolved(state, z):
    w = state["conv.weight"]
    z = np.concatenate([np.zeros((w.shape[1] - 1, len(w))), z])
    return silu(
        np.array([(w.T * z[t : t + w.shape[1]]).sum(0) for t in range(len(z) - w.shape[1] + 1)]) + state["conv.bias"]
    )


def mamba(state, x, dim, size, rank, expand=2, width=4):
    y = np.zeros_like(x)
    for b in range(len(x)):
        u = convolved(state, x[b] @ state["to_inner.weight"].T)
        h = np.zeros((u.shape[1], size))
        for t in range(len(u)):
            low, B, C = np.split(state["to_parameters.weight"] @ u[t], [rank, rank + size])
            delta = softplus(state["to_step.weight"] @ low + state["to_step.bias"])
            h = np.exp(-delta[:, None] * np.exp(state["log_rate"])) * h + np.outer(delta * u[t], B)
            gate = silu(state["to_gate.weight"] @ x[b, t])
            y[b, t] = state["out.weight"] @ ((h @ C + state["skip"] * u[t]) * gate)
    return y
