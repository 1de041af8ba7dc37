import numpy as np

VARIANTS = {"mamba2": [{"heads": 4, "width": 2}, {"expand": 1, "heads": 1, "size": 5}]}


def silu(z):
    return z / (1 + np.exp(-z))


def mamba2(state, x, dim, heads, size, expand=2, width=4):
    y, inner, w = np.zeros_like(x), expand * dim, state["conv.weight"]
    for b in range(len(x)):
        S = np.zeros((heads, inner // heads, size))
        z = np.concatenate([np.zeros((width - 1, len(w))), x[b] @ state["to_inner.weight"].T])
        for t in range(len(x[b])):
            stream = silu((w.T * z[t : t + width]).sum(0) + state["conv.bias"])
            u, B, C = stream[:inner].reshape(heads, -1), stream[inner : inner + size], stream[inner + size :]
            step = np.log(1 + np.exp(state["decay.to_step.weight"] @ x[b, t] + state["decay.bias"]))
            o = np.zeros_like(u)
            for h in range(heads):
                S[h] = np.exp(-np.exp(state["decay.log_rate"][h]) * step[h]) * S[h] + step[h] * np.outer(u[h], B)
                o[h] = S[h] @ C + state["skip"][h] * u[h]
            o = o.reshape(inner) * silu(state["to_gate.weight"] @ x[b, t])
            y[b, t] = state["out.weight"] @ (o / np.sqrt(np.mean(o**2) + 1e-5) * state["norm.weight"])
    return y
