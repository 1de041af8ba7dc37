"""Ranges as cards state them."""

import math

import pytest

from penstock.core import ConfigError
from penstock.core.ranges import Range


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("(0, 1)", [0.5, 1e-9], [0, 1, -1, math.nan]),
        ("[0, 1)", [0, 0.5], [1, -1e-9]),
        ("(0, 1]", [1, 0.5], [0, 1.1]),
        ("[-0.28, inf)", [-0.28, 0, 1e9], [-0.29]),
        ("(-inf, inf)", [-1e9, 0, 1e9], [math.inf, math.nan]),
        ("{0, 1}", [0, 1], [0.5, 2, math.nan]),
        ("{-1,0,1}", [-1, 0], [0.5]),
        ("[0,1]; 1 keeps the old value", [0, 1], [2]),
    ],
)
def test_what_a_range_contains(text, inside, outside):
    stated = Range.parse(text)
    assert all(stated.contains(value) for value in inside)
    assert not any(stated.contains(value) for value in outside)


@pytest.mark.parametrize("text", ["", "0, 1", "(0; 1)", "(a, 1)", "{}", "{a}", "(0, 1, 2)", "(0 1)", "positive"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="a gate's range reads"):
        Range.parse(text)


def test_what_a_range_says_of_its_gate():
    assert Range.parse("(0, 1)").is_unit
    assert not Range.parse("(0.5, 1)").is_unit
    assert Range.parse("{0, 1}").is_hard
    assert not Range.parse("[0, 1]").is_hard
    assert Range.parse("[0, 1]; sums to 1 over the experts").is_share
    assert not Range.parse("[0, 1]; 1 keeps").is_share
    assert Range.parse("[0, 1]; 1 keeps").note == "1 keeps"
