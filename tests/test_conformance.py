"""Every mechanism of the catalogue passes every check that its contract and its card ask for."""

import warnings

import pytest

import penstock
from penstock.core.catalogue import CONTRACTS, cards
from penstock.testing import applicable
from penstock.testing.checks.compiling import check_inductor

MECHANISMS = {name: card for name, card in cards().items() if card.contract in CONTRACTS}
CASES = [
    pytest.param(name, check, id=f"{name}-{check.__name__.removeprefix('check_')}")
    for name, card in MECHANISMS.items()
    for check in applicable(card)
]
ONE_A_FILE = list({card.symbol.rpartition(".")[0]: name for name, card in MECHANISMS.items()}.values())


@pytest.mark.parametrize(("name", "check"), CASES)
def test_conformance(name, check):
    check(penstock.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_A_FILE)
def test_inductor(name):
    """One mechanism of each file, since those of a file differ by a function or a constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the code generator's own, which differ from release to release
        check_inductor(penstock.get(name))
