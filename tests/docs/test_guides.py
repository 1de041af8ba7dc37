"""The Python in the guides and in the README runs as it stands, and the commands they show exist."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from penstock.cli import flags

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "docs/index.md", *(ROOT / "docs/guides").glob("*.md")])
SLOW = {"compare.md", "write.md"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def cases():
    for page in PAGES:
        if blocks(page, "python"):
            yield pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])


@pytest.mark.parametrize("page", list(cases()))
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "guide", raising=False)
    (tmp_path / "guide.py").write_text("\n".join(blocks(page, "python")), "utf-8")
    importlib.import_module("guide")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    taken = flags()
    for line in "".join(blocks(page, "bash")).splitlines():
        words = line.split()
        if words[:1] == ["penstock"]:
            verb = next(path for path in (" ".join(words[1:3]), words[1]) if path in taken)
            assert {word for word in words if word.startswith("--")} <= {*taken[verb], "--help"}, line
