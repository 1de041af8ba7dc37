"""How much a call computes, counted from the operations it dispatches."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import penstock
from penstock.core import Mechanism
from penstock.testing.harness import Inputs, seeded, tensors


class Work(TorchDispatchMode):
    """Adds up floating-point operations: of products by their formula, of everything else one an element written."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.formulas = flop_registry
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        elif not func.is_view:
            self.total += sum(leaf.numel() for leaf in tensors(result))
        return result


def work(module: Mechanism, inputs: Inputs, *extra: Any) -> int:
    """Return the floating-point operations of one call.

    Operations run on their reference and attention in its plain form, since a kernel does not say what it computes.
    """
    with seeded(2), torch.no_grad(), penstock.use("reference"), sdpa_kernel(SDPBackend.MATH), Work() as counter:
        module(*inputs, *extra)
    return counter.total
