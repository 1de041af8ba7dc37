import numpy as np
import pytest
import torch

from penstock.bench.task import IGNORE
from penstock.bench.tasks import get_task
from penstock.core import ConfigError


@pytest.mark.parametrize("filler", ["zero", "random"])
@pytest.mark.parametrize(("length", "pairs", "vocabulary"), [(64, 4, 8192), (16, 4, 10), (40, 7, 64), (9, 2, 6)])
def test_every_label_is_the_value_that_followed_the_key(length, pairs, vocabulary, filler):
    task = get_task("mqar", length=length, pairs=pairs, vocabulary=vocabulary, filler=filler)
    inputs, targets, groups = task.batch("train", 0, 3, 50)
    assert inputs.shape == targets.shape == (50, length)
    assert groups is None
    for tokens, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
        values = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        asked = [place for place, label in enumerate(labels) if label != IGNORE]
        assert len(values) == len(set(values.values())) == len(asked) == pairs
        assert all(1 <= key < vocabulary // 2 <= value < vocabulary for key, value in values.items())
        assert sorted(tokens[place] for place in asked) == sorted(values)
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
        assert all(labels[place] == values[tokens[place]] for place in asked)


def test_filler_is_the_token_0_or_any_token():
    for filler, kinds in (("zero", 1), ("random", 64)):
        inputs, targets, _ = get_task("mqar", vocabulary=64, filler=filler).batch("train", 0, 0, 200)
        between = inputs[:, 8:][targets[:, 8:] == IGNORE]
        assert len(between.unique()) == kinds


def test_gaps_follow_the_power_law():
    """With one pair the gap is a single draw, so its frequencies are the probabilities themselves."""
    for power in (0.01, 1.0):
        _, targets, _ = get_task("mqar", length=22, pairs=1, power=power).batch("train", 0, 0, 8000)
        places = (targets != IGNORE).nonzero()[:, 1]
        seen = np.bincount((places.numpy() - 2) // 2, minlength=10) / 8000
        expected = np.arange(1, 11) ** (power - 1.0)
        np.testing.assert_allclose(seen, expected / expected.sum(), atol=0.02)


def test_floors():
    floors = get_task("mqar", length=64, pairs=8, vocabulary=100).floors()
    assert floors == {"any value": 1 / 50, "any value in context": 1 / 8}


def test_floors_are_what_guessing_reaches():
    task = get_task("mqar", length=32, pairs=4, vocabulary=24)
    generator = torch.Generator().manual_seed(0)
    hits, context_hits, total = 0, 0, 0
    for batch in task.evaluation("test", 100):
        asked = batch.targets != IGNORE
        answers = batch.targets[asked]
        hits += (torch.randint(12, 24, answers.shape, generator=generator) == answers).sum().item()
        values = batch.inputs[:, 1:8:2].repeat_interleave(4, 0)
        choice = torch.randint(0, 4, (len(answers), 1), generator=generator)
        context_hits += (values.gather(1, choice)[:, 0] == answers).sum().item()
        total += len(answers)
    assert total == 4 * 512
    assert hits / total == pytest.approx(task.floors()["any value"], abs=0.02)
    assert context_hits / total == pytest.approx(task.floors()["any value in context"], abs=0.03)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 15, "pairs": 4}, "length must be at least 4 \\* pairs, got length=15, pairs=4"),
        ({"vocabulary": 9}, "4 pairs need a vocabulary of at least 10, got vocabulary=9"),
        ({"pairs": 0}, "pairs must be an integer of at least 1, got 0"),
        ({"filler": "noise"}, "filler must be one of 'zero', 'random', got 'noise'"),
        ({"lenght": 64}, "unknown argument 'lenght'; did you mean 'length'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ConfigError, match=f"mqar: {words}"):
        get_task("mqar", **options)
