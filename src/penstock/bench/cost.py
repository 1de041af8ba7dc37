"""What a model costs: its parameters, and the operations it does for a token."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from penstock.bench.task import Task
from penstock.core import use

MOVES = frozenset({"clone", "where", "masked_fill", "fill", "zero"})


class Operations(TorchDispatchMode):
    """Counts floating-point operations.

    A multiplication and addition in a product of matrices counts as two, and each element that an elementwise operation
    writes as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count what it does."""
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        elif torch.Tag.pointwise in func.tags and packet.__name__ not in MOVES:
            written = result if isinstance(result, tuple | list) else (result,)
            self.total += sum(r.numel() for r in written if isinstance(r, torch.Tensor) and r.is_floating_point())
        return result


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def operations(model: nn.Module, task: Task) -> int:
    """Return the forward operations for a token at the task's length, with every shared operation in its defining form.

    The defining form is what the equations say, step by step: a faster backend may do other work for the same result.
    """
    inputs = task.batch("train", 0, 0, 1).inputs
    with use("reference"), sdpa_kernel(SDPBackend.MATH), Operations() as counted:
        model(inputs)
    return counted.total // inputs.shape[1]
