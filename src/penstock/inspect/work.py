"""How much a call computes, counted from the operations it dispatches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.core import use

MOVES = frozenset({"clone", "where", "masked_fill", "fill", "zero"})


class Work(TorchDispatchMode):
    """Adds up floating-point operations in `total`.

    A multiplication and addition in a product of matrices counts as two, and each element that an elementwise operation
    writes as one; moving numbers counts as nothing.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # slow to import where Triton is installed

        super().__init__()
        self.formulas = flop_registry
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count what it does."""
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in self.formulas:
            self.total += self.formulas[packet](*args, **(kwargs or {}), out_val=result)
        elif torch.Tag.pointwise in func.tags and packet.__name__ not in MOVES:
            written = result if isinstance(result, tuple | list) else (result,)
            self.total += sum(r.numel() for r in written if isinstance(r, torch.Tensor) and r.is_floating_point())
        return result


@contextmanager
def counting() -> Iterator[Work]:
    """Count the operations of what runs inside, with every shared operation in its defining form.

    The defining form is what the equations say, step by step: a faster backend may do other work for the same result.
    """
    with torch.no_grad(), use("reference"), sdpa_kernel(SDPBackend.MATH), Work() as work:
        yield work
