"""The answer says what the seeds allow to be said, and no more."""

import pytest

from penstock.bench.report.answer import answer, overall
from penstock.bench.report.board import board
from penstock.bench.report.records import Records, Run


def made(task="mqar", metric="accuracy", floors=None, failed=(), **values):
    """Return the state of a task from the metric of each mechanism by seed."""
    runs = [
        Run(task, name, "seed", "finished", {"mechanism": name, "seed": seed, "value": value, "metric": metric})
        for name, row in values.items()
        for seed, value in enumerate(row)
    ]
    runs += [Run(task, name, "seed", "failed", {"mechanism": name, "seed": 0, "error": "Boom: no"}) for name in failed]
    results = {"floors": {task: {"chance": 0.1} if floors is None else floors}}
    return board(Records({}, results, tuple(runs)), task, [*values, *failed])


def test_a_clear_lead():
    found = answer(made(gla=[0.61, 0.62, 0.60], attention=[0.93, 0.94, 0.95], hgrn=[0.05, 0.06, 0.05]))
    assert found.headline == "attention leads"
    assert "attention reaches 94.0% accuracy (95% interval 93.0 to 95.0%, 3 seeds)" in found.text
    assert (
        "ahead of gla by 33.0 points (95% interval 32.0 to 35.0, paired by seed): the interval excludes a tie." in found.text
    )
    assert found.text.endswith("2 of 3 beat the best floor (chance, 10.0%); hgrn does not.")


def test_lower_is_better_for_bits():
    found = answer(made(metric="bits per byte", floors={"unigram": 4.6}, a=[2.5, 2.6, 2.5], b=[2.4, 2.4, 2.4]))
    assert found.headline == "b leads"
    assert "b reaches 2.400 bits per byte" in found.text
    assert "ahead of a by 0.133 bits per byte (95% interval 0.100 to 0.200" in found.text
    assert found.text.endswith("Both beat the best floor (unigram, 4.600).")


def test_a_tie_is_not_called_a_lead():
    found = answer(made(a=[0.5, 0.6, 0.7], b=[0.51, 0.58, 0.7]))
    assert found.headline == "No clear leader: a and b"
    assert "do not exclude a tie (95% interval of the difference −2.0 to +1.0, paired by seed)" in found.text


def test_a_lead_over_the_second_is_no_lead_where_the_third_may_tie():
    found = answer(made(a=[0.70, 0.70, 0.70], b=[0.69, 0.69, 0.69], c=[0.5, 0.72, 0.6]))
    assert found.headline == "No clear leader: a and c"
    assert "but the seeds do not exclude a tie with c." in found.text


def test_equal_results_are_a_tie():
    assert answer(made(a=[1.0, 1.0, 1.0], b=[1.0, 1.0, 1.0])).headline == "No clear leader: a and b"


def test_many_rivals_are_counted():
    values = {
        name: [0.5 + shift, 0.6, 0.7 - shift]
        for name, shift in zip("abcdef", (0.0, 0.01, 0.02, 0.03, 0.04, 0.05), strict=True)
    }
    assert answer(made(**values)).headline == "No clear leader among 6"


def test_one_seed_is_said_to_be_one():
    found = answer(made(a=[0.7], b=[0.5]))
    assert found.headline == "a is ahead, on one seed"
    assert "on the one seed it has" in found.text
    assert "95% interval" not in found.text
    assert "the order may be chance" in found.text


def test_two_seeds_have_a_range_and_no_interval():
    found = answer(made(a=[0.7, 0.71], b=[0.5, 0.6]))
    assert found.headline == "a is ahead, on too few seeds to be sure"
    assert "(2 seeds, 70.0 to 71.0%)" in found.text
    assert "95%" not in found.text


def test_nothing_beats_the_floor():
    found = answer(made(floors={"chance": 0.1, "counts": 0.8}, a=[0.7, 0.71, 0.72], b=[0.5, 0.5, 0.5]))
    assert found.headline == "Nothing beats the floor"
    assert found.text.endswith("None is clear of the best floor (counts, 80.0%).")


def test_a_floor_inside_the_interval_is_not_beaten_clearly():
    found = made(floors={"counts": 0.7}, a=[0.69, 0.71, 0.72], b=[0.8, 0.8, 0.8])
    assert [standing.floor for standing in found.standings] == ["above", "unclear"]
    assert "1 of 2 beat the best floor (counts, 70.0%); a does not." in answer(found).text


def test_a_failed_rival_is_not_compared():
    found = answer(made(a=[0.7, 0.71, 0.72], failed=("b",)))
    assert found.headline == "a stands alone"
    assert "No other mechanism has a finished run." in found.text


def test_no_result():
    assert answer(made(failed=("a", "b"))).headline == "No result"


def test_no_floor_on_record():
    assert "No floor is on record" in answer(made(floors={}, a=[0.7, 0.7, 0.7], b=[0.5, 0.5, 0.5])).text


def test_no_seed_in_common():
    runs = [
        Run("t", name, "seed", "finished", {"mechanism": name, "seed": seed, "value": value, "metric": "accuracy"})
        for name, seed, value in (("a", 0, 0.9), ("b", 1, 0.5))
    ]
    assert "shares no seed" in answer(board(Records(runs=tuple(runs)), "t", ["a", "b"])).text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"a": [0.9, 0.9, 0.9], "b": [0.5, 0.5, 0.5]}, "a leads on mqar and text."),
        ({"a": [0.9, 0.5, 0.9], "b": [0.5, 0.9, 0.9]}, "a and b are too close to call on mqar and text."),
        ({"a": [0.05, 0.04, 0.05], "b": [0.01, 0.01, 0.01]}, "Nothing beats the floor on mqar and text."),
        ({"a": [0.9], "b": [0.5]}, "a is ahead on too few seeds to be sure on mqar and text."),
        ({"a": [0.9, 0.9, 0.9]}, "a is the only one with a result on mqar and text."),
    ],
)
def test_all_tasks_together(values, says):
    assert overall([made("mqar", **values), made("text", **values)]) == says


def test_tasks_that_differ_are_told_apart():
    clear, open_ = made("mqar", a=[0.9, 0.9, 0.9], b=[0.5, 0.5, 0.5]), made("text", a=[0.9, 0.5], b=[0.5, 0.9])
    assert overall([clear, open_]) == "a leads on mqar; a is ahead on too few seeds to be sure on text."
    assert overall([made(failed=("a",))]) == "No judged run has finished yet."
