r"""Recall of values by their keys, many times in a sequence.

$$ P(\text{gap} = g) \propto a\, g^{a-1}, \quad g = 1, \dots, (T - 2D)/2 $$
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch

from penstock.bench.task import IGNORE, Batch, DrawnTask, Split
from penstock.core.arguments import Positive, Size
from penstock.core.card import listed
from penstock.core.errors import ConfigError


@listed("mqar", kind="task", paper="arora2024zoology", at="definition of multi-query associative recall, and its generator")
class MQAR(DrawnTask):
    """Multi-query associative recall: every key of a list of key-value pairs comes again, and its value is asked.

    A sequence starts with `pairs` keys, each followed by its value. Then each key comes once more as a query, at a place
    drawn without replacement with probabilities that fall with the distance by a power law. The label stands at the query
    itself; no other position has one. Keys are drawn from the lower half of the vocabulary, values from the upper.

    Args:
        length: tokens in a sequence, at least four for each pair.
        pairs: key-value pairs, and so queries, in a sequence.
        vocabulary: number of tokens; token 0 is the filler.
        power: a in the power law; 1 spreads the queries evenly, the paper's 0.01 puts most of them early.
        filler: what stands between queries: token 0, or any token of the vocabulary at random, as the paper's harder setting
            has it. Random filler can repeat a key, which makes a few labels ambiguous to a strict reader.
        held_out: sequences in the validation and in the test split.
    """

    inputs: ClassVar[Literal["tokens", "features"]] = "tokens"
    metric: ClassVar[Literal["accuracy", "bits per byte"]] = "accuracy"
    per_position: ClassVar[bool] = True

    def __init__(
        self,
        length: Size = 64,
        pairs: Size = 4,
        vocabulary: Size = 8192,
        power: Positive = 0.01,
        filler: Literal["zero", "random"] = "zero",
        held_out: Size = 512,
    ) -> None:
        if 4 * pairs > length:
            raise ConfigError(f"mqar: length must be at least 4 * pairs, got length={length}, pairs={pairs}")
        if vocabulary // 2 - 1 < pairs:
            need = 2 * pairs + 2
            raise ConfigError(f"mqar: {pairs} pairs need a vocabulary of at least {need}, got vocabulary={vocabulary}")
        self.length, self.pairs, self.vocabulary, self.classes = length, pairs, vocabulary, vocabulary
        self.filler, self.held_out = filler, held_out
        gaps = np.arange(1, (length - 2 * pairs) // 2 + 1) ** (power - 1.0)
        self._places = gaps / gaps.sum()

    def draw(self, rng: np.random.Generator, size: int, split: Split) -> Batch:  # noqa: ARG002 - the splits are alike
        """Return `size` fresh sequences."""
        first_value = self.vocabulary // 2
        inputs = np.zeros((size, self.length), dtype=np.int64)
        targets = np.full((size, self.length), IGNORE, dtype=np.int64)
        if self.filler == "random":
            inputs = rng.integers(self.vocabulary, size=inputs.shape)
        for tokens, labels in zip(inputs, targets, strict=True):
            keys = 1 + rng.choice(first_value - 1, self.pairs, replace=False)
            values = first_value + rng.choice(self.vocabulary - first_value, self.pairs, replace=False)
            tokens[0 : 2 * self.pairs : 2], tokens[1 : 2 * self.pairs : 2] = keys, values
            gaps = rng.choice(len(self._places), self.pairs, replace=False, p=self._places)
            queries = 2 * self.pairs + 2 * gaps
            tokens[queries], labels[queries] = keys, values
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def floors(self) -> Mapping[str, float]:
        """Return the accuracy of any value at all, and of any of the values that are in the sequence."""
        return {"any value": 1 / (self.vocabulary - self.vocabulary // 2), "any value in context": 1 / self.pairs}
