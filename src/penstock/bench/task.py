"""What a task is: batches that depend on nothing but their place, a metric, and floors to beat."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from penstock.core.arguments import bind
from penstock.core.card import Card

Split = Literal["train", "valid", "test"]
IGNORE = -100


class Batch(NamedTuple):
    """`inputs` is `(B, T)` integers or `(B, T, F)` floats; `targets` is `(B, T)` or `(B,)`, `IGNORE` where none is asked."""

    inputs: Tensor
    targets: Tensor


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
        bind(cls, cls.card.name, (), options)
        return cls(**options)

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
