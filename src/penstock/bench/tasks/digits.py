"""Handwritten digits as sequences of pixels or rows."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch

from penstock.bench.task import Batch, Split, Task, stream
from penstock.core.card import listed
from penstock.core.errors import DataError

CUTS = (0.8, 0.9)


@listed("digits", kind="task", paper="alpaydin1998optical", at="data set; its test part, as bundled with scikit-learn")
class Digits(Task):
    """Which digit is it, from an image of 8 by 8 pixels read as a sequence, one answer at the end.

    The images are split at random, always the same way: 80% for training, 10% for validation, 10% for the test. Writers are
    not kept apart.

    Args:
        scan: read pixel by pixel, 64 steps of one number, or row by row, 8 steps of eight.
    """

    inputs: ClassVar[Literal["tokens", "features"]] = "features"
    metric: ClassVar[Literal["accuracy", "bits per byte"]] = "accuracy"
    per_position: ClassVar[bool] = False

    def __init__(self, scan: Literal["pixels", "rows"] = "pixels") -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise DataError("digits: the images come with scikit-learn; pip install 'penstock[bench]'") from None
        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        cuts = [round(share * len(labels)) for share in CUTS]
        self.length, self.features = (64, 1) if scan == "pixels" else (8, 8)
        self.classes = 10
        images = torch.from_numpy(pixels[order] / 16).float().view(-1, self.length, self.features)
        targets = torch.from_numpy(labels[order])
        parts = [Batch(*pair) for pair in zip(images.tensor_split(cuts), targets.tensor_split(cuts), strict=True)]
        self._parts: dict[Split, Batch] = {"train": parts[0], "valid": parts[1], "test": parts[2]}

    def batch(self, split: Split, seed: int, index: int, size: int) -> Batch:
        """Return `size` images, drawn with replacement for batch `index` of the stream of `seed`."""
        part = self._parts[split]
        places = torch.from_numpy(stream(split, seed, index).integers(len(part.targets), size=size))
        return Batch(part.inputs[places], part.targets[places])

    def evaluation(self, split: Split, size: int) -> Iterator[Batch]:
        """Yield every image of `split`."""
        return self._parts[split].split(size)

    @cached_property
    def _floors(self) -> dict[str, float]:
        from sklearn.linear_model import LogisticRegression

        train, _, test = ((part.inputs.flatten(1).numpy(), part.targets.numpy()) for part in self._parts.values())
        majority = np.bincount(train[1]).argmax()
        regression = LogisticRegression(max_iter=1000).fit(*train)
        return {"majority": float((test[1] == majority).mean()), "logistic regression": float(regression.score(*test))}

    def floors(self) -> Mapping[str, float]:
        """Return the accuracy of the commonest digit and of a logistic regression on the pixels."""
        return self._floors
