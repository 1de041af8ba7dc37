"""How fast sparse activations make a single row, as in decoding one sequence, beside the dense layers they stand for.

A whole language model is timed too, a token at a time: attention, norms and caches, which no sparsity makes less, included.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from itertools import cycle
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.adapt import CATS, CHESS, TEAL, WINA, Adapter, Method, insert
from penstock.adapt.replaced import linear_maps
from penstock.bench.decode import VOCABULARY, Run
from penstock.bench.decode import rounds as by_turns
from penstock.core.catalogue import build
from penstock.models import LanguageModel
from penstock.ops import sparse_linear
from penstock.ops.linear import linear

COPIES, MASKS, LIMIT = 3, 12, 2.0
SPARSITIES = (0.5, 0.7, 0.9)
METHODS = (WINA, TEAL, CHESS, CATS)
PROMPT, DATA = 16, (4, 64)


class Row(NamedTuple):
    """Milliseconds of a layer at a share of dropped activations, and how much faster than torch's dense one it is.

    They are the least, and for a whole model the median over tokens.
    """

    what: str
    code: str
    sparsity: float
    milliseconds: float
    times: float


def table(width: int, dim: int, hidden: int, rounds: int = 200, depth: int = 4, tokens: int = 48) -> list[Row]:
    """Time a linear map, a gated feed-forward layer and a language model, dense and sparse, by turns: a row for each.

    Weights and masks take turns too, so that what is timed comes from memory and not from a cache.

    Args:
        width: of the linear map, in and out.
        dim: width of the stream that the feed-forward layer is for.
        hidden: its width inside.
        rounds: how often each is timed; the least time counts.
        depth: layers of the language model, each of that width; 0 leaves the model out.
        tokens: how many it generates; the median time counts.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        whole = models(dim, hidden, depth, tokens) if depth else []
        return [*maps(width, rounds), *layers(dim, hidden, rounds), *whole]


def maps(width: int, rounds: int) -> list[Row]:
    """Time `width` to `width` linear maps of one row."""
    weights = cycle(torch.randn(COPIES, width, width))
    x = torch.randn(1, width)
    calls: dict[tuple[str, float], Callable[[], Tensor]] = {
        ("torch, F.linear", 0.0): lambda: F.linear(x, next(weights)),
        ("penstock, linear", 0.0): lambda: linear(x, next(weights)),
    }
    for sparsity in SPARSITIES:
        kept = cycle(torch.rand(MASKS, 1, width) >= sparsity)
        calls["penstock, sparse_linear", sparsity] = lambda kept=kept: sparse_linear(x, next(weights), next(kept))
    return timed(f"linear map, {width} x {width}", calls, rounds)


def layers(dim: int, hidden: int, rounds: int) -> list[Row]:
    """Time gated feed-forward layers of one row, as the methods of `penstock.adapt` make them of dense ones."""
    xs = cycle(torch.randn(MASKS, 1, dim))
    dense = [build("swiglu", dim=dim, hidden=hidden) for _ in range(COPIES)]
    others, what = deepcopy(dense), f"SwiGLU, {dim} to {hidden}"
    first = ("torch, F.linear", 0.0), turns([plain(layer) for layer in dense], xs)
    rows = timed(what, dict([first, (("penstock, swiglu", 0.0), turns(dense, xs))]), rounds)
    for method in METHODS:
        for sparsity in SPARSITIES:
            made = [sparse(nn.Sequential(layer), method(1 - sparsity), torch.randn(256, dim)) for layer in others]
            call = turns([one.model for one in made], xs)
            rows.append(timed(what, dict([first, ((f"penstock, {method.name}", sparsity), call)]), rounds)[1])
            for one in made:
                one.remove()
    return rows


def sparse(model: nn.Module, what: Method, data: Tensor) -> Adapter:
    """Put a method into a model, and set its levels for its budget by one batch."""
    adapter = insert(model.eval(), what)
    adapter.calibrate([data], budgets=())
    return adapter


def models(dim: int, hidden: int, depth: int, tokens: int) -> list[Row]:
    """Time a language model of `depth` layers, a token at a time, and with every linear map of its layers sparse."""
    dense = LanguageModel(VOCABULARY, dim, depth, channel={"mechanism": "swiglu", "hidden": hidden})
    other, what = deepcopy(dense), f"LanguageModel, {depth} x {dim} to {hidden}"
    runs = {"torch, F.linear": with_torchs_maps(dense), "penstock, LanguageModel": dense, "penstock, wina": other}
    rows: list[Row] = []
    for sparsity in SPARSITIES:
        made = sparse(other, WINA(1 - sparsity), torch.randint(VOCABULARY, DATA))
        medians = by_turns({code: Run(model, model.follow) for code, model in runs.items()}, PROMPT, tokens)
        first = medians["torch, F.linear"]
        for code in [*runs] if not rows else ["penstock, wina"]:
            dropped = sparsity if runs[code] is other else 0.0
            rows.append(Row(what, code, dropped, medians[code], first / medians[code]))
        made.remove()
    return rows


def with_torchs_maps(model: LanguageModel) -> LanguageModel:
    """Return the model with PyTorch's linear layers, on the same parameters."""
    twin = deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for path, part in linear_maps(twin, "*").items():
        other = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None, device="meta")
        other.weight, other.bias = part.weight, part.bias
        twin.set_submodule(path, other)
    return twin


def plain(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return a gated layer as torch's own operations compute it."""
    gate, value, out = (part.weight for part in (layer.to_gate, layer.to_value, layer.out))
    return lambda x: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, value), out)


def turns(functions: list[Callable[[Tensor], Tensor]], xs: Any) -> Callable[[], Tensor]:
    """Return a call of one function after another on one input after another."""
    functions_in_turn = cycle(functions)
    return lambda: next(functions_in_turn)(next(xs))


def timed(what: str, calls: dict[tuple[str, float], Callable[[], Tensor]], rounds: int) -> list[Row]:
    """Time calls by turns, so that what else the machine does hits all of them; the first is what the others are told by."""
    spent: dict[tuple[str, float], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + COPIES):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= COPIES and sum(spent[key]) < LIMIT:
                spent[key].append(time.perf_counter() - start)
    least = {key: 1e3 * min(each) for key, each in spent.items()}
    first = next(iter(least.values()))
    return [Row(what, code, sparsity, least[code, sparsity], first / least[code, sparsity]) for code, sparsity in calls]
