"""What stands in more than one place agrees."""

import re
import tomllib
from pathlib import Path

import penstock

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def names(requirements):
    return {re.match(r"[\w.-]+", line)[0] for line in requirements} - {"penstock"}


def test_every_dependency_has_a_reason_and_every_reason_a_dependency():
    rows = re.findall(r"^\| ([\w., -]+) \| ([\w, ]*) ?\| \w", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    given = {
        (package, extra)
        for packages, extras in rows
        for package in packages.split(", ")
        for extra in extras.strip().split(", ")
    }
    wanted = {(package, "") for package in names(PROJECT["dependencies"])}
    wanted |= {(package, extra) for extra, lines in PROJECT["optional-dependencies"].items() for package in names(lines)}
    assert given - {("package", "extra")} == wanted


def test_every_dependency_has_a_lower_bound():
    lines = [line for extra in PROJECT["optional-dependencies"].values() for line in extra] + PROJECT["dependencies"]
    assert not [line for line in lines if not line.startswith("penstock[") and ">=" not in line]


def test_the_version_stands_in_the_citation():
    assert f"\nversion: {penstock.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_links_in_the_readme_and_contributing_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text("utf-8")):
            if not target.startswith("http"):
                assert (ROOT / target).is_file(), f"{page}: {target}"
