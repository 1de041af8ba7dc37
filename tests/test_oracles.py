"""Every mechanism equals its oracle in float64: the same equation in NumPy and loops, written from the paper.

The oracle of `gated-attention` is the function `gated_attention(state, x, **arguments)` in a file of `oracles/<room>/`. It
takes the state dict as arrays, the input (a tuple of them for several streams) and the arguments of the construction, and
returns what the mechanism returns first, or a tuple of all it returns. A `Skip` is given the block `0.5 * x + 1`. A file's
`VARIANTS` lists, by the mechanism's name, further arguments to compare at.
"""

import ast
import importlib.util
import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import penstock
from penstock.core.catalogue import CONTRACTS, cards
from penstock.testing.harness import draw, make, run

ROOT = Path(__file__).parent / "oracles"
FILES = sorted(ROOT.rglob("*.py"))
MECHANISMS = {name: card for name, card in cards().items() if card.contract in CONTRACTS}


@cache
def load(path):
    spec = importlib.util.spec_from_file_location(f"oracle_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oracle(name):
    """Return a mechanism's oracle and the further arguments to compare at; None and nothing where there is none."""
    wanted = name.replace("-", "_")
    for path in sorted((ROOT / MECHANISMS[name].room).glob("*.py")):
        module = load(path)
        found = vars(module).get(wanted)
        if inspect.isfunction(found) and found.__module__ == module.__name__:
            return found, getattr(module, "VARIANTS", {}).get(name, [])
    return None, []


def cases():
    for name in MECHANISMS:
        for extra in ({}, *oracle(name)[1]):
            shown = "-".join(f"{key}={value}" for key, value in extra.items())
            yield pytest.param(name, extra, id=f"{name}-{shown}" if shown else name)


def compare(cls, function, extra, *, seed=0):
    module = make(cls, extra, seed=seed)
    inputs = draw(module, batch=2, time=7, seed=seed + 1)
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    arrays = tuple(x.numpy() for x in inputs)
    expected = function(state, arrays[0] if len(arrays) == 1 else arrays, **{**cls.card.example, **extra})
    for what, actual in zip(expected if isinstance(expected, tuple) else (expected,), run(module, inputs), strict=False):
        np.testing.assert_allclose(actual.numpy(), what, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "extra"), list(cases()))
def test_oracle(name, extra):
    function, _ = oracle(name)
    assert function is not None, f"no function {name.replace('-', '_')} in tests/oracles/{MECHANISMS[name].room}/"
    compare(penstock.get(name), function, extra)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_oracle_imports_numpy_and_math_only(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} - {"numpy", "math"}, f"{path.name} imports {names}"


def test_variants_name_mechanisms_of_their_room():
    for path in FILES:
        for name in getattr(load(path), "VARIANTS", {}):
            assert name in MECHANISMS, f"{path.name}: VARIANTS names {name!r}"
            assert MECHANISMS[name].room == path.parent.name
