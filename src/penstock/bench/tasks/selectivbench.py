"""Tracking the hidden state of a grammar through gaps, noise and symbols that break its rules."""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch

from penstock.bench.task import HELD_OUT, Batch, DrawnTask, Split, stream
from penstock.bench.tasks.grammar import Grammar
from penstock.core.arguments import Count, Fraction, NonNegative, Positive, Size
from penstock.core.card import listed
from penstock.core.errors import ConfigError

COUNTED = 1000


@listed("selectivbench", kind="task", paper="selectivbench2026", at="tasks 1 to 4, classification")
class SelectivBench(DrawnTask):
    """State tracking: at every step, name the hidden state of a random grammar that the last symbol was shown by.

    The input is a symbol, one-hot, followed by a gap. Ambiguous symbols can only be told apart by what came before. The
    state is asked at the symbol and all through its gap, and judged once for both. The paper's tasks: 1, complexity:
    `ambiguous` and `depth` grow, `gap=1`. 2, gaps: `gap=10, noise=0.2`. 3, broken rules: `gap_content="forbidden"`,
    `gap_share=0.1, gap_from=50`. 4, longer gaps than in training: task 2 with `test_gap` from 10 to 100. In the paper 20 to
    40 symbols are ambiguous, with as many states each, and a sequence has 200 symbols. Here `length` counts steps, gaps
    included, and a string that does not fit is cut off, where the released code draws it again.

    Args:
        length: steps in a sequence.
        symbols: size of the alphabet; one of them ends a string.
        ambiguous: how many of the others stand for several states.
        depth: states of an ambiguous symbol.
        density: likelihood that an ambiguous symbol may follow a state; for others it is divided by `depth`.
        starts: states that a string can start with.
        gap: steps in the longest gap; lengths are uniform from 1 step, the two ends half as likely; 0 is no gap.
        gap_share: share of the symbols that have a gap.
        gap_from: symbols before the first gap.
        gap_content: what a gap holds: nothing, or symbols that the grammar forbids there.
        test_gap: length of every gap in the test split; as in training by default.
        noise: every input is raised by a random amount up to this.
        grammar: which grammar of this kind; the same for all splits and seeds.
        held_out: sequences in the validation and in the test split.
    """

    inputs: ClassVar[Literal["tokens", "features"]] = "features"
    metric: ClassVar[Literal["accuracy", "bits per byte"]] = "accuracy"
    per_position: ClassVar[bool] = True

    def __init__(  # noqa: PLR0913 - each is an axis of the benchmark
        self,
        *,
        length: Size = 128,
        symbols: Size = 9,
        ambiguous: Count = 8,
        depth: Size = 4,
        density: Positive = 0.4,
        starts: Size = 4,
        gap: Count = 1,
        gap_share: Fraction = 1.0,
        gap_from: Count = 0,
        gap_content: Literal["blank", "forbidden"] = "blank",
        test_gap: Count | None = None,
        noise: NonNegative = 0.0,
        grammar: Count = 0,
        held_out: Size = 256,
    ) -> None:
        if ambiguous > symbols - 1:
            raise ConfigError(
                f"selectivbench: ambiguous must be below symbols, got symbols={symbols}, ambiguous={ambiguous}"
            )
        states = ambiguous * depth + symbols - ambiguous
        if starts > states - 1:
            raise ConfigError(f"selectivbench: starts must be below the number of states, {states}, got starts={starts}")
        self.grammar = Grammar(symbols, ambiguous, depth, density, starts, grammar)
        self.length, self.features, self.classes, self.held_out = length, symbols, states, held_out
        self.gap, self.gap_share, self.gap_from = gap, gap_share, gap_from
        self.gap_content, self.test_gap, self.noise = gap_content, test_gap, noise

    def _gaps(self, rng: np.random.Generator, size: int, split: Split) -> np.ndarray:
        shape = (size, self.length)
        if split == "test" and self.test_gap is not None:
            gaps = np.full(shape, self.test_gap)
        else:
            gaps = np.rint(rng.uniform(min(1, self.gap), self.gap, shape)).astype(np.int64)
        open_to = (np.arange(self.length) >= self.gap_from) & (rng.random(shape) < self.gap_share)
        return np.where(open_to, gaps, 0)

    def paths(self, rng: np.random.Generator, size: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return `(size, length)` states, and for each step the number of the symbol it belongs to."""
        path = self.grammar.walk(rng, size, self.length)
        steps = 1 + self._gaps(rng, size, split)
        numbers = np.arange(self.length)
        groups = np.stack([np.repeat(numbers, row)[: self.length] for row in steps])
        return np.take_along_axis(path, groups, 1), groups

    def draw(self, rng: np.random.Generator, size: int, split: Split) -> Batch:
        """Return `size` fresh sequences."""
        states, groups = self.paths(rng, size, split)
        starts = np.diff(groups, axis=1, prepend=-1) > 0
        shown = np.where(starts, self.grammar.symbol[states], -1)
        if self.gap_content == "forbidden":
            forbidden = ~self.grammar.allowed()[states]
            pick = np.where(forbidden, rng.random(forbidden.shape), -1.0).argmax(-1)
            shown = np.where(starts | ~forbidden.any(-1), shown, pick)
        inputs = (shown[..., None] == np.arange(self.features)).astype(np.float32)
        if self.noise:
            inputs += rng.random(inputs.shape, dtype=np.float32) * np.float32(self.noise)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(states), torch.from_numpy(groups))

    def _counted(self, states: np.ndarray, starts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return what a table can be looked up by at each symbol, as numbers below `states * symbols`, and the states."""
        symbol = self.grammar.symbol[states]
        before = np.pad(symbol + 1, ((0, 0), (1, 0)))[:, :-1]
        pair = before * self.features + symbol
        keys = {"likeliest state": 0 * pair, "likeliest for the symbol": symbol, "likeliest for two symbols": pair}
        return {name: key[starts] for name, key in keys.items()}, states[starts]

    @cached_property
    def _floors(self) -> dict[str, float]:
        walked = self.grammar.walk(stream("train", HELD_OUT, 1), COUNTED, self.length)
        known, answers = self._counted(walked, np.ones_like(walked, dtype=bool))
        states, groups = self.paths(stream("test", HELD_OUT, 0), self.held_out, "test")
        asked, right = self._counted(states, np.diff(groups, axis=1, prepend=-1) > 0)
        keys = (self.features + 1) * self.features
        result = {}
        for name, key in known.items():
            counts = np.bincount(key * self.classes + answers, minlength=keys * self.classes).reshape(keys, -1)
            result[name] = float((counts.argmax(1)[asked[name]] == right).mean())
        return result

    def floors(self) -> Mapping[str, float]:
        """Return the accuracy of the likeliest state given nothing, the symbol, and the symbol with the one before it."""
        return self._floors
