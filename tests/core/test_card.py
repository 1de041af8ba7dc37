"""Cards: what they refuse, and what is derived from docstring and module."""

import pytest

import toys
from penstock.core import ConfigError, Mechanism, listed, mechanism
from penstock.core.card import Card, equation, room_of, summary


@pytest.mark.parametrize("name", ["", "Gate", "two words", "-gate", "gate-", "a--b", "a_b", "é"])
def test_a_name_is_kebab_case(name):
    with pytest.raises(ConfigError, match="kebab-case"):
        Card(name, "paper", "eq. 1")


def test_an_unknown_trait_is_met_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"toy: unknown trait 'casual'; did you mean 'causal'\?"):
        Card("toy", "paper", "eq. 1", traits=frozenset({"casual"}))


def test_the_decorator_fills_in_contract_room_symbol_and_description():
    card = toys.Decay.card
    assert (card.contract, card.room, card.symbol) == ("SequenceMixer", "user", "toys.Decay")
    assert card.description == "A decaying mean of the past."
    assert card.traits == {"causal", "steps", "constant-state"}


def test_a_thing_without_a_tensor_contract_is_listed_under_its_kind():
    @listed("toy-loss", kind="loss", paper="paper", at="eq. 2")
    def loss():
        r"""Punish openness.

        $$ L = \sum g $$
        """

    assert (loss.card.contract, loss.card.description, loss.card.equation) == ("loss", "Punish openness.", r"L = \sum g")


def test_a_mechanism_is_final():
    with pytest.raises(ConfigError, match="More: Gated is final; build on its contract"):
        type("More", (toys.Gated,), {})
    assert issubclass(type("AbstractMore", (toys.AbstractGated,), {}), Mechanism)


def test_a_card_stays_with_its_class():
    first = mechanism("one", paper="p", at="a")(type("One", (toys.AbstractGated,), {}))
    second = mechanism("two", paper="p", at="a")(type("Two", (toys.AbstractGated,), {}))
    assert (first.card.name, second.card.name) == ("one", "two")
    assert not hasattr(toys.AbstractGated, "card")


@pytest.mark.parametrize(
    ("module", "room"),
    [("penstock.nn.attention.gated", "attention"), ("penstock.gates.squash", "gates"), ("mine", "user")],
)
def test_the_room_is_the_folder(module, room):
    assert room_of(module) == room


def test_the_summary_is_the_first_paragraph_on_one_line():
    assert summary("One\n    sentence.\n\n    More.") == "One sentence."
    assert summary(None) == ""


def test_the_first_equation_is_taken_from_the_class_before_the_module():
    assert equation("no equation", "$$ a\n = b $$ and $$ c $$") == "a = b"
    assert equation("$$ x $$", "$$ y $$") == "x"
    assert equation(None, "") == ""
