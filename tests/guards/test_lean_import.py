"""What is not needed is not imported: the catalogue without torch, the mechanisms without the tools around them."""

import subprocess
import sys

import pytest
from source import FILES, module_of

TOOLS = {
    "cyclopts",
    "jinja2",
    "matplotlib",
    "numba",
    "optuna",
    "pandas",
    "ray",
    "rich",
    "scipy",
    "sklearn",
    "transformers",
    "triton",
}
SLOW = {"torch._dynamo", "torch._inductor", "sympy"}


def loaded(code):
    """Return the modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_the_package_imports_nothing_to_speak_of():
    modules = loaded("import penstock")
    assert not (TOOLS | {"torch", "numpy"}) & modules
    assert sum(name.startswith("penstock") for name in modules) == 1


def test_the_catalogue_does_not_import_torch():
    modules = loaded("import penstock; penstock.names(); penstock.search('gate')")
    assert not (TOOLS | {"torch", "numpy"}) & modules


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["search", "gated attention"]], ids=" ".join)
def test_listing_does_not_import_torch(arguments):
    modules = loaded(f"from penstock.cli import main\nassert main({arguments!r}) == 0")
    assert not {"torch", "numpy", "matplotlib", "optuna"} & modules


@pytest.mark.parametrize("folder", ["core", "ops", "gates", "nn", "models", "inspect", "testing"])
def test_a_layer_imports_no_tool(folder):
    files = [path for path in FILES if f"penstock.{folder}" in module_of(path)]
    names = [module_of(path) for path in files if folder != "ops" or path.name == "__init__.py"]  # kernels are imported late
    modules = loaded("\n".join(f"import {name}" for name in names))
    assert (TOOLS | SLOW) & modules == set()
