"""Constructor arguments: what an annotation accepts, and what is said of what it does not."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from penstock.core import ConfigError, Count, Fraction, NonNegative, Positive, Real, Size, check_divides
from penstock.core.arguments import accepts, words

NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(), st.complex_numbers())


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@given(NUMBERS)
def test_numbers_are_judged_by_type_and_bounds(value):
    whole = isinstance(value, int) and not isinstance(value, bool)
    assert accepts(Size, value) == (whole and value >= 1)
    assert accepts(Count, value) == (whole and value >= 0)
    assert accepts(Fraction, value) == (is_number(value) and 0 <= value <= 1)
    assert accepts(Positive, value) == (is_number(value) and value > 0)
    assert accepts(NonNegative, value) == (is_number(value) and value >= 0)
    assert accepts(Real, value) == is_number(value)
    assert accepts(Size | None, value) == (value is None or accepts(Size, value))
    assert accepts(bool, value) == isinstance(value, bool)
    assert accepts(Literal["a", "b"], value) == (value in ("a", "b"))
    assert accepts(dict, value), "an annotation that is not judged accepts everything"


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (Size, "an integer of at least 1"),
        (Fraction, "a number of at least 0 and at most 1"),
        (Positive, "a number above 0"),
        (Size | None, "an integer of at least 1 or None"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (bool, "True or False"),
    ],
)
def test_what_is_accepted_is_said_in_words(hint, said):
    assert words(hint) == said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: toys.Gated(0), "toy-gated: dim must be an integer of at least 1, got 0"),
        (lambda: toys.Gated("8"), "toy-gated: dim must be an integer of at least 1, got '8'"),
        (lambda: toys.Gated(8, scale=0.0), "toy-gated: scale must be a number above 0, got 0.0"),
        (lambda: toys.Gated(8, phi="relu"), "toy-gated: phi must be one of 'sigmoid', 'tanh', got 'relu'"),
        (lambda: toys.Gated(8, bias=1), "toy-gated: bias must be True or False, got 1"),
        (lambda: toys.Gated(8, hiden=4), "toy-gated: unknown argument 'hiden'; did you mean 'hidden'?"),
        (toys.Gated, "toy-gated: missing a required argument: 'dim'; it takes dim, hidden, scale, phi"),
        (lambda: toys.Gated(8, 4, 1.0), "toy-gated: too many positional arguments; it takes dim, hidden"),
        (lambda: toys.Gated(8, dim=8), "toy-gated: multiple values for argument 'dim'"),
        (lambda: check_divides("toy", heads=5, dim=32), "toy: heads must divide dim, got dim=32, heads=5"),
    ],
)
def test_a_slip_is_told_in_one_line(call, message):
    with pytest.raises(ConfigError) as told:
        call()
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


def test_the_spec_holds_every_argument_but_where_to_put_it():
    assert toys.Gated(4, scale=2.0, device="cpu").spec() == {
        "mechanism": "toys:Gated",
        "dim": 4,
        "hidden": 6,
        "scale": 2.0,
        "phi": "sigmoid",
        "bias": True,
    }
