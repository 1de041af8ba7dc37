"""What a task is: batches that depend on nothing but their place, a metric, and floors to beat."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.core.arguments import bind
from penstock.core.card import Card

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
IGNORE = -100
HELD_OUT = 2**32 - 1


class Batch(NamedTuple):
    """Examples and what is asked of them.

    `inputs` is `(B, T)` integers or `(B, T, F)` floats. `targets` is `(B, T)` or `(B,)`, `IGNORE` where none is asked.
    `groups` `(B, T)` numbers the positions that are judged together, or is None where each is judged alone.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        groups = None if self.groups is None else self.groups.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), groups)

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield the examples in order, at most `size` at a time."""
        for start in range(0, len(self.inputs), size):
            some = slice(start, start + size)
            yield Batch(self.inputs[some], self.targets[some], None if self.groups is None else self.groups[some])


class Task(ABC):
    """A task for sequence models.

    A task draws batch `index` of a seed's stream without looking at any other, so that every mechanism sees the same data
    in the same order, and a run goes on from a checkpoint without replaying what came before.
    """

    card: ClassVar[Card]
    inputs: ClassVar[Literal["tokens", "features"]]
    metric: ClassVar[Literal["accuracy", "bits per byte"]]
    per_position: ClassVar[bool]
    length: int
    classes: int
    vocabulary: int = 0
    features: int = 0

    @classmethod
    def create(cls, **options: Any) -> "Task":
        """Build the task; an unknown or unacceptable option is a `ConfigError` that names task and option."""
        bind(cls, _name(cls), (), options)
        return cls(**options)

    @property
    def name(self) -> str:
        """The name in the catalogue, or the class name where there is no card."""
        return _name(type(self))

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric == "accuracy"

    @abstractmethod
    def batch(self, split: Split, seed: int, index: int, size: int) -> Batch:
        """Return batch `index` of `size` examples of the endless stream that `seed` starts."""

    @abstractmethod
    def evaluation(self, split: Split, size: int) -> Iterator[Batch]:
        """Yield the whole held-out split in batches of at most `size`, the last one smaller; the same at every call."""

    @abstractmethod
    def floors(self) -> Mapping[str, float]:
        """Return the metric of what needs no network: chance, counts, a linear model; by name."""

    def score(self, loss: float, accuracy: float) -> float:
        """Return the metric from the mean loss in nats and the share of right answers."""
        return accuracy if self.metric == "accuracy" else loss / math.log(2)


def _name(cls: type[Task]) -> str:
    card = getattr(cls, "card", None)
    return card.name if card else cls.__name__


class DrawnTask(Task):
    """A task whose examples are drawn from a generator; `held_out` of them make the validation and the test split each."""

    held_out: int

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int, split: Split) -> Batch:
        """Return `size` fresh examples."""

    def batch(self, split: Split, seed: int, index: int, size: int) -> Batch:
        """Return batch `index` of `size` examples of the endless stream that `seed` starts."""
        return self.draw(stream(split, seed, index), size, split)

    @cached_property
    def _kept(self) -> dict[Split, Batch]:
        return {}

    def evaluation(self, split: Split, size: int) -> Iterator[Batch]:
        """Yield the held-out examples of `split`, which no seed's stream shares but by chance."""
        if split not in self._kept:
            self._kept[split] = self.draw(stream(split, HELD_OUT, 0), self.held_out, split)
        return self._kept[split].split(size)


def stream(split: Split, seed: int, index: int) -> np.random.Generator:
    """Return the random numbers of one batch: the same for the same place, unrelated for any other."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in nats over what the batch asks, a scalar."""
    return F.cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten(), ignore_index=IGNORE)


def judge(logits: Tensor, batch: Batch) -> Tensor:
    """Return for each question whether the likeliest class is right, `(questions,)` booleans.

    Where positions are judged together, their probabilities are added up before the likeliest class is taken.
    """
    asked = batch.targets != IGNORE
    if batch.groups is None:
        return logits.argmax(-1)[asked] == batch.targets[asked]
    rows = torch.arange(len(logits), device=logits.device).unsqueeze(1).expand_as(batch.groups)
    count = int(batch.groups.max()) + 1
    question = (rows * count + batch.groups)[asked]
    votes = logits.new_zeros(len(logits) * count, logits.shape[-1], dtype=torch.float32)
    votes.index_add_(0, question, logits[asked].float().softmax(-1))
    answers = torch.full((len(votes),), IGNORE, device=logits.device).index_copy(0, question, batch.targets[asked])
    there = answers != IGNORE
    return votes[there].argmax(-1) == answers[there]
