r"""Codebook features: what heads, feed-forward layers or whole layers give becomes the mean of a few codes, chosen of many.

$$ y = \frac 1 k \sum_{j \in S} c_j, \qquad S = \operatorname{top}_k \cos(\operatorname{LN}(a), c_j) $$
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from penstock.adapt.adapter import Adapter
from penstock.adapt.method import Method, Part, Passing
from penstock.adapt.places import Place
from penstock.adapt.running import call, evaluating
from penstock.adapt.ties import Ties, first, hidden, with_first, with_hidden
from penstock.core import ConfigError, DataError, NonNegative, Size
from penstock.core.errors import unknown
from penstock.nn.memory.codebook_features import CodebookFeatures

SITES = {"heads": ("attention",), "mlp": ("mlp",), "heads+mlp": ("attention", "mlp"), "layer": ("layer",)}


class CodebookPart(Part):
    """The codes of one place: of each head before the map out of them, or of what a branch or a layer gives."""

    gates: ClassVar = {"book.gate": "{0, 1}"}

    def __init__(self, place: Place, what: "Codebook") -> None:
        super().__init__()
        groups = place.heads if place.kind == "attention" else 1
        width = place.heads * place.width if place.kind == "attention" else place.dim
        self.book = CodebookFeatures(width, what.codes, what.active, groups, reconstruction=what.reconstruction)
        self.loss = Passing()
        self.forced: Tensor | None = None
        self.inputs: list[Tensor] | None = None
        self.chosen: list[Tensor] | None = None

    def attach(self, place: Place, ties: Ties) -> None:
        """Stand before the map out of the heads, or behind a branch or a layer."""
        if place.kind == "attention":
            ties.before(place.out, self.quantize_heads)
        else:
            ties.after(place.host if place.kind == "layer" else place.branch.last, self.quantize_output)

    def quantize_heads(self, args: tuple, kwargs: dict) -> Any:
        """Return the map's arguments with codes in the place of what the heads give."""
        return with_hidden(self.quantize(hidden(args, kwargs)), args, kwargs)

    def quantize_output(self, output: Any, args: tuple, kwargs: dict) -> Any:  # noqa: ARG002 - what a hook is given
        """Return codes in the place of a module's output."""
        return with_first(self.quantize(first(output)), output)

    def quantize(self, x: Tensor) -> Tensor:
        """Return codes in the place of `x`: `(..., dim) -> (..., dim)`."""
        if self.inputs is not None:
            self.inputs.append(x.detach().flatten(0, -2))
            return x
        codes = self.book(x, self.forced)
        if self.training:
            self.loss.value = codes.losses["reconstruction"]
        if self.chosen is not None:
            self.chosen.append(codes.indices)
        return codes.values

    def penalty(self) -> Tensor | None:
        """Return what draws codes to what they stand for."""
        return self.loss.take()


class Codebook(Method):
    r"""Make what a model passes on inside discrete: a few codes out of many stand for each vector, and can be read and set.

    Insert it with `freeze=False`: the paper trains the whole model and the codes by the model's own loss. Begin with
    `fit_codes`, since codes as they are drawn break a trained model. Then `read_codes` and `count_codes` tell which codes
    fire, and `force_codes` has others in their place.

    Args:
        codes: how many there are for each head, feed-forward layer or layer.
        active: how many of them stand for a vector; the paper takes 8 for the heads of language models.
        at: `heads` before the map out of them, `mlp` for what feed-forward layers add, both, or `layer` for the stream.
        reconstruction: weight of the distance between a vector and its codes, which moves the codes alone.
    """

    name, kinds = "codebook-features", ("attention", "mlp", "layer")

    def __init__(
        self,
        codes: Size = 1000,
        active: Size = 1,
        at: Literal["heads", "mlp", "heads+mlp", "layer"] = "heads+mlp",
        *,
        reconstruction: NonNegative = 1.0,
    ) -> None:
        self.codes, self.active, self.at, self.reconstruction = codes, active, at, reconstruction

    def keep(self, places: Sequence[Place]) -> list[Place]:
        """Return the places of the kinds that codes are asked for."""
        return [place for place in places if place.kind in SITES[self.at]]

    def part(self, place: Place) -> CodebookPart:
        """Return the codes of a place."""
        return CodebookPart(place, self)


def fit_codes(adapter: Adapter, data: Iterable[Any], rounds: Size = 10, generator: torch.Generator | None = None) -> None:
    """Begin from what the model gives for texts without codes: their lengths, and codes in their middles by K-means.

    Args:
        adapter: of `Codebook`, in the model.
        data: batches, each what the model is called with, of more tokens than there are codes.
        rounds: of K-means.
        generator: where the first codes are drawn from.

    Raises:
        ConfigError: if the adapter is of another method.
        DataError: without data.
    """
    parts = list(_parts("fit_codes", adapter).values())
    with _noting(parts, "inputs"):
        _run("fit_codes", adapter, data)
        for part in parts:
            part.book.fit(torch.cat(part.inputs or []), rounds, generator)


def read_codes(adapter: Adapter, batch: Any) -> dict[str, Tensor]:
    """Return which codes stand for each token, by place: `(..., groups, active)`, the most like first.

    Args:
        adapter: of `Codebook`, in the model.
        batch: what the model is called with.
    """
    parts = _parts("read_codes", adapter)
    with _noting(parts.values(), "chosen"):
        _run("read_codes", adapter, [batch])
        return {alias: part.chosen[-1] for alias, part in parts.items() if part.chosen}


def count_codes(adapter: Adapter, data: Iterable[Any]) -> dict[str, Tensor]:
    """Return how often each code fires, by place: `(groups, codes)`; one with 0 is dead.

    Args:
        adapter: of `Codebook`, in the model.
        data: batches, each what the model is called with.

    Raises:
        ConfigError: if the adapter is of another method.
        DataError: without data.
    """
    parts = _parts("count_codes", adapter)
    counts = {alias: torch.zeros_like(part.book.codes[..., 0], dtype=torch.long) for alias, part in parts.items()}
    for batch in _some("count_codes", data):
        for alias, indices in read_codes(adapter, batch).items():
            counts[alias] += parts[alias].book.count(indices)
    return counts


@contextmanager
def force_codes(adapter: Adapter, codes: Mapping[str, int | Tensor]) -> Iterator[None]:
    """Have these codes fire inside, whatever the model would choose; `generate` may be called there too.

    Args:
        adapter: of `Codebook`, in the model.
        codes: by place, such as `layers.1.mlp`: one code for all, or codes that broadcast to `(batch, time, groups,
            active)`; -1 leaves the choice as it is.

    Raises:
        ConfigError: if the adapter is of another method or not at a place, or there is no such code.
    """
    parts = _parts("force_codes", adapter)
    ready: dict[str, Tensor] = {}
    for alias, wanted in codes.items():
        if alias not in parts:
            raise ConfigError(f"force_codes: {unknown('place', alias, parts)}")
        known = parts[alias].book.codes
        forced = torch.as_tensor(wanted, device=known.device)
        if forced.is_floating_point() or bool(((forced < -1) | (forced >= known.shape[1])).any()):
            raise ConfigError(
                f"force_codes: codes of {alias} must be integers from -1 to {known.shape[1] - 1}, got {wanted}"
            )
        ready[alias] = forced
    before = {alias: parts[alias].forced for alias in ready}
    for alias, forced in ready.items():
        parts[alias].forced = forced
    try:
        yield
    finally:
        for alias, forced in before.items():
            parts[alias].forced = forced


def _parts(who: str, adapter: Adapter) -> dict[str, CodebookPart]:
    parts = {alias: part for alias, part in adapter.parts.items() if isinstance(part, CodebookPart)}
    if not parts:
        raise ConfigError(f"{who}: adapter must be of the method codebook-features, got {adapter.what.name}")
    return parts


@contextmanager
def _noting(parts: Iterable[CodebookPart], what: Literal["inputs", "chosen"]) -> Iterator[None]:
    parts = list(parts)
    for part in parts:
        setattr(part, what, [])
    try:
        yield
    finally:
        for part in parts:
            setattr(part, what, None)


def _run(who: str, adapter: Adapter, data: Iterable[Any]) -> None:
    with evaluating(adapter.model), torch.no_grad():
        for batch in _some(who, data):
            call(adapter.model, batch)


def _some(who: str, data: Iterable[Any]) -> Iterator[Any]:
    none = True
    for batch in data:
        yield batch
        none = False
    if none:
        raise DataError(f"{who}: data must have a batch, and has none")
