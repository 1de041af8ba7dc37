"""Sound mechanisms of every contract pass every check."""

import pytest
import torch

import penstock
import toys
from penstock.core import ConfigError
from penstock.core.catalogue import CONTRACTS
from penstock.testing import CheckError, applicable, check_mechanism


@pytest.mark.parametrize("cls", toys.GOOD, ids=lambda cls: cls.card.name)
def test_a_sound_mechanism_passes(cls):
    check_mechanism(cls)


def test_there_is_a_sound_mechanism_of_every_contract():
    assert {cls.card.contract for cls in toys.GOOD} == set(CONTRACTS)


def test_every_failure_is_listed():
    def mix(self, x, gate):
        return (gate.detach() * x.mean(0, keepdim=True)).sum(-1, keepdim=True)

    with pytest.raises(CheckError) as told:
        check_mechanism(toys.variant(toys.AbstractGated, {"mix": mix}, **{**toys.GATED, "example": {"dim": 4, "hidden": 4}}))
    text = str(told.value)
    assert text.startswith("toy-broken fails ")
    for check in ("output", "batch_invariance", "gradcheck", "every_parameter_learns", "positions_apart"):
        assert f"\n  {check}: " in text, text


@pytest.mark.parametrize("thing", [toys.AbstractGated, torch.nn.Linear, penstock.get("mqar")])
def test_what_is_no_mechanism_is_refused(thing):
    with pytest.raises(ConfigError, match="a mechanism has a contract and a card"):
        check_mechanism(thing)


def test_the_card_alone_tells_which_checks_apply():
    assert list(applicable(toys.Gated)) == list(applicable(toys.Gated.card))
    names = {check.__name__ for check in applicable(toys.Decay)}
    assert {"check_steps", "check_linear_time", "check_gradcheck"} <= names
    assert not {"check_routing", "check_positions_apart", "check_skip_ends"} & names
