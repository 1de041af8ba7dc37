import numpy as np

VARIANTS = {"nalaformer": [{"heads": 1}, {"heads": 4}]}


def turned(z, place):
    half, z = len(z) // 2, z.copy()
    for i in range(half):
        angle = place * 10000.0 ** (-i / half)
        a, b = z[i], z[i + half]
        z[i], z[i + half] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return z


def rotated(features, cell):
    return np.concatenate(
        [turned(z, place) for z in np.split(features, 2) for z, place in zip(np.split(z, 2), cell, strict=True)]
    )


def affine(state, part, z):
    return state[f"{part}.weight"] @ z + state[f"{part}.bias"]


def nalaformer(state, x, channels, heads):
    y, (height, width) = np.zeros_like(x), x.shape[2:]
    cells, d = [(i, j) for i in range(height) for j in range(width)], channels // heads
    for b in range(len(x)):
        parts = np.array([affine(state, "project", x[b, :, i, j]) for i, j in cells])
        Q, K, V = parts.reshape(len(cells), 3, heads, d).transpose(1, 2, 0, 3)
        image = np.pad(parts[:, 2 * channels :].reshape(height, width, channels), ((2, 2), (2, 2), (0, 0)))
        O = np.zeros((len(cells), heads, d))  # noqa: E741 - as in the paper
        for h in range(heads):
            phi, psi = [], []
            for q, k in zip(Q[h], K[h], strict=True):
                n = np.sqrt(q @ q)
                phi.append((np.maximum(np.concatenate([q, -q]), 0) / n) ** (3 * (0.5 + np.tanh(n))))
                psi.append(np.maximum(np.concatenate([k, -k]), 0) ** 3)
            for t in range(len(cells)):
                mass = sum(phi[t] @ feature for feature in psi) / len(cells) + 1e-6
                for s in range(len(cells)):
                    O[t, h] += rotated(phi[t], cells[t]) @ rotated(psi[s], cells[s]) / len(cells) / mass * V[h, s]
        for t, (i, j) in enumerate(cells):
            near = (image[i : i + 5, j : j + 5] * state["local.weight"][:, 0].transpose(1, 2, 0)).sum((0, 1))
            z = O[t].reshape(channels) + near + state["local.bias"]
            z = (z - z.mean()) / np.sqrt(z.var() + 1e-5) * state["norm.weight"] + state["norm.bias"]
            g = affine(state, "to_gate", x[b, :, i, j])
            y[b, :, i, j] = affine(state, "out", z * g / (1 + np.exp(-g)))
    return y
