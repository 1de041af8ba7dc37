import numpy as np

VARIANTS = {"codebook-features": [{"groups": 1, "active": 1}, {"groups": 3, "active": 5, "reconstruction": 0.5}]}


def codebook_features(state, x, dim, codes, active, groups, reconstruction=1.0):
    y, indices, loss = np.zeros_like(x), np.zeros((*x.shape[:2], groups, active), int), 0.0
    width = dim // groups
    for b, t, g in np.ndindex(*x.shape[:2], groups):
        part, book = x[b, t, g * width : (g + 1) * width], state["codes"][g]
        a = (part - part.mean()) / np.sqrt(part.var() + 1e-5) * state["weight"][g] + state["bias"][g]
        cosines = [a @ c / np.linalg.norm(a) / np.linalg.norm(c) for c in book]
        indices[b, t, g] = sorted(range(codes), key=lambda j: -cosines[j])[:active]
        y[b, t, g * width : (g + 1) * width] = sum(book[j] for j in indices[b, t, g]) / active
        loss += ((y[b, t, g * width : (g + 1) * width] - a) ** 2).sum() / len(x) / len(x[b])
    return y, indices, reconstruction * loss
