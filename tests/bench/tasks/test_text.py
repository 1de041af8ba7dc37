import sys
from collections import Counter
from itertools import pairwise
from math import log2

import pytest
import torch

from penstock.bench.task import IGNORE
from penstock.bench.tasks import get_task, text
from penstock.core import DataError


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(
        "".join(f"Line {n}: the quick brown fox jumps over {n * n} dogs, déjà vu.\n" for n in range(400)), "utf-8"
    )
    return path


def test_the_default_text_is_english_of_some_size_without_repeats():
    data = text.topics()
    paragraphs = data.decode().split("\n\n")
    assert len(data) > 200_000
    assert len(set(paragraphs)) == len(paragraphs)
    cut = round(0.9 * len(data))
    lines = {line for line in data[:cut].split(b"\n") if len(line) > 40}
    assert not lines.intersection(data[cut:].split(b"\n"))
    assert sum(word in {"the", "a", "of", "is", "to"} for word in data.decode().split()) > 5000


def test_windows_are_of_the_text_and_shifted_by_one(story):
    data = story.read_bytes()
    train = data[: round(0.9 * len(data))]
    inputs, targets, _ = get_task("text", length=20, file=str(story)).batch("train", 0, 0, 50)
    for x, y in zip(inputs, targets, strict=True):
        assert torch.equal(x[1:], y[:-1])
        assert bytes(x.tolist()) + bytes([int(y[-1])]) in train


def test_every_held_out_byte_but_the_first_is_asked_once(story):
    data = story.read_bytes()
    task = get_task("text", length=20, file=str(story))
    for split, start, end in (("valid", 0.9, 0.95), ("test", 0.95, 1)):
        part = data[round(start * len(data)) : round(end * len(data))]
        batches = list(task.evaluation(split, 7))
        assert {len(batch.inputs) for batch in batches[:-1]} == {7}
        inputs, targets = (torch.cat([batch[i] for batch in batches]).flatten() for i in (0, 1))
        asked = targets != IGNORE
        assert bytes(targets[asked].tolist()) == part[1:]
        assert bytes(inputs[asked].tolist()) == part[:-1]


def test_held_out_parts_of_a_long_text_are_cut(story):
    task = get_task("text", length=20, file=str(story), held_out=3)
    batches = list(task.evaluation("test", 2))
    assert [len(batch.inputs) for batch in batches] == [2, 1]
    assert all((batch.targets != IGNORE).all() for batch in batches)


def counted(train, held_out, order, add):
    whole, context = Counter(), Counter()
    for place in range(max(order - 1, 1), len(train)):
        whole[train[place - order + 1 : place + 1]] += 1
        context[train[place - order + 1 : place]] += 1
    total, number = 0.0, 0
    for place in range(max(order - 1, 1), len(held_out)):
        run = held_out[place - order + 1 : place + 1]
        total -= log2((whole[run] + add) / (context[run[:-1]] + 256 * add))
        number += 1
    return total / number


def test_floors_equal_counts_in_a_dictionary(story):
    data = story.read_bytes()
    cuts = [0, round(0.9 * len(data)), round(0.95 * len(data)), len(data)]
    train, valid, test = (data[a:b] for a, b in pairwise(cuts))
    floors = get_task("text", length=20, file=str(story)).floors()
    expected = [8.0]
    for order in (1, 2, 3):
        add = min(text.SMOOTHING, key=lambda k, order=order: counted(train, valid, order, k))
        expected.append(counted(train, test, order, add))
    assert list(floors.values()) == pytest.approx(expected, rel=1e-9)
    assert expected == sorted(expected, reverse=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read .*text.bin: No such file or directory"),
        (b"", "text.bin is empty"),
        (b"abc" * 700 + b"\xff" + b"d" * 3000, "text.bin is not UTF-8: byte 2100 is 0xff"),
        (b"too short " * 10, "text.bin is shorter than the context: it has 100 bytes, and length=128 needs about 2600"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "text.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        get_task("text", file=str(path))


def test_a_folder_is_not_a_text(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        get_task("text", file=str(tmp_path))


def test_a_python_without_its_help_topics(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text.topics.cache_clear()
    with pytest.raises(DataError, match=r"comes without its help topics .* file=PATH"):
        get_task("text")
