"""Equal terms: models of one size, whatever the mechanism in their sockets."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from penstock.bench.plan.choice import MODELS, Choice, socket_of
from penstock.bench.plan.study import Study
from penstock.bench.task import Task
from penstock.bench.training.cost import operations, parameters
from penstock.core import ConfigError
from penstock.core.arguments import signature
from penstock.core.catalogue import get

TOLERANCE = 0.02
REFERENCE = {"mixer": "attention", "channel": "swiglu"}
NARROWEST = 8
SHARE = 4


class Sized(NamedTuple):
    """A model whose size was solved: the spec to build it from, and what it costs."""

    spec: dict[str, Any]
    params: int
    flops: int


def model_spec(study: Study, task: Task, choice: Choice, dim: int, hidden: int | None) -> dict[str, Any]:
    """Return the spec of the model with `choice` in its socket, the reference in the others, and that hidden width.

    A router is put into a mixture of experts, which is the channel mixer, and an activation into a plain feed-forward layer.
    A pooling has a model of its own, in which no item sees another before they are pooled.
    """
    sockets: dict[str, Any] = {name: {"mechanism": mechanism} for name, mechanism in REFERENCE.items()}
    socket, mechanism = socket_of(choice.name), choice.plain("mechanism")
    if choice.name in MODELS:
        return skipping_model(study, task, choice, dim, hidden)
    if socket == "pooling":
        if task.inputs != "features" or task.per_position:
            raise ConfigError(
                f"{choice.label}: a pooling is compared on bags of features, and {task.name} has none; try bags"
            )
        del sockets["mixer"]
        sockets["pooling"] = mechanism
    elif socket == "router":
        sockets["channel"] = {"mechanism": "moe", "router": mechanism}
    elif socket == "activation":
        sockets["channel"] = {"mechanism": "activated-ffn", "activation": mechanism}
    else:
        sockets[socket] = mechanism
    if hidden is not None:
        sockets["channel"]["hidden"] = hidden
    sizes = {"dim": dim, "layers": study.layers, **sockets}
    if socket == "pooling":
        return {"model": "bag", "features": task.features, "classes": task.classes, **sizes}
    if task.inputs == "tokens" and task.per_position and task.classes == task.vocabulary:
        return {"model": "language", "vocabulary": task.vocabulary, **sizes}
    shown = {"vocabulary": task.vocabulary} if task.inputs == "tokens" else {"features": task.features}
    return {"model": "classifier", **shown, "classes": task.classes, "per_position": task.per_position, **sizes}


def skipping_model(study: Study, task: Task, choice: Choice, dim: int, hidden: int | None) -> dict[str, Any]:
    """Return the spec of a way of skipping that is a model of its own; a task that it is not for is a `ConfigError`."""
    language = task.inputs == "tokens" and task.per_position and task.classes == task.vocabulary
    exits = not task.per_position, "classifies whole sequences, such as digits"
    fits, asks = {
        "skip-middle": (language, "predicts the next token, such as text"),
        "early-exit": exits,
        "jei-dnn": exits,
        "evit": (
            not task.per_position and task.inputs == "features",
            "classifies sequences of features, such as digits",
        ),
    }[choice.name]
    if not fits:
        raise ConfigError(f"{choice.label}: needs a task that {asks}, got {task.name}")
    sizes = {"model": choice.name, "dim": dim, "layers": study.layers, **choice.arguments}
    if choice.name == "evit":
        shown = {"classes": task.classes, "features": task.features, "patches": task.length}
        return {"hidden": hidden, **sizes, **shown}
    sizes["channel"] = {"mechanism": REFERENCE["channel"], **({} if hidden is None else {"hidden": hidden})}
    if choice.name == "skip-middle":
        return {**sizes, "vocabulary": task.vocabulary}
    shown = {"vocabulary": task.vocabulary} if task.inputs == "tokens" else {"features": task.features}
    return {**sizes, "classes": task.classes, **shown}


def reference_size(study: Study, task: Task) -> int:
    """Return what all models must come near: the parameters, or operations, of attention with a SwiGLU of usual width."""
    spec = model_spec(study, task, Choice("attention", "attention"), study.dim, None)
    return measure(spec, task, study.match)


def measure(spec: dict[str, Any], task: Task, what: str) -> int:
    """Return the parameters of a model, or its operations for a token."""
    model = build(spec)
    return parameters(model) if what == "params" else operations(model, task)


def build(spec: dict[str, Any]) -> nn.Module:
    """Build a model without disturbing the random numbers of the caller."""
    from penstock.models import build_model

    with torch.random.fork_rng(devices=[]):
        return build_model(spec).eval()


def fit(study: Study, task: Task, choice: Choice, target: int) -> Sized:
    """Return the model with `choice` whose size is within 2% of `target`.

    The hidden width of the channel mixer is solved at the study's residual width. Where the model is too large even with a
    hidden width of a quarter of that, narrower residual widths are tried; where the channel mixer has no hidden width, the
    residual width is all there is to solve.
    """
    solvable = takes_hidden(choice)
    off = float("inf")
    for dim in widths(study.dim, wider=not solvable):
        try:
            spec = nearest(study, task, choice, dim, target) if solvable else model_spec(study, task, choice, dim, None)
            size = measure(spec, task, study.match)
        except ConfigError:
            if dim == study.dim:
                raise
            continue
        if abs(size - target) <= TOLERANCE * target:
            model = build(spec)
            return Sized(spec, parameters(model), operations(model, task))
        off = min(off, abs(size - target) / target)
    what = "parameters" if study.match == "params" else "operations for a token"
    raise ConfigError(f"{choice.label}: no width gives {target:,} {what} to within 2%; the nearest is {off:.0%} away")


def takes_hidden(choice: Choice) -> bool:
    """Tell whether the channel mixer beside or inside the choice has a hidden width that nobody has set."""
    if socket_of(choice.name) != "channel":
        return True
    return "hidden" in signature(get(choice.name)).parameters and "hidden" not in choice.arguments


def widths(dim: int, *, wider: bool) -> Iterator[int]:
    """Yield `dim`, then other residual widths, the nearest first."""
    stride = max(1, dim // 16)
    yield dim
    for distance in range(stride, dim, stride):
        if dim - distance >= NARROWEST:
            yield dim - distance
        if wider:
            yield dim + distance


def nearest(study: Study, task: Task, choice: Choice, dim: int, target: int) -> dict[str, Any]:
    """Return the spec whose hidden width brings the model nearest to `target`; its size must grow with that width."""

    def size(hidden: int) -> int:
        return measure(model_spec(study, task, choice, dim, hidden), task, study.match)

    low = max(1, dim // SHARE)
    high = 2 * low
    while size(high) < target and high < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < target else (low, middle)
    best = min((low, high), key=lambda hidden: abs(size(hidden) - target))
    return model_spec(study, task, choice, dim, best)
