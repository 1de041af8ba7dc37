"""Every mechanism of the catalogue passes every check that its contract and its card ask for.

Those of a file differ by a function or a constant: compilers see one of them here, and the others in the slow tests.
"""

import warnings

import pytest

import penstock
from penstock.core.catalogue import CONTRACTS, cards
from penstock.testing import applicable
from penstock.testing.checks.compiling import check_compile, check_export, check_inductor

MECHANISMS = {name: card for name, card in cards().items() if card.contract in CONTRACTS}
ONE_A_FILE = list({card.symbol.rpartition(".")[0]: name for name, card in MECHANISMS.items()}.values())
ONE_A_KIND = list({(card.room, card.contract): name for name, card in MECHANISMS.items()}.values())
TRACED = {check_export: ONE_A_FILE, check_compile: ONE_A_KIND}
"""What compilers see in the fast suite, where they would take most of the time; export traces a whole graph as well."""
CASES = [
    pytest.param(
        name,
        check,
        id=f"{name}-{check.__name__.removeprefix('check_')}",
        marks=[] if name in TRACED.get(check, MECHANISMS) else [pytest.mark.slow],
    )
    for name, card in MECHANISMS.items()
    for check in applicable(card)
]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_conformance(name, check):
    check(penstock.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_A_FILE)
def test_inductor(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the code generator's own, which differ from release to release
        check_inductor(penstock.get(name))
