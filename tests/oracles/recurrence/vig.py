import numpy as np

VARIANTS = {"vig": [{"heads": 1, "key_dim": 3, "temperature": 2.0}]}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def norm(z, weight):
    return z / np.sqrt(np.mean(z**2) + 1e-5) * weight


def vig(state, x, channels, heads, rank, key_dim=None, temperature=16):
    y, (height, width) = np.zeros_like(x), x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    cells = [(i, j) for i in range(height) for j in range(width)]
    dk, dv = (key_dim or channels // 2) // heads, channels // heads
    for b in range(len(x)):
        U = [(padded[b, :, i : i + 3, j : j + 3] * state["local.weight"][:, 0]).sum((1, 2)) for i, j in cells]
        U = [c * sigmoid(c) for c in U]
        Q, K, V = np.split(np.array(U) @ state["project.weight"].T, [heads * dk, 2 * heads * dk], axis=1)
        z = np.array(U) @ state["to_decay.0.weight"].T @ state["to_decay.1.weight"].T + state["to_decay.1.bias"]
        alpha = sigmoid(z) ** (1 / temperature)
        O = np.zeros((len(cells), channels))  # noqa: E741 - as in the paper
        for order, first in ((range(len(cells)), 0), (range(len(cells) - 1, -1, -1), heads * dk)):
            for h in range(heads):
                S, key, value = np.zeros((dk, dv)), slice(h * dk, (h + 1) * dk), slice(h * dv, (h + 1) * dv)
                for t in order:
                    S = alpha[t, first + h * dk : first + (h + 1) * dk, None] * S + np.outer(K[t, key], V[t, value])
                    O[t, value] += Q[t, key] @ S / np.sqrt(dk) / 2
        for t, (i, j) in enumerate(cells):
            g = sigmoid(state["to_mix.weight"] @ U[t] + state["to_mix.bias"])
            far = np.concatenate([norm(o, state["global_norm.weight"]) for o in np.split(O[t], heads)])
            near = np.concatenate([norm(u, state["local_norm.weight"]) for u in np.split(U[t], heads)])
            y[b, :, i, j] = state["out.weight"] @ (g * far + (1 - g) * near)
    return y
