from itertools import groupby, pairwise

import numpy as np
import pytest
import torch

from penstock.bench.tasks import get_task
from penstock.bench.tasks.grammar import Grammar
from penstock.core import ConfigError

SMALL = {"symbols": 5, "ambiguous": 3, "depth": 3, "starts": 2, "length": 60}


def rows(batch):
    """Yield for each sequence its symbols' (state, inputs of the symbol and its gap)."""
    for inputs, states, groups in zip(*(part.numpy() for part in batch), strict=True):
        runs = groupby(range(len(groups)), key=lambda place, groups=groups: groups[place])
        places = [list(run) for _, run in runs]
        yield [(states[run[0]], inputs[run]) for run in places]


@pytest.mark.parametrize("seed", range(5))
def test_a_grammar_is_deterministic_given_state_and_symbol_and_always_ends(seed):
    grammar = Grammar(symbols=6, ambiguous=4, depth=3, density=0.4, starts=4, seed=seed)
    assert np.bincount(grammar.symbol).tolist() == [1, 3, 3, 3, 3, 1]
    assert (grammar.follower[0] == -1).all()
    for state, successors in enumerate(grammar.successors()):
        symbols = grammar.symbol[successors]
        if state:
            assert len(set(symbols)) == len(symbols) > 0
        reached, edge = {state}, [state]
        while edge:
            edge = [int(n) for s in edge if s for n in grammar.successors()[s] if n not in reached]
            reached |= set(edge)
        assert 0 in reached
    assert 0 not in grammar.starts
    assert len(set(grammar.starts)) == 4


def test_density_is_the_likelihood_of_an_ambiguous_successor():
    """Of all grammars, before those without an end are dropped, so the dense kind that loses few is looked at."""
    follows = [(Grammar(21, 10, 4, 0.6, 4, seed).follower[1:] >= 0).mean(0) for seed in range(10)]
    mean = np.mean(follows, axis=0)
    assert mean[1:11].mean() == pytest.approx(0.6, abs=0.02)
    assert mean[11:].mean() == pytest.approx(0.15, abs=0.02)


def test_states_follow_one_another_by_the_grammar():
    task = get_task("selectivbench", **SMALL, gap=4)
    successors = task.grammar.successors()
    seen = set()
    for sequence in rows(task.batch("train", 0, 0, 100)):
        states = [state for state, _ in sequence]
        assert states[0] in task.grammar.starts
        for before, after in pairwise(states):
            assert after in successors[before]
            seen.add((before, after))
    reached, edge = {0}, [0]
    while edge:
        edge = [int(n) for s in edge for n in successors[s] if n not in reached]
        reached |= set(edge)
    assert seen == {(state, after) for state in reached for after in successors[state]}


def test_a_symbol_is_shown_once_and_its_gap_is_blank():
    task = get_task("selectivbench", **SMALL, gap=4)
    lengths = []
    for sequence in rows(task.batch("train", 0, 0, 60)):
        for state, inputs in sequence:
            np.testing.assert_array_equal(inputs[0], np.eye(5)[task.grammar.symbol[state]])
            assert not inputs[1:].any()
        lengths += [len(inputs) - 1 for _, inputs in sequence[:-1]]
    shares = np.bincount(lengths, minlength=5) / len(lengths)
    np.testing.assert_allclose(shares, [0, 1 / 6, 1 / 3, 1 / 3, 1 / 6], atol=0.04)


@pytest.mark.parametrize("gap", [0, 1, 7])
def test_a_test_gap_is_of_one_length_and_of_the_test_split_only(gap):
    task = get_task("selectivbench", **SMALL, gap=2, test_gap=gap, held_out=8)
    (test,), (valid,) = task.evaluation("test", 8), task.evaluation("valid", 8)
    assert {len(inputs) - 1 for sequence in rows(test) for _, inputs in sequence[:-1]} == {gap}
    assert {len(inputs) - 1 for sequence in rows(valid) for _, inputs in sequence[:-1]} == {1, 2}


def test_forbidden_symbols_fill_gaps_where_asked_and_break_a_rule():
    task = get_task("selectivbench", **SMALL, gap_content="forbidden", gap_share=0.5, gap_from=6)
    allowed = task.grammar.allowed()
    broken, gaps, symbols = 0, 0, 0
    for sequence in rows(task.batch("train", 0, 0, 100)):
        for number, (state, inputs) in enumerate(sequence[:-1]):
            assert len(inputs) == 1 or number >= 6
            symbols += number >= 6
            gaps += len(inputs) > 1
            for shown in inputs[1:]:
                if shown.any():
                    assert not allowed[state, shown.argmax()]
                    broken += 1
                else:
                    assert allowed[state].all()
    assert gaps / symbols == pytest.approx(0.5, abs=0.03)
    assert broken > 0.9 * gaps


def test_noise_raises_every_input_by_up_to_its_amount():
    quiet, noisy = (get_task("selectivbench", **SMALL, noise=noise).batch("train", 0, 0, 8) for noise in (0.0, 0.2))
    assert torch.equal(quiet.targets, noisy.targets)
    rise = noisy.inputs - quiet.inputs
    assert rise.min() >= 0
    assert rise.max() <= 0.2 + 1e-6
    assert rise.mean() == pytest.approx(0.1, abs=0.005)


def test_floors_equal_tables_counted_by_hand():
    task = get_task("selectivbench", **SMALL, gap=3, held_out=40)
    symbol = task.grammar.symbol.tolist()
    tables = [{}, {}, {}]
    known = get_task("selectivbench", **SMALL, gap=0)
    for index in range(30):
        for sequence in rows(known.batch("train", 1, index, 40)):
            count(tables, [state for state, _ in sequence], symbol)
    (test,) = task.evaluation("test", 40)
    hits, total = [0, 0, 0], 0
    for sequence in rows(test):
        states = [state for state, _ in sequence]
        for place, state in enumerate(states):
            total += 1
            for order, key in enumerate(keys(states, symbol, place)):
                table = tables[order].get(key, {0: 0})
                hits[order] += max(table, key=table.get) == state
    assert list(task.floors().values()) == pytest.approx([h / total for h in hits], abs=0.01)


def keys(states, symbol, place):
    now, before = symbol[states[place]], symbol[states[place - 1]] if place else None
    return [(), (now,), (before, now)]


def count(tables, states, symbol):
    for place, state in enumerate(states):
        for table, key in zip(tables, keys(states, symbol, place), strict=True):
            row = table.setdefault(key, {})
            row[state] = row.get(state, 0) + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symbols": 4, "ambiguous": 4}, "ambiguous must be below symbols, got symbols=4, ambiguous=4"),
        ({"symbols": 3, "ambiguous": 0, "starts": 3}, "starts must be below the number of states, 3, got starts=3"),
        ({"density": 0.001}, "no grammar with symbols=9, ambiguous=8, depth=4 and density=0.001"),
        ({"gap_content": "silence"}, "gap_content must be one of 'blank', 'forbidden'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ConfigError, match=f"selectivbench: {words}"):
        get_task("selectivbench", **options)
