"""scripts/docs.py, as a module."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def docs():
    path = Path(__file__).resolve().parents[2] / "scripts/docs.py"
    spec = importlib.util.spec_from_file_location("docs_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
