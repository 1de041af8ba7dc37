"""Ranking: what each rule of it is for, on a small catalogue, and sensible queries on the real one."""

import pytest

from penstock.core.catalogue import search
from penstock.core.ranking import WEIGHTS, rank, stem, words


def entry(**texts):
    return {field: words(texts.get(field, "")) for field in WEIGHTS}


def test_a_word_counts_most_in_the_name():
    entries = {"a": entry(description="sigmoid"), "b": entry(name="sigmoid"), "c": entry(equation="sigmoid")}
    assert rank("sigmoid", entries) == ["b", "a", "c"]


def test_an_entry_with_more_of_the_words_comes_first():
    entries = {"a": entry(name="linear linear"), "b": entry(description="linear recurrence"), "c": entry(name="other")}
    assert rank("linear recurrence", entries) == ["b", "a"]


def test_a_rare_word_counts_more_than_a_common_one():
    entries = {f"a{i}": entry(name="attention") for i in range(9)} | {"z": entry(title="attention sink")}
    assert rank("attention sink", entries)[0] == "z"
    alone = {f"a{i}": entry(title="attention") for i in range(9)} | {"z": entry(title="sink")}
    assert rank("attention sink", alone)[0] == "z"


def test_words_in_the_typed_order_count_double():
    entries = {"a": entry(title="attention that is linear"), "b": entry(title="linear attention")}
    assert rank("linear attention", entries) == ["b", "a"]


def test_a_name_of_initials_is_found_by_the_words():
    entries = {"gated-memory": entry(name="gated memory", title="gated memory"), "gam": entry(name="gam")}
    assert rank("gated associative memory", entries)[0] == "gam"
    assert rank("gated associative", entries) == ["gated-memory"]


@pytest.mark.parametrize("typed", ["gate", "gates", "gated", "gating"])
def test_forms_of_a_word_find_one_another(typed):
    entries = {form: entry(name=form) for form in ("gate", "gates", "gated", "gating", "goal")}
    found = rank(typed, entries)
    assert found[0] == typed
    assert set(found) == set(entries) - {"goal"}


def test_a_stem_keeps_three_letters():
    assert [stem(word) for word in ("gated", "use", "red", "is", "recurrent", "recurrence")] == [
        "gat", "use", "red", "is", "recurr", "recurr"
    ]  # fmt: skip


@pytest.mark.parametrize("typed", ["", "  ", "(((", "nothing-of-the-kind"])
def test_what_fits_nothing_finds_nothing(typed):
    assert rank(typed, {"a": entry(name="sigmoid")}) == []


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("swiglu", "swiglu"),
        ("linear attention", "gla"),
        ("gated linear attention", "gla"),
        ("forget gate", {"gla", "hgrn"}),
        ("sigmoid attention sink", "gated-attention"),
        ("associative memory", "gam"),
        ("hierarchical recurrent", "hgrn"),
        ("associative recall", "mqar"),
    ],
)
def test_sensible_queries_on_the_catalogue(typed, first):
    found = search(typed)[0].name
    assert found in first if isinstance(first, set) else found == first
