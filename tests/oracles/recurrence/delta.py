import numpy as np

SHAPES = [{"key_dim": 6, "value_dim": 10, "width": 3}, {"heads": 1}, {"width": 1}]
VARIANTS = {"deltanet": SHAPES, "gated-deltanet": SHAPES}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def convolved(state, x, part, heads):
    w = state[f"{part}_conv.weight"]
    z = np.concatenate([np.zeros((w.shape[1] - 1, len(w))), x @ state[f"to_{part}.weight"].T])
    z = np.array([sum(w[:, i] * z[t + i] for i in range(w.shape[1])) for t in range(len(x))])
    return (z * sigmoid(z)).reshape(len(x), heads, -1)


def delta_rule(state, x, heads, alpha, read_out):
    y = np.zeros_like(x)
    for b in range(len(x)):
        q, k, v = (convolved(state, x[b], part, heads) for part in ("query", "key", "value"))
        q, k = (z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-6) for z in (q, k))
        beta = sigmoid(x[b] @ state["to_write.weight"].T)
        for h in range(heads):
            S = np.zeros((v.shape[2], k.shape[2]))
            for t in range(len(q)):
                erase = np.eye(k.shape[2]) - beta[t, h] * np.outer(k[t, h], k[t, h])
                S = alpha(x[b, t])[h] * S @ erase + beta[t, h] * np.outer(v[t, h], k[t, h])
                part = slice(h * v.shape[2], (h + 1) * v.shape[2])
                y[b, t] += read_out(S @ q[t, h] / np.sqrt(k.shape[2]), x[b, t], part)
    return y


def deltanet(state, x, dim, heads, key_dim=None, value_dim=None, width=4):
    def read_out(o, x, part):
        return state["out.weight"][:, part] @ (o / np.sqrt(np.mean(o**2) + 1e-5) * state["norm.weight"])

    return delta_rule(state, x, heads, lambda _: np.ones(heads), read_out)


def gated_deltanet(state, x, dim, heads, key_dim=None, value_dim=None, width=4):
    def alpha(x):
        step = np.log(1 + np.exp(state["decay.to_step.weight"] @ x + state["decay.bias"]))
        return np.exp(-np.exp(state["decay.log_rate"]) * step)

    def read_out(o, x, part):
        g = state["output.to_gate.weight"][part] @ x
        o = o / np.sqrt(np.mean(o**2) + 1e-5) * state["output.norm.weight"]
        return state["output.out.weight"][:, part] @ (o * g * sigmoid(g))

    return delta_rule(state, x, heads, alpha, read_out)
