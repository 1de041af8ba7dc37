"""The mixture with tokens sorted by expert: a product for each expert, of just its rows."""

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.core.backend import asked
from penstock.core.memory import recycled
from penstock.core.threads import HAS_NUMBA
from penstock.ops.expert_mlp import reference
from penstock.ops.expert_mlp.activation import activate, activate_back
from penstock.ops.expert_mlp.maps import Maps
from penstock.ops.expert_mlp.packed import Packed
from penstock.ops.linear import linear
from penstock.ops.native import FLOPS, FLOPS_OF_VALUES
from penstock.ops.plan import Plan
from penstock.ops.product import by_onednn, product

Lines = list[tuple[int, int, int]]  # an expert, its first row, and the row after its last
FEW, KERNEL_DTYPES = 16, (torch.float32, torch.float64)

torch.library.define(
    "penstock::expert_mlp",
    "(Tensor x, Tensor weights, Tensor indices, Tensor w_in, Tensor? b_in, Tensor w_out, Tensor? b_out, str activation,"
    " bool keep) -> (Tensor, Tensor)",
)
torch.library.define(
    "penstock::expert_mlp_backward",
    "(Tensor x, Tensor weights, Tensor indices, Tensor w_in, Tensor? b_in, Tensor w_out, Tensor? b_out, str activation,"
    " Tensor inner, Tensor grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def expert_mlp(
    x: Tensor, weights: Tensor, indices: Tensor, inner: Maps, outer: Maps, activation: str, packed: Packed | None
) -> Tensor:
    """Return the weighted sums."""
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weights, *inner, *outer))
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, inner, outer = x.to(dtype), inner.to(dtype), outer.to(dtype)
    if packed is not None and not keep and not torch.compiler.is_compiling() and packed.serves(inner.weight, outer.weight):
        return _packed(x, weights, indices, inner, outer, activation, packed)
    return _FORWARD(x, weights, indices, *inner, *outer, activation, keep)[0]


@torch.library.impl("penstock::expert_mlp", ("cpu", "cuda"))
def _(x: Tensor, weights: Tensor, indices: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    inner, outer, (activation, keep) = Maps(*given[:2]), Maps(*given[2:4]), given[4:]
    plan, places = _sorted(indices, len(inner.weight))
    rows = x.index_select(0, plan.rows)
    results = recycled(len(rows) + 1, x.shape[1], like=x)
    kept = recycled(indices.numel() if keep else 0, inner.weight.shape[1], like=x)
    few, many = _parted(_busy(plan), x, inner.weight, outer.weight)
    if few:
        made = kept if keep else recycled(len(rows), inner.weight.shape[1], like=x)
        _map_all(rows, inner, made, few, many)
        _map_all(activate(made[: len(rows)], activation), outer, results, few, many)
        return _combine(results, places, weights), kept
    for expert, start, stop in many:
        made = _map(rows[start:stop], *inner.of(expert))
        if keep:
            kept[start:stop] = made
        results[start:stop] = _map(activate(made, activation), *outer.of(expert))
    return _combine(results, places, weights), kept


@torch.library.impl("penstock::expert_mlp_backward", ("cpu", "cuda"))
def _(x: Tensor, weights: Tensor, indices: Tensor, *given: Any) -> tuple[Tensor, ...]:
    inner, outer, (activation, kept, grad) = Maps(*given[:2]), Maps(*given[2:4]), given[4:]
    plan, places = _sorted(indices, len(inner.weight))
    openness = weights.flatten()[places.flatten().argsort()[: len(plan.rows)]].to(x.dtype).unsqueeze(1)
    rows, grads = x.index_select(0, plan.rows), grad.index_select(0, plan.rows)
    d_rows = recycled(len(rows) + 1, x.shape[1], like=x)
    d_openness = x.new_zeros(len(rows) + 1)
    (d_in, db_in), (d_out, db_out) = (
        (recycled(*w.shape, like=w), w.new_zeros(0) if b is None else torch.zeros_like(b)) for w, b in (inner, outer)
    )
    idle = set(range(len(inner.weight)))
    for expert, start, stop in _busy(plan):
        idle.remove(expert)
        here, share = slice(start, stop), openness[start:stop]
        d_units = product(grads[here], outer.weight[expert].mT)
        units, d_made = activate_back(d_units * share, kept[here], activation)
        d_openness[here] = (d_units * units).sum(1)
        d_results = grads[here] * share
        d_out[expert] = product(d_results.mT, units.mT)
        d_in[expert] = product(d_made.mT, rows[here].mT)
        d_rows[here] = product(d_made, inner.weight[expert].mT)
        if inner.bias is not None:
            torch.sum(d_made, 0, out=db_in[expert])
        if outer.bias is not None:
            torch.sum(d_results, 0, out=db_out[expert])
            d_openness[here] += grads[here] @ outer.bias[expert]
    for expert in idle:
        d_in[expert].zero_()
        d_out[expert].zero_()
    d_weights = d_openness[places].to(weights.dtype)
    return _combine(d_rows, places, None), d_weights, d_in, db_in, d_out, db_out


def _sorted(indices: Tensor, experts: int) -> tuple[Plan, Tensor]:
    """Return the plan, and where each route `(n, k)` stands in it; the place after the last is for routes not taken."""
    n, k = indices.shape
    flat = torch.where(indices < 0, experts, indices).flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts + 1)[:experts].cumsum(0).tolist()
    total = counts[-1] if counts else 0
    places = torch.empty_like(order).scatter_(0, order, torch.arange(n * k, device=order.device)).clamp_max_(total)
    return Plan(order[:total] // k, [0, *counts], None, n), places.view(n, k)


def _busy(plan: Plan) -> Lines:
    """Return each expert that has rows, and where they begin and end."""
    ends = zip(plan.bounds, plan.bounds[1:], strict=False)
    return [(expert, start, stop) for expert, (start, stop) in enumerate(ends) if start < stop]


def _parted(busy: Lines, *tensors: Tensor) -> tuple[Lines, Lines]:
    """Return the experts with so few rows that a kernel maps them all at once, where it can, and the others."""
    x = tensors[0]
    one_dtype = all(t.dtype is x.dtype and t.is_contiguous() for t in tensors[1:]) and x.dtype in KERNEL_DTYPES
    if not (HAS_NUMBA and x.device.type == "cpu" and one_dtype and asked() in (None, "numba")):
        return [], busy
    return [line for line in busy if line[2] - line[1] <= FEW], [line for line in busy if line[2] - line[1] > FEW]


def _map_all(x: Tensor, maps: Maps, y: Tensor, few: Lines, many: Lines) -> None:
    """Fill `y` with what the experts' maps make of their rows."""
    _kernels().few_rows(x, *maps, y, few)
    for expert, start, stop in many:
        y[start:stop] = _map(x[start:stop], *maps.of(expert))


@cache
def _kernels() -> Any:
    return importlib.import_module("penstock.ops.expert_mlp.numba_cpu")


def _map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight, bias) if len(x) == 1 and not torch.is_grad_enabled() else product(x, weight, bias)


def _combine(results: Tensor, places: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum of each token's results, `(n, dim)`; the last row of `results` stands for none and is not read."""
    nothing = len(results) - 1
    if results.dtype in (torch.float32, torch.float64):
        weights = None if weights is None else weights.to(results.dtype)
        return F.embedding_bag(places, results, mode="sum", per_sample_weights=weights, padding_idx=nothing)
    results[nothing] = 0
    chosen = results[places].float()
    if weights is not None:
        chosen = chosen * weights.float().unsqueeze(-1)
    return chosen.sum(1).to(results.dtype)


def _packed(
    x: Tensor, weights: Tensor, indices: Tensor, inner: Maps, outer: Maps, activation: str, packed: Packed
) -> Tensor:
    plan, places = _sorted(indices, len(packed.inner))
    rows = x.index_select(0, plan.rows)
    results = recycled(len(rows) + 1, x.shape[1], like=x)
    for expert, start, stop in _busy(plan):
        units = activate(by_onednn(rows[start:stop], packed.inner[expert], inner.of(expert)[1]), activation)
        results[start:stop] = by_onednn(units, packed.outer[expert], outer.of(expert)[1])
    return _combine(results, places, weights)


@torch.library.register_fake("penstock::expert_mlp")
def _(x: Tensor, _: Tensor, indices: Tensor, w_in: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(indices.numel() if rest[-1] else 0, w_in.shape[1])


@torch.library.register_fake("penstock::expert_mlp_backward")
def _(x: Tensor, weights: Tensor, _: Tensor, *given: Any) -> tuple[Tensor, ...]:
    maps = [x.new_empty(0) if t is None else torch.empty_like(t) for t in given[:4]]
    return torch.empty_like(x), torch.empty_like(weights), *maps


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.activation, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiated(ctx: Any, grad: Tensor, _: Any) -> Any:
    *tensors, kept = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (*_again(tensors, ctx.activation, grad), None, None)
    d_x, d_weights, *d_maps = _BACKWARD(*tensors, ctx.activation, kept, grad.contiguous())
    d_maps = [None if given is None else made for given, made in zip(tensors[3:], d_maps, strict=True)]
    return d_x, d_weights, None, *d_maps, None, None


def _again(tensors: list[Any], activation: str, grad: Tensor) -> list[Tensor | None]:
    """Return the gradients in a form that can be differentiated again; for views, as an input may depend on another."""
    with torch.enable_grad():
        made: list[Any] = [t if t is None or not t.is_floating_point() else t.view_as(t) for t in tensors]
        asked = [i for i, t in enumerate(made) if t is not None and t.requires_grad]
        x, weights, indices, *maps = made
        y = reference.expert_mlp(x, weights, indices, Maps(*maps[:2]), Maps(*maps[2:]), activation)
        grads = torch.autograd.grad(y, [made[i] for i in asked], grad, create_graph=True, materialize_grads=True)
    found = dict(zip(asked, grads, strict=True))
    return [found.get(i) for i in range(len(tensors))]


torch.library.register_autograd("penstock::expert_mlp", _differentiated, setup_context=_remember)
_FORWARD, _BACKWARD = torch.ops.penstock.expert_mlp.default, torch.ops.penstock.expert_mlp_backward.default


def _flops(passes: int, indices: Tensor, w_in: Tensor, _: Any, w_out: Tensor) -> int:
    """Return the operations of the routes that are taken; each goes through one expert."""
    return passes * 2 * int((indices >= 0).sum()) * (w_in[0].numel() + w_out[0].numel())


FLOPS["expert_mlp"] = lambda _, __, *given, **___: _flops(1, *given[:4])
FLOPS["expert_mlp_backward"] = lambda _, __, *given, **___: _flops(2, *given[:4])
FLOPS_OF_VALUES.update(("expert_mlp", "expert_mlp_backward"))
