import numpy as np

VARIANTS = {name: [{"threshold": 0.02}, {"threshold": 0.5}] for name in ("spikegpt-time", "spikegpt-channel")}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def mixed(state, part, now, before):
    share = state[f"shift_{part}.share"]
    return state[f"to_{part}.weight"] @ (share * now + (1 - share) * before)


def fired(current, threshold):
    v, spikes = 0, np.zeros_like(current)
    for t in range(len(current)):
        v = v + (current[t] - v) / 2
        spikes[t] = v >= threshold
        v = np.where(v >= threshold, 0, v)
    return spikes


def spikegpt_time(state, x, dim, threshold):
    y, w, u = np.zeros_like(x), np.exp(state["log_rate"]), state["bonus"]
    for b in range(len(x)):
        z = np.concatenate([np.zeros((1, dim)), x[b]])
        k, v, r = ([mixed(state, part, z[t + 1], z[t]) for t in range(len(x[b]))] for part in ("key", "value", "receptance"))
        current = np.zeros_like(x[b])
        for t in range(len(x[b])):
            weights = [np.exp(-(t - 1 - j) * w + k[j]) for j in range(t)] + [np.exp(u + k[t])]
            mean = sum(weights[j] * v[j] for j in range(t + 1)) / sum(weights)
            current[t] = state["out.weight"] @ (sigmoid(r[t]) * mean)
        y[b] = fired(current, threshold)
    return y


def spikegpt_channel(state, x, dim, hidden, threshold):
    y = np.zeros_like(x)
    for b in range(len(x)):
        z = np.concatenate([np.zeros((1, dim)), x[b]])
        current = np.zeros_like(x[b])
        for t in range(len(x[b])):
            k, r = (mixed(state, part, z[t + 1], z[t]) for part in ("key", "receptance"))
            current[t] = sigmoid(r) * (state["out.weight"] @ np.maximum(k, 0) ** 2)
        y[b] = fired(current, threshold)
    return y
