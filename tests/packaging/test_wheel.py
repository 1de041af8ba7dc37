"""The wheel installs and runs without the repository."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import penstock
from penstock.core.catalogue import as_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=keep | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    code, _, err = run(*command, cwd=folder)
    assert code == 0, err
    (built,) = folder.glob("*.whl")
    return built


def environment(wheel, folder, *, dependencies):
    """Return the programs of a new environment with the wheel, and with this one's packages if asked for."""
    venv.create(folder, with_pip=False)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    code, _, err = run(*command, wheel, cwd=folder)
    assert code == 0, err
    if dependencies:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return environment(wheel, tmp_path_factory.mktemp("installed"), dependencies=True)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    there = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src/penstock").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"penstock/py.typed", "penstock/core/papers.toml", "penstock/cli/templates/mechanism.txt"} <= held
    assert {name for name in held if not name.startswith(f"penstock-{penstock.__version__}.dist-info/")} == there


def test_the_metadata_is_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"penstock-{penstock.__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entries = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert metadata["Version"] == penstock.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"bench", "ray", "peers", "docs", "test", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "penstock = penstock.cli:main" in entries


def test_it_imports_from_where_it_was_installed(installed, tmp_path):
    code, out, err = run(installed / "python", "-c", "import penstock; print(penstock.__file__)", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert Path(out.strip()).is_relative_to(installed.parent)


def test_the_command_runs(installed, tmp_path):
    code, out, err = run(installed / "penstock", "list", "--json", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out) == as_rows()
    code, out, _ = run(installed / "penstock", "show", "swiglu", cwd=tmp_path)
    assert code == 0
    assert "penstock.nn.activations.glu.SwiGLU" in out
    code, _, err = run(installed / "penstock", "new", "recurrence/my-gate", cwd=tmp_path)
    assert code == 2
    assert "inside a checkout" in err


def test_a_layer_runs(installed, tmp_path):
    program = "import penstock, torch; print(penstock.build('gla', dim=8)(torch.randn(1, 9, 8)).shape)"
    code, out, err = run(installed / "python", "-c", program, cwd=tmp_path)
    assert code == 0, err
    assert out == "torch.Size([1, 9, 8])\n"


def test_the_bare_wheel_says_what_it_needs(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    code, out, err = run(environment(wheel, folder, dependencies=False) / "penstock", "list", cwd=folder)
    assert (code, out) == (2, "")
    assert err == "penstock: cyclopts is not installed; install it with: pip install 'penstock[bench]'\n"
