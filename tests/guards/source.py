"""The package's source files, parsed."""

import ast
from functools import cache
from pathlib import Path

import penstock

ROOT = Path(penstock.__file__).parent
REPOSITORY = Path(__file__).parents[2]
FILES = sorted(ROOT.rglob("*.py"))


@cache
def tree(path):
    return ast.parse(path.read_text("utf-8"))


def module_of(path):
    return ".".join(["penstock", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imports(path):
    """Return the full name of everything a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def shown(path):
    return str(path.relative_to(ROOT))
