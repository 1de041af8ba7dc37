"""What a mechanism turns out to be able to do. Capabilities are measured and shown, never claimed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import penstock
from penstock.core import Mechanism, Operation
from penstock.core.backend import NAMES
from penstock.testing.checks.compiling import check_compile, check_export
from penstock.testing.checks.gradients import differentiable
from penstock.testing.checks.values import check_autocast, check_dtypes
from penstock.testing.failure import CheckError, expect
from penstock.testing.harness import call, draw, make


@contextmanager
def _operations_called() -> Iterator[set[str]]:
    """Collect the names of the shared operations that are called inside."""
    called: set[str] = set()
    pick = Operation.pick

    def noting(self: Operation, backend: str | None, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        called.add(self.name)
        return pick(self, backend, *args, **kwargs)

    Operation.pick = noting  # type: ignore[method-assign]
    try:
        yield called
    finally:
        Operation.pick = pick  # type: ignore[method-assign]


def _double_backward(cls: type[Mechanism]) -> None:
    function, leaves = differentiable(cls)
    expect(bool(function(*leaves)), "no output has a gradient")
    if not torch.autograd.gradgradcheck(function, leaves, fast_mode=True, raise_exception=False):
        raise CheckError("second derivatives differ from finite differences")


def _runs_on(backend: str) -> Callable[[type[Mechanism]], None]:
    def run(cls: type[Mechanism]) -> None:
        module = make(cls, dtype=torch.float32)
        with penstock.use(backend), torch.no_grad():
            call(module, draw(module, dtype=torch.float32))

    return run


def capabilities(cls: type[Mechanism]) -> dict[str, bool | str]:
    """Return what a mechanism can do: True, or the reason why it cannot, by capability.

    Backends are listed for a mechanism that calls a shared operation.
    """
    probes: dict[str, Callable[[type[Mechanism]], None]] = {
        "compile": check_compile,
        "export": check_export,
        "bfloat16": check_dtypes,
        "autocast": check_autocast,
        "double backward": _double_backward,
    }
    with _operations_called() as called:
        _runs_on("reference")(cls)
    if called:
        probes |= {f"{name} backend": _runs_on(name) for name in NAMES}
    found: dict[str, bool | str] = {}
    for name, probe in probes.items():
        try:
            probe(cls)
        except Exception as error:  # noqa: BLE001 - the reason, whatever it is, is the result
            found[name] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        else:
            found[name] = True
    return found
