"""Kernels run on torch's threads, and where those cannot be had, on others."""

import subprocess
import sys

import pytest
import torch

from penstock.core import threads
from penstock.ops import linear_recurrence

CALL = "import torch, penstock.ops as ops; ops.linear_recurrence(torch.ones(1, 99, 64), torch.ones(1, 99, 64))"


@pytest.fixture
def _two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("team", [True, False])
def test_any_threads_give_the_same(monkeypatch, team):
    a, b = torch.rand(16, 300, 40), torch.randn(16, 300, 40)
    expected = linear_recurrence(a, b, backend="reference")
    if not team:
        monkeypatch.setattr(threads, "_team", lambda: None)
    torch.testing.assert_close(linear_recurrence(a, b, backend="numba"), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what this process has loaded")
def test_torchs_own_openmp_is_found():
    assert threads._team() is not None


def test_importing_operations_does_not_import_numba():
    code = "import sys, penstock.ops; assert not {'numba', 'triton', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_process_reads_what_the_first_compiled():
    code = f"{CALL}; from penstock.core.threads import Kernel; print(all(c.from_cache for c in Kernel.first_calls.values()))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"


def test_nowhere_to_keep_compiled_code_is_no_obstacle(tmp_path):
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = caching.CompileResultCacheImpl._locator_classes = []\n" + CALL
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
