"""Parts of a model in the place of which others stand, with all else in it frozen: what methods without places share."""

from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from penstock.ops.linear import Linear


class Replaced:
    """Freezes a model, takes note of what is replaced in it, and undoes both.

    Args:
        model: it is changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before: dict[str, nn.Module] = {}
        self._trained = {id(p): p.requires_grad for p in model.parameters()}
        model.requires_grad_(requires_grad=False)

    def put(self, path: str, part: nn.Module) -> None:
        """Put `part` in the place of another, in the same mode."""
        self.before[path] = self.model.get_submodule(path)
        self.model.set_submodule(path, part.train(self.before[path].training))

    def fold(self, change: Callable[[nn.Module, nn.Module], nn.Module]) -> nn.Module:
        """Return the model with `change(part, before)` wherever a part stands, as trainable as it was."""
        for path, part in self.before.items():
            self.model.set_submodule(path, change(self.model.get_submodule(path), part))
        self.before = {}
        for parameter in self.model.parameters():
            parameter.requires_grad_(self._trained.get(id(parameter), True))
        return self.model

    def undo(self) -> nn.Module:
        """Return the model as it was before: the same modules, as trainable as they were."""
        return self.fold(lambda _, before: before)


def linear_maps(model: nn.Module, where: str, *, transposed: bool = False) -> dict[str, Any]:
    """Return the plain linear maps whose paths match a pattern and whose weight is nobody else's, by path.

    Args:
        model: that they are in.
        where: the pattern.
        transposed: also those of GPT-2, whose weight is `(in, out)`.
    """
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {
        path: part
        for path, part in model.named_modules()
        if path
        and (type(part) in (nn.Linear, Linear) or (transposed and type(part).__name__ == "Conv1D"))
        and users[id(part.weight)] == 1
        and fnmatchcase(path, where)
    }
