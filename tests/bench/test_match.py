from dataclasses import replace

import pytest
from comparison_stubs import study

from penstock.bench.plan import match
from penstock.bench.plan.choice import Choice
from penstock.bench.plan.study import build_task, resolve
from penstock.bench.training.cost import operations, parameters
from penstock.core import ConfigError
from penstock.models import build_model

NAMES = ["attention", "gated-attention", "gla", "hgrn", "gam", "geglu", "ffn"]


@pytest.fixture(scope="module")
def wanted():
    return resolve(NAMES, ["mqar,vocabulary=32,length=16,pairs=2"], preset="quick", dim=32, device="cpu")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["params", "flops"])
def test_sizes_match_within_two_percent_and_only_a_large_mixer_narrows_its_model(wanted, name, what):
    same = replace(wanted, match=what)
    task = build_task(same.tasks[0])
    target = match.reference_size(same, task)
    sized = match.fit(same, task, Choice.parse(name, "mechanism"), target)
    model = build_model(sized.spec)
    assert parameters(model) == sized.params
    assert abs(getattr(sized, what) - target) <= 0.02 * target
    assert (sized.spec["dim"] == 32) == (name != "gam")


def test_a_pooling_has_a_model_in_which_no_item_sees_another_before_it():
    wanted = resolve(["adapool,heads=2", "acmil"], ["bags,length=8,held_out=20"], dim=16, device="cpu")
    task = build_task(wanted.tasks[0])
    target = match.reference_size(wanted, task)
    for choice in wanted.mechanisms:
        sized = match.fit(wanted, task, choice, target)
        model = build_model(sized.spec)
        assert sized.spec["model"] == "bag"
        assert sized.spec["pooling"] == choice.plain("mechanism")
        assert abs(sized.params - target) <= 0.02 * target
        assert model.eval()(task.batch("train", 0, 0, 3).inputs).shape == (3, task.classes)


def test_a_pooling_is_not_compared_on_what_is_no_set():
    wanted = resolve(["adapool"], ["mqar,vocabulary=32,length=16,pairs=2"], dim=16, device="cpu")
    with pytest.raises(ConfigError, match="adapool: a pooling is compared on bags of features, and mqar has none; try bags"):
        match.model_spec(wanted, build_task(wanted.tasks[0]), wanted.mechanisms[0], 16, 8)


def test_a_mixer_too_large_for_its_width_gets_a_narrower_model():
    wide = study("Plain", dim=32)
    task = build_task(wide.tasks[0])
    choice = Choice.parse("attention", "mechanism")
    target = match.reference_size(wide, task) // 3
    sized = match.fit(wide, task, choice, target)
    assert sized.spec["dim"] < 32
    assert abs(sized.params - target) <= 0.02 * target


def test_a_hidden_width_of_the_users_own_leaves_the_residual_width():
    wanted = resolve(["swiglu,hidden=8"], ["mqar,vocabulary=32,length=16,pairs=2"], dim=32, device="cpu")
    task = build_task(wanted.tasks[0])
    target = match.reference_size(wanted, task)
    sized = match.fit(wanted, task, wanted.mechanisms[0], target)
    assert sized.spec["channel"] == {"mechanism": "swiglu", "hidden": 8}
    assert sized.spec["dim"] > 32
    assert abs(sized.params - target) <= 0.02 * target


def test_impossible_sizes_are_an_error_that_says_how_far_off():
    small = study("Plain")
    task = build_task(small.tasks[0])
    with pytest.raises(ConfigError, match="no width gives 10 parameters to within 2%"):
        match.fit(small, task, small.mechanisms[0], 10)


def test_operations_of_a_linear_map_and_an_activation():
    from torch import nn

    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.map = nn.Embedding(5, 4), nn.Linear(4, 6, bias=False)

        def forward(self, x):
            return self.map(self.embedding(x)).relu()

    task = build_task(study("Plain").tasks[0])
    assert operations(Known(), task) == 2 * 4 * 6 + 6


def test_counting_leaves_the_random_numbers_alone():
    import torch

    small = study("Plain")
    task = build_task(small.tasks[0])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    match.reference_size(small, task)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("name", "task", "shape"),
    [
        ("skip-middle", "text,length=16", (2, 16, 256)),
        ("early-exit", "digits,scan=rows", (2, 10)),
        ("jei-dnn", "digits,scan=rows", (2, 10)),
        ("evit", "digits,scan=rows", (2, 10)),
    ],
)
def test_ways_of_skipping_that_are_models_are_matched_too(name, task, shape):
    wanted = resolve(["attention", name], [task], dim=32, layers=2, device="cpu")
    on = build_task(wanted.tasks[0])
    target = match.reference_size(wanted, on)
    sized = match.fit(wanted, on, wanted.mechanisms[1], target)
    assert abs(sized.params - target) <= 0.02 * target
    model = build_model(sized.spec).eval()
    assert model(on.batch("train", 0, 0, 2).inputs).shape == shape


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("skip-middle", "digits", "skip-middle: needs a task that predicts the next token, such as text, got digits"),
        ("early-exit", "mqar", "early-exit: needs a task that classifies whole sequences"),
        ("evit", "text", "evit: needs a task that classifies sequences of features"),
        ("evit,kep=0.5", "digits", "evit: .*kep"),
    ],
)
def test_a_way_of_skipping_on_a_task_that_it_is_not_for(name, task, words):
    wanted = resolve(["attention", name], [task], device="cpu")
    with pytest.raises(ConfigError, match=words):
        match.fit(wanted, build_task(wanted.tasks[0]), wanted.mechanisms[1], 10_000)
