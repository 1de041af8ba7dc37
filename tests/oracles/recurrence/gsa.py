import numpy as np

VARIANTS = {"gsa": [{"heads": 1, "slots": 5}, {"temperature": 1.0}]}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gsa(state, x, dim, heads, slots, temperature=8):
    y = np.zeros_like(x)
    for b in range(len(x)):
        q, k, v = ((x[b] @ state[f"to_{part}.weight"].T).reshape(len(x[b]), heads, -1) for part in ("query", "key", "value"))
        q, k, v = (z * sigmoid(z) for z in (q, k, v))
        alpha = (sigmoid(x[b] @ state["to_decay.weight"].T) ** (1 / temperature)).reshape(len(q), heads, slots)
        for t in range(len(q)):
            o = np.zeros((heads, dim // heads))
            for h in range(heads):
                K, V = np.zeros((2, slots, dim // heads))
                for s in range(t + 1):
                    K = alpha[s, h][:, None] * K + np.outer(1 - alpha[s, h], k[s, h])
                    V = alpha[s, h][:, None] * V + np.outer(1 - alpha[s, h], v[s, h])
                e = np.exp(K @ q[t, h])
                o[h] = e / e.sum() @ V
            o = (o * sigmoid(o)).reshape(dim)
            y[b, t] = state["out.weight"] @ (o / np.sqrt(np.mean(o**2) + 1e-5) * state["norm.weight"])
    return y
