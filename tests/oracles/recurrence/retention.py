import numpy as np

VARIANTS = {"retention": [{"heads": 1, "value_dim": 6}, {"dim": 6, "heads": 2}]}


def turned(z, t):
    z, half = z.copy(), len(z) // 2
    for i in range(half):
        pair = (z[i] + 1j * z[i + half]) * np.exp(1j * t * 10000.0 ** (-i / half))
        z[i], z[i + half] = pair.real, pair.imag
    return z


def retention(state, x, dim, heads, value_dim=None):
    y = np.zeros_like(x)
    for b in range(len(x)):
        q, k, v = ((x[b] @ state[f"to_{part}.weight"].T).reshape(len(x[b]), heads, -1) for part in ("query", "key", "value"))
        r = x[b] @ state["output.to_gate.weight"].T
        for h in range(heads):
            for t in range(len(q)):
                o = 0
                for s in range(t + 1):
                    o += (1 - 2.0 ** (-5 - h)) ** (t - s) * (turned(q[t, h], t) @ turned(k[s, h], s)) * v[s, h]
                o = o / np.sqrt(q.shape[2])
                o = o / np.sqrt(np.mean(o**2) + 1e-5) * state["output.norm.weight"]
                part = slice(h * v.shape[2], (h + 1) * v.shape[2])
                y[b, t] += state["output.out.weight"][:, part] @ (o * r[t, part] / (1 + np.exp(-r[t, part])))
    return y
