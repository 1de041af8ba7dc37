"""What a failed check raises, and the comparisons all checks are written in."""

import torch
from torch import Tensor


class CheckError(AssertionError):
    """A mechanism does not keep what its contract or its card promises."""


def expect(holds: bool, message: str) -> None:
    """Raise a `CheckError` with `message` unless `holds`."""
    if not holds:
        raise CheckError(message)


def same(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Raise unless two tensors agree in shape and, to `tolerance` of the largest expected value, in every element."""
    expect(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} against {tuple(expected.shape)}")
    if not actual.numel():
        return
    if not expected.is_floating_point():
        expect(torch.equal(actual, expected), f"{what}: the integers differ")
        return
    gap = (actual.detach().double() - expected.detach().double()).abs().max().item()
    scale = max(1.0, expected.detach().abs().max().item())
    expect(gap <= tolerance * scale, f"{what}: they differ by {gap:.3g}, allowed {tolerance * scale:.3g}")


def all_same(actual: list[Tensor], expected: list[Tensor], what: str, tolerance: float = 1e-9) -> None:
    """Compare two lists of tensors, item by item."""
    expect(len(actual) == len(expected), f"{what}: {len(actual)} tensors against {len(expected)}")
    for one, other in zip(actual, expected, strict=True):
        same(one, other, what, tolerance)
