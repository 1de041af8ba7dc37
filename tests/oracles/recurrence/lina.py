import numpy as np

VARIANTS = {
    "lina": [{"heads": 1, "size": 12}, {"heads": 4, "size": 1}],
    "lina-subtraction": [{"heads": 1, "size": 12}, {"heads": 4, "size": 1}],
}


def turned(z, place):
    half, z = len(z) // 2, z.copy()
    for i in range(half):
        angle = place * 10000.0 ** (-i / half)
        a, b = z[i], z[i + half]
        z[i], z[i + half] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return z


def kernel(z, cell):
    half = len(z) // 2
    return np.maximum(np.concatenate([turned(z[:half], cell[0]), turned(z[half:], cell[1])]), 0) + 1e-6


def layer(state, x, heads, size, divide):
    y, (channels, height, width) = np.zeros_like(x), x.shape[1:]
    cells, d = [(i, j) for i in range(height) for j in range(width)], channels // heads
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for b in range(len(x)):
        parts = np.array([state["project.weight"] @ x[b, :, i, j] + state["project.bias"] for i, j in cells])
        Q, K, V = parts.reshape(len(cells), 3, heads, d).transpose(1, 2, 0, 3)
        O = np.zeros((len(cells), heads, d))  # noqa: E741 - as in the paper
        for h in range(heads):
            q = [kernel(z, cell) for z, cell in zip(Q[h], cells, strict=True)]
            k, v = [kernel(z, cell) for z, cell in zip(K[h], cells, strict=True)], list(V[h])
            for t, (i, j) in enumerate(cells):
                if i < size and j < size:
                    k[t], v[t] = state["key_openness"][h, i, j] * k[t], state["value_openness"][h, i, j] * v[t]
            for t in range(len(cells)):
                w = np.array([q[t] @ key for key in k]) / len(cells)
                w = w / (w.sum() + 1e-6) if divide else w / np.sqrt(d) + (1 - w.sum() / np.sqrt(d)) / len(cells)
                O[t, h] = sum(share * value for share, value in zip(w, v, strict=True))
        for t, (i, j) in enumerate(cells):
            near = (padded[b, :, i : i + 5, j : j + 5] * state["local.weight"][:, 0]).sum((1, 2)) + state["local.bias"]
            y[b, :, i, j] = state["out.weight"] @ (O[t].reshape(channels) + near) + state["out.bias"]
    return y


def lina(state, x, channels, heads, size):
    return layer(state, x, heads, size, divide=True)


def lina_subtraction(state, x, channels, heads, size):
    return layer(state, x, heads, size, divide=False)
