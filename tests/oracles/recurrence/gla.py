import numpy as np

VARIANTS = {"gla": [{"key_dim": 6, "value_dim": 10, "temperature": 2.0}, {"heads": 1}]}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gla(state, x, dim, heads, rank, key_dim=None, value_dim=None, temperature=16):
    y = np.zeros_like(x)
    for b in range(len(x)):
        q, k, v = ((x[b] @ state[f"to_{part}.weight"].T).reshape(len(x[b]), heads, -1) for part in ("query", "key", "value"))
        z = x[b] @ state["to_decay.0.weight"].T @ state["to_decay.1.weight"].T + state["to_decay.1.bias"]
        alpha = (sigmoid(z) ** (1 / temperature)).reshape(q.shape)
        r = x[b] @ state["output.to_gate.weight"].T
        for h in range(heads):
            S = np.zeros((q.shape[2], v.shape[2]))
            for t in range(len(q)):
                S = alpha[t, h][:, None] * S + np.outer(k[t, h], v[t, h])
                o = q[t, h] @ S / np.sqrt(q.shape[2])
                o = o / np.sqrt(np.mean(o**2) + 1e-5) * state["output.norm.weight"]
                part = slice(h * v.shape[2], (h + 1) * v.shape[2])
                y[b, t] += state["output.out.weight"][:, part] @ (o * r[t, part] * sigmoid(r[t, part]))
    return y
