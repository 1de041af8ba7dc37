"""A made-up study and its report, made once."""

import pytest
from synthetic_study import write_study

from penstock.bench import report


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A whole study on two tasks, with a failed mechanism and a diverged trial; only to be read."""
    return write_study(tmp_path_factory.mktemp("studies") / "first")


@pytest.fixture(scope="session")
def page(study):
    """The report of the study, as text."""
    return report.write(study).read_text("utf-8")
