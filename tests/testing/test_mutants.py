"""Planted bugs do not survive: a check or an oracle catches every one. The sound mechanisms pass both."""

import importlib
import inspect

import pytest
from mutants import MUTANTS, ask


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_the_place_of_the_bug_is_still_there(mutant):
    assert mutant.old in inspect.getsource(importlib.import_module(f"penstock.{mutant.module}"))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_the_bug_is_caught(mutant):
    checks, oracle = ask(mutant)
    assert checks or oracle
