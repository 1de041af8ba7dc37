"""Putting parts into a model, and taking them out again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from penstock.adapt.method import BudgetPart, Method, Part
from penstock.adapt.places import Place, Where, select
from penstock.adapt.ties import Ties
from penstock.core import ConfigError

MARK = "attn_implementation"
REFUSAL = "penstock: this model has gates in it and is loaded by penstock.adapt.from_pretrained"
"""Written into the configuration of a model with parts: plain `from_pretrained` refuses it, and says this."""


class Adapter:
    """Parts of one method in a model; made by `insert` and `load`.

    Args:
        model: that they are in.
        what: the method.
        where: as it was asked for.
    """

    def __init__(self, model: nn.Module, what: Method, where: Where) -> None:
        self.model, self.what, self.where = model, what, where
        self.parts: dict[str, Part] = {}
        self.places: dict[str, Place] = {}
        self._ties: list[Ties] = []
        self._frozen: list[nn.Parameter] = []
        self.removed = False

    @property
    def slug(self) -> str:
        """What the parts are called as children of the modules they are put in."""
        return "penstock_" + self.what.name.replace("-", "_")

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the parts, which alone are trained."""
        for part in self.parts.values():
            yield from part.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and buffers of the parts, by `layers.0.attention.gate.weight`."""
        return {f"{alias}.{name}": value for alias, part in self.parts.items() for name, value in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over parameters and buffers; all must be there."""
        for alias, part in self.parts.items():
            mine = {name.removeprefix(f"{alias}."): value for name, value in state.items() if name.startswith(f"{alias}.")}
            part.load_state_dict(mine)

    def penalty(self) -> Tensor | None:
        """Return what the parts add to the loss for the latest call in training; a loss that the model gives has it."""
        found = [each for part in self.parts.values() if (each := part.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    @property
    def budget(self) -> float:
        """The share of what the parts guard that is computed, where the method has a budget; it may be set."""
        return next(part.budget for part in self._budgeted())

    @budget.setter
    def budget(self, share: float) -> None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"{self.what.name}: budget must be a share above 0 and at most 1, got {share!r}")
        for part in self._budgeted():
            part.set_budget(share)

    def calibrate(self, data: Iterable[Any], budgets: Iterable[float] = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)) -> None:
        """Set the levels that keep each of `budgets`, and the present one, on `data`: batches, as the model is called."""
        from penstock.adapt.calibrate import calibrate

        wanted = (*budgets, self.budget)
        calibrate(self.model, self._budgeted(), list(data), wanted, together=getattr(self.what, "share", "") == "model")

    def spent(self, *, clear: bool = True) -> float:
        """Return the share of the cost that was computed in evaluation since the last time."""
        parts = self._budgeted()
        total = sum(part.seen * part.cost for part in parts)
        done = sum(part.run * part.cost for part in parts)
        if clear:
            for part in parts:
                part.seen = part.run = 0
        return float(done) / total if total else 1.0

    def _budgeted(self) -> list[BudgetPart]:
        parts = [part for part in self.parts.values() if isinstance(part, BudgetPart)]
        if not parts:
            raise ConfigError(f"{self.what.name}: the method has no budget")
        return parts

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the model inside as if the parts were not there."""
        for part in self.parts.values():
            part.on = False
        try:
            yield
        finally:
            for part in self.parts.values():
                part.on = True

    def save(self, folder: str | Path) -> None:
        """Write `adapter.json` and `adapter.safetensors` into `folder`, each at once or not at all."""
        from penstock.adapt.files import save

        save(self, Path(folder))

    def remove(self) -> nn.Module:
        """Return the model as it was before: no hook, no parameter and no mark of the parts is left."""
        if self.removed:
            return self.model
        for ties in self._ties:
            ties.undo()
        for alias in self.parts:
            del self.places[alias].host._modules[self.slug]
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        adapters = adapters_of(self.model)
        adapters.remove(self)
        if not adapters:
            del self.model.__dict__["_penstock_adapters"]
            _mark(self.model, on=False)
        self.removed = True
        return self.model


def adapters_of(model: nn.Module) -> list[Adapter]:
    """Return what was put into a model, in its order."""
    return cast("list[Adapter]", model.__dict__.get("_penstock_adapters", []))


def insert(model: nn.Module, what: Method, where: Where = "layers.*", *, freeze: bool = True) -> Adapter:
    """Put the parts of a method into a trained model.

    Args:
        model: of `transformers`, or any with a stack of layers with attention; it is changed.
        what: the method, such as `GateSkip(budget=0.75)`.
        where: which places, as a pattern of `layers.3`, `layers.3.attention`, `layers.3.mlp` or of paths in the model,
            several with `|` between them; or a function of a path and a module.
        freeze: train the parts alone; otherwise all stays as trainable as it was.

    Returns:
        What was put in.

    Raises:
        ConfigError: where nothing matches, or the model has what the method cannot stand beside.
    """
    if not isinstance(what, Method):
        raise ConfigError(f"insert: what must be a method such as GateSkip(), got {what!r}")
    _check_room(model, what)
    chosen = what.keep(select(model, where, what.kinds))
    if not chosen:
        raise ConfigError(f"{what.name}: none of the places that where={where!r} matches can take it")
    adapter = Adapter(model, what, where)
    parts = what.parts(chosen, model)
    try:
        for place, part in zip(chosen, parts, strict=True):
            _put(adapter, place, part)
        if type(parts[0]).penalty is not Part.penalty:
            adapter._ties[0].after(model, _Adding(parts))
    except BaseException:
        for ties in adapter._ties:
            ties.undo()
        for alias in adapter.parts:
            adapter.places[alias].host._modules.pop(adapter.slug, None)
        raise
    if freeze:
        mine = {id(p) for each in [*adapters_of(model), adapter] for p in each.parameters()}
        adapter._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
        for parameter in adapter._frozen:
            parameter.requires_grad_(False)
    model.__dict__.setdefault("_penstock_adapters", []).append(adapter)
    _mark(model, on=True)
    return adapter


def remove(what: nn.Module | Adapter) -> nn.Module:
    """Take out what was put into a model, latest first, or one adapter of it; return the model."""
    if isinstance(what, Adapter):
        return what.remove()
    for adapter in reversed(list(adapters_of(what))):
        adapter.remove()
    return what


def check(model: nn.Module) -> nn.Module:
    """Return the model, or raise if its configuration says that it was saved with parts which it does not have.

    Raises:
        ConfigError: if they are missing.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, MARK, None) == REFUSAL and not adapters_of(model):
        raise ConfigError(
            f"{type(model).__name__} was saved with gates, and has none: load it by penstock.adapt.from_pretrained"
        )
    return model


def _check_room(model: nn.Module, what: Method) -> None:
    for other in adapters_of(model):
        if other.what.name == what.name:
            raise ConfigError(f"{what.name}: the model has one already: remove it first")
        if what.name in other.what.excludes or other.what.name in what.excludes:
            raise ConfigError(
                f"{what.name}: it cannot stand beside {other.what.name}, which the model has: remove that first"
            )


def _put(adapter: Adapter, place: Place, part: Part) -> None:
    near = next((p for p in (*place.host.parameters(), *adapter.model.parameters()) if p.is_floating_point()), None)
    if near is not None:
        part.to(near.device, near.dtype)
    part.method_name = adapter.what.name
    part.train(place.host.training)
    adapter.parts[place.alias], adapter.places[place.alias] = part, place
    place.host.add_module(adapter.slug, part)
    ties = Ties(adapter.model, part)
    adapter._ties.append(ties)
    part.attach(place, ties)


class _Adding:
    """Adds the parts' penalties to the loss that a model of `transformers` gives in training."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def __call__(self, output: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - what a hook is given
        loss = getattr(output, "loss", None)
        if loss is None or not self.parts[0].training:
            return
        for part in self.parts:
            penalty = part.penalty()
            if penalty is not None:
                loss = loss + penalty
        output.loss = loss


def _mark(model: nn.Module, *, on: bool) -> None:
    config: Any = getattr(model, "config", None)
    if config is None:
        return
    if on:
        setattr(config, MARK, REFUSAL)
    elif MARK in vars(config):
        delattr(config, MARK)
