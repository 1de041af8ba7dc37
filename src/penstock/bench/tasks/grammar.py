"""A random grammar some of whose symbols stand for several hidden states."""

import numpy as np

from penstock.core.errors import ConfigError

ATTEMPTS = 10_000


class Grammar:
    """States, the symbol each shows, and which may follow which.

    Symbol 0 ends a string; it has one state, state 0. Every other symbol has one state, or `depth` if it is ambiguous. For
    each state and each symbol, one random state of that symbol becomes a successor with probability `density / depth` times
    the number of the symbol's states. So a state and the next symbol determine the next state. A grammar in which some state
    cannot reach the end is drawn again.

    Args:
        symbols: size of the alphabet, the end included.
        ambiguous: how many of the symbols are ambiguous.
        depth: states of an ambiguous symbol.
        density: how many successors a state has; more is less predictable.
        starts: states that a string can start with.
        seed: which grammar of this kind.
    """

    def __init__(self, symbols: int, ambiguous: int, depth: int, density: float, starts: int, seed: int) -> None:
        sizes = np.array([1] + [depth] * ambiguous + [1] * (symbols - 1 - ambiguous))
        self.symbol = np.repeat(np.arange(symbols), sizes)
        first = np.cumsum(sizes) - sizes
        chance = np.minimum(1.0, sizes * density / depth)
        rng = np.random.default_rng(seed)
        for _ in range(ATTEMPTS):
            shape = (len(self.symbol), symbols)
            follower = first + np.floor(rng.random(shape) * sizes).astype(np.int64)
            self.follower = np.where(rng.random(shape) < chance, follower, -1)
            self.follower[0] = -1
            if self._ends():
                self.starts = 1 + rng.choice(len(self.symbol) - 1, starts, replace=False)
                return
        raise ConfigError(
            f"selectivbench: no grammar with symbols={symbols}, ambiguous={ambiguous}, depth={depth} and density={density} "
            "ends all its strings; raise density or the number of symbols"
        )

    def _ends(self) -> bool:
        """Tell whether every state can reach the end."""
        ends = self.symbol == 0
        while True:
            reaches = ends | (ends[self.follower] & (self.follower >= 0)).any(1)
            if (reaches == ends).all():
                return bool(ends.all())
            ends = reaches

    def successors(self) -> list[np.ndarray]:
        """Return the states that may follow each state; after the end, those that start a string."""
        return [self.starts, *(row[row >= 0] for row in self.follower[1:])]

    def allowed(self) -> np.ndarray:
        """Return which symbols may follow each state, `(states, symbols)` booleans."""
        table = np.zeros(self.follower.shape, dtype=bool)
        for state, following in enumerate(self.successors()):
            table[state, self.symbol[following]] = True
        return table

    def walk(self, rng: np.random.Generator, size: int, length: int) -> np.ndarray:
        """Return `(size, length)` states: string after string, each successor equally likely, the last string cut off."""
        following = self.successors()
        count = np.array([len(row) for row in following])
        table = np.zeros((len(count), count.max()), dtype=np.int64)
        for state, row in enumerate(following):
            table[state, : len(row)] = row
        path = np.zeros((size, length), dtype=np.int64)
        state = np.zeros(size, dtype=np.int64)
        for place, chance in enumerate(rng.random((length, size))):
            state = table[state, (chance * count[state]).astype(np.int64)]
            path[:, place] = state
        return path
