"""The next byte of real text."""

import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from penstock.bench.task import IGNORE, Batch, Split, Task, stream
from penstock.core.arguments import Size
from penstock.core.card import listed
from penstock.core.errors import DataError

CUTS = (0.0, 0.90, 0.95, 1.0)
COUNTED = 2**24
SMOOTHING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@listed("text", kind="task", paper="graves2013generating", at="sec. 3.2, the next byte of Wikipedia in bits per character")
class Text(Task):
    """Next-byte prediction on a text, by default the help topics that come with Python, measured in bits per byte.

    The first 90% of the bytes are for training, the next 5% for validation, the last 5% for the test. Training draws windows
    at random; a held-out part is cut into windows one after another, so that each of its bytes but the first is predicted
    once. The default text differs a little between versions of Python; a paragraph that stands in several topics is kept
    once, since it would be in training and test both.

    Args:
        length: bytes of context, and so predictions in a window.
        file: path of a UTF-8 text to use instead.
        held_out: windows in the validation and in the test part at most; the rest of a long text's parts is not used.
    """

    inputs: ClassVar[Literal["tokens", "features"]] = "tokens"
    metric: ClassVar[Literal["accuracy", "bits per byte"]] = "bits per byte"
    per_position: ClassVar[bool] = True

    def __init__(self, length: Size = 128, file: str | None = None, held_out: Size = 1024) -> None:
        self.length, self.vocabulary, self.classes = length, 256, 256
        data = topics() if file is None else read(file)
        cuts = [round(share * len(data)) for share in CUTS]
        shortest = min(b - a for a, b in pairwise(cuts))
        if shortest < length + 1:
            need = 20 * (length + 2)
            raise DataError(
                f"text: {file or 'the default text'} is shorter than the context: it has {len(data)} bytes, and "
                f"length={length} needs about {need}, a window of {length + 1} bytes in each of its parts"
            )
        parts = [torch.frombuffer(bytearray(data[a:b]), dtype=torch.uint8) for a, b in pairwise(cuts)]
        most = held_out * length + 1
        self._parts: dict[Split, torch.Tensor] = {"train": parts[0], "valid": parts[1][:most], "test": parts[2][:most]}

    def batch(self, split: Split, seed: int, index: int, size: int) -> Batch:
        """Return `size` windows at random places, drawn from batch `index` of the stream of `seed`."""
        part = self._parts[split]
        places = stream(split, seed, index).integers(len(part) - self.length, size=(size, 1))
        windows = part[torch.from_numpy(places + np.arange(self.length + 1))].long()
        return Batch(windows[:, :-1], windows[:, 1:])

    def evaluation(self, split: Split, size: int) -> Iterator[Batch]:
        """Yield the windows that cover `split`; in the last one, places past its end ask nothing."""
        part = self._parts[split].long()
        count = -(-(len(part) - 1) // self.length)
        missing = count * self.length + 1 - len(part)
        inputs = torch.nn.functional.pad(part[:-1], (0, missing))
        targets = torch.nn.functional.pad(part[1:], (0, missing), value=IGNORE)
        return Batch(inputs.view(count, -1), targets.view(count, -1)).split(size)

    @cached_property
    def _floors(self) -> dict[str, float]:
        train, valid, test = (part.numpy() for part in self._parts.values())
        result = {"uniform": 8.0}
        for order, name in enumerate(("one-byte counts", "two-byte counts", "three-byte counts"), 1):
            counts = np.bincount(runs(train[:COUNTED], order), minlength=256**order).reshape([256] * order)
            add = min(SMOOTHING, key=lambda add, counts=counts: bits(counts, valid, add))
            result[name] = bits(counts, test, add)
        return result

    def floors(self) -> Mapping[str, float]:
        """Return the bits per byte of equal chances and of counts of one, two and three bytes.

        Counts are raised by a constant before they become probabilities, the one that suits the validation part best.
        """
        return self._floors


def runs(data: np.ndarray, width: int) -> np.ndarray:
    """Return every run of `width` bytes as one number, for runs that end at the second byte or later."""
    first = max(width - 1, 1)
    code = np.zeros(len(data) - first, dtype=np.int64)
    for back in reversed(range(width)):
        code = code << 8 | data[first - back : len(data) - back]
    return code


def bits(counts: np.ndarray, data: np.ndarray, add: float) -> float:
    """Return the mean bits per byte of `data` under `counts` of runs, an axis for each byte, each raised by `add`.

    A byte with less before it than the runs hold is left out.
    """
    code = runs(data, counts.ndim)
    whole = counts.sum(-1).ravel()
    return float(-np.log2((counts.ravel()[code] + add) / (whole[code >> 8] + 256 * add)).mean())


@cache
def topics() -> bytes:
    """Return Python's help topics by name, each paragraph where it first stands."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        raise DataError("text: this Python comes without its help topics (pydoc_data); give a text with file=PATH") from None
    paragraphs = (part.strip("\n") for name in sorted(found) for part in re.split(r"\n\s*\n", found[name]))
    return "\n\n".join(dict.fromkeys(paragraphs)).encode()


def read(file: str) -> bytes:
    """Return the bytes of a UTF-8 file; what cannot be used is a `DataError` that says why and where."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"text: cannot read {file}: {error.strerror}") from error
    if not data:
        raise DataError(f"text: {file} is empty")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"text: {file} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None
    return data
