"""Where things are in a trained model, found by structure: its layers, their branches, and the maps of their attention.

A family of `transformers` whose parts go by other names needs them in a tuple below, and nothing else.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from torch import nn

from penstock.adapt.replaced import linear_maps
from penstock.core import ConfigError

Kind = Literal["model", "layer", "attention", "mlp", "linear", "gated"]
ALONE = {"linear": "a linear map", "gated": "a gated feed-forward layer"}
"""The kinds that any model may have, without a stack of layers."""
Where = str | Callable[[str, nn.Module], bool]

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
CORE = ("self", "attention")
"""What an attention module calls the part of it that attends, where it is made of parts."""
OUT = ("o_proj", "out_proj", "c_proj", "output.dense", "dense", "wo")
MAPS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("c_attn",), ("qkv_proj",), ("query_key_value",))
"""The maps to queries, keys and values, apart or as one."""
MLP = (("mlp",), ("block_sparse_moe",), ("feed_forward",), ("ffn",), ("intermediate", "output.dense"))
"""The feed-forward branch: one module, or its first and its last."""
GATED = (("to_gate", "to_value", "out"), ("gate_proj", "up_proj", "down_proj"))
ACTIVATION = ("phi", "act_fn")
"""What gated feed-forward layers call their maps and their activation: ours, and those of `transformers`."""
HEADS = ("num_attention_heads", "n_head", "num_heads")
KV_HEADS = ("num_key_value_heads", "n_head_kv")
WIDTH = ("head_dim", "attention_head_size")
DIM = ("hidden_size", "n_embd", "dim", "d_model")


@dataclass(frozen=True)
class Branch:
    """What is added to the stream: it begins where `first` is called and ends with what `last` gives."""

    first: nn.Module
    last: nn.Module


@dataclass(frozen=True)
class Place:
    """Somewhere in a model that a part can be put.

    Args:
        kind: what it is.
        alias: its name whatever the family: `layers.3`, `layers.3.attention`, `layers.3.mlp`, or `model`; that of a map is
            its path from its layer, such as `layers.3.self_attn.q_proj`.
        path: of the module that the part becomes a child of.
        host: that module.
        dim: width of the stream.
        index: which layer, or -1 for the model.
        layers: how many there are.
        branch: the `Branch` of attention or of a feed-forward layer.
        core: the module that calls the attention function.
        out: the map from the heads to the stream.
        maps: to queries, keys and values, apart or as one.
        heads: of attention.
        kv_heads: heads of keys and values.
        width: of a head.
        stack: the places of the layers, for the model.
    """

    kind: Kind
    alias: str
    path: str
    host: nn.Module
    dim: int
    index: int = -1
    layers: int = 0
    branch: Any = None
    core: Any = None
    out: Any = None
    maps: tuple[nn.Module, ...] = ()
    heads: int = 0
    kv_heads: int = 0
    width: int = 0
    stack: tuple["Place", ...] = field(default=(), repr=False)

    @property
    def caches(self) -> bool:
        """Whether the attention takes a cache of keys and values."""
        return self.core is not None and "past_key_values" in inspect.signature(type(self.core).forward).parameters

    def inside(self, kind: Kind) -> "Place":
        """Return the attention or the feed-forward branch of a layer."""
        return next(place for place in self.stack if place.kind == kind)


def places(model: nn.Module) -> list[Place]:
    """Return all places of a model: the model, its layers in their order, and their branches.

    Raises:
        ConfigError: where no stack of layers with attention is found.
    """
    path, stack = _stack(model)
    config: Any = getattr(model, "config", None)
    found: list[Place] = []
    for index, layer in enumerate(stack):
        alias, here = f"layers.{index}", f"{path}.{index}" if path else str(index)
        sides = list(_branches(layer, alias, here, config, index, len(stack)))
        dim = sides[0].dim
        found += [Place("layer", alias, here, layer, dim, index, len(stack), stack=tuple(sides)), *sides]
    above = path.rpartition(".")[0]
    whole = tuple(place for place in found if place.kind == "layer")
    return [Place("model", "model", above, model.get_submodule(above), found[0].dim, -1, len(stack), stack=whole), *found]


def select(model: nn.Module, where: Where, kinds: Iterable[Kind]) -> list[Place]:
    """Return the places of these kinds that `where` matches, by alias or by path; the model itself is always matched."""
    kinds = tuple(kinds)
    found = [*(places(model) if any(kind not in ALONE for kind in kinds) else ()), *_alone(model)]
    every = [place for place in found if place.kind in kinds]
    chosen = [place for place in every if place.kind == "model" or _fits(place, where)]
    if not chosen:
        asked = repr(where) if isinstance(where, str) else "the predicate"
        known = ", ".join(place.alias for place in every[:3]) or "none"
        names = " or ".join(ALONE.get(kind, kind) for kind in kinds)
        raise ConfigError(f"insert: where must match {names} of the model, and {asked} matches none of {known}, ..")
    return chosen


def _alone(model: nn.Module) -> Iterator[Place]:
    """Yield the linear maps that no adapter has, and the gated feed-forward layers that are made of them."""
    every = linear_maps(model, "*", transposed=True)
    found = {path: part for path, part in every.items() if not _added(path)}
    own = set(found.values())
    layers: dict[str, tuple[Any, ...]] = {}
    for path, part in model.named_modules():
        for names in GATED:
            maps = tuple(getattr(part, name, None) for name in names)
            if path and own.issuperset(maps) and any(hasattr(part, name) for name in ACTIVATION):
                layers[path] = (part, *maps)
    aliases = {path: _alias(path) for path in (*found, *layers)}
    users = Counter(aliases.values())
    aliases = {path: alias if users[alias] == 1 else path for path, alias in aliases.items()}
    for path, part in found.items():
        yield Place("linear", aliases[path], path, part, part.weight.shape[0 if _is_transposed(part) else 1])
    for path, (part, to_gate, to_value, out) in layers.items():
        yield Place("gated", aliases[path], path, part, out.weight.shape[0], maps=(to_gate, to_value), out=out)


def _added(path: str) -> bool:
    return any(step.startswith(("penstock_", "lora_")) for step in path.split("."))


def _is_transposed(part: nn.Module) -> bool:
    return not isinstance(part, nn.Linear)


def _alias(path: str) -> str:
    """Return a path from the number of its layer on, behind `layers`."""
    steps = path.split(".")
    first = next((place for place, step in enumerate(steps) if step.isdigit()), 0)
    return ".".join(("layers", *steps[first:])) if steps[first].isdigit() else path


def _fits(place: Place, where: Where) -> bool:
    if callable(where):
        return bool(where(place.path, place.host))
    return any(fnmatchcase(name, pattern) for pattern in where.split("|") for name in (place.alias, place.path))


def child(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """Return the first of the named parts that a module has, or None."""
    for name in names:
        part: Any = module
        for step in name.split("."):
            part = getattr(part, step, None)
        if isinstance(part, nn.Module):
            return part
    return None


def number(things: Iterable[Any], names: Iterable[str]) -> int | None:
    """Return the first of the named numbers that one of `things` has."""
    for thing in things:
        for name in names:
            if isinstance(found := getattr(thing, name, None), int):
                return found
    return None


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for path, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) and all(child(layer, ATTENTION) is not None for layer in part):
            yield path, part


def _stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    for found in _stacks(model):
        return found
    raise ConfigError(
        f"insert: {type(model).__name__} has no stack of layers with attention, looked for under {', '.join(ATTENTION)}"
    )


def _branches(layer: nn.Module, alias: str, path: str, config: Any, index: int, layers: int) -> Iterator[Place]:
    attention = cast("nn.Module", child(layer, ATTENTION))
    core = child(attention, CORE) or attention
    out = child(attention, OUT)
    maps = next((found for names in MAPS if all(found := [child(core, [name]) for name in names])), [])
    sources = [core, getattr(core, "config", None), config, getattr(config, "text_config", None)]
    heads, dim = number(sources[1:], HEADS) or number(sources, HEADS), number(sources[1:], DIM)
    if heads is None or dim is None or out is None:
        raise ConfigError(f"insert: {path}: the attention {type(attention).__name__} has no heads or no map out of them")
    place = {"host": attention, "dim": dim, "index": index, "layers": layers}
    groups = number([core], ("num_key_value_groups",)) or 1
    name = next(name for name in ATTENTION if getattr(layer, name, None) is attention)
    yield Place(
        "attention",
        f"{alias}.attention",
        f"{path}.{name}",
        branch=Branch(attention, attention) if core is attention else Branch(core, out),
        core=core,
        out=out,
        maps=tuple(part for part in maps if part is not None),
        heads=heads,
        kv_heads=heads // groups,
        width=number(sources, WIDTH) or dim // heads,
        **place,
    )
    for names in MLP:
        ends = [child(layer, [name]) for name in names]
        if all(end is not None for end in ends):
            first, last = cast("nn.Module", ends[0]), cast("nn.Module", ends[-1])
            place["host"] = first
            yield Place("mlp", f"{alias}.mlp", f"{path}.{names[0]}", branch=Branch(first, last), **place)
            return


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what two models must agree in for the parts of one to fit the other."""
    config: Any = getattr(model, "config", None)
    family = {"family": str(getattr(config, "model_type", type(model).__name__))}
    if not any(_stacks(model)):
        return family
    first = places(model)
    attention = next(place for place in first if place.kind == "attention")
    return family | {
        "layers": first[0].layers,
        "dim": first[0].dim,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "width": attention.width,
    }
