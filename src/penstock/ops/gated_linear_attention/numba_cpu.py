"""The recurrence on a CPU: four rows of the state stay in registers while time passes, a span of it at a time.

Sequences lie one after another on a single time axis, `offsets` says where each begins. Keys and values come in multiples
of `WIDTH`. Every `SPAN` steps the state is marked down, so that the backward pass can go through a span again.
"""
# ruff: noqa: ANN001, ANN201 - types are numba's

from functools import partial
from typing import Any

import torch
from numba import njit
from torch import Tensor

from penstock.core.threads import Kernel
from penstock.ops.packing import WIDTH, bounds_of, fill, full, lanes_for, pack, parts_for, unpack, whole
from penstock.ops.prepared import Ready, chain, steady
from penstock.ops.vectors import arguments, combine, exp, load, load_rows, room, store, store_rows, total, work, zeros

CHUNK, SPAN = 32, 64


@njit
def copy(source, into, start, steps, head, factor):
    """Copy the steps of one head to where they lie side by side."""
    for t in range(steps):
        for i in range(0, source.shape[2], WIDTH):
            store(into, (t, i), factor * load(source, (start + t, head, i), WIDTH))


@njit
def copy_decay(log_decay, into, start, steps, head):
    """Copy the decays of one head, one per channel or one for all."""
    for t in range(steps):
        if log_decay.shape[2] == 1:
            one = exp(zeros(log_decay, WIDTH) + log_decay[start + t, head, 0])
            for i in range(0, into.shape[1], WIDTH):
                store(into, (t, i), one)
        else:
            for i in range(0, into.shape[1], WIDTH):
                store(into, (t, i), exp(load(log_decay, (start + t, head, i), WIDTH)))


def sweep(call):
    """Fill `o`, turn `state` from the first into the last, and keep marks where there is room for them."""
    q, k, v, log_decay, offsets, state, o, marks, scale, parts, lanes = arguments(call)
    heads, keys = v.shape[1], q.shape[2]
    columns = v.shape[2] // parts
    chunk = room(q, (3, CHUNK, keys))
    queries, written, decays = chunk[0], chunk[1], chunk[2]
    values, sums = room(q, (CHUNK, lanes)), room(q, (CHUNK, lanes))
    for item in work(call):
        n, h, first = item // (heads * parts), item // parts % heads, item % parts * columns
        for start in range(offsets[n], offsets[n + 1], CHUNK):
            steps, passed = min(CHUNK, offsets[n + 1] - start), start - offsets[n]
            marked = marks.shape[0] > 0 and passed % SPAN == 0
            copy(q, queries, start, steps, h % q.shape[1], scale)
            copy(k, written, start, steps, h % k.shape[1], 1.0)
            copy_decay(log_decay, decays, start, steps, h)
            for j in range(first, first + columns, lanes):
                for t in range(steps):
                    store(values, (t, 0), load(v, (start + t, h, j), lanes))
                    store(sums, (t, 0), zeros(sums, lanes))
                for i in range(0, keys, 4):
                    s = load_rows(state, n, h, i, j, lanes)
                    if marked:
                        store_rows(marks, offsets[n] // SPAN + n + passed // SPAN, h, i, j, s)
                    for t in range(steps):
                        x = load(values, (t, 0), lanes)
                        s = (
                            decays[t, i] * s[0] + written[t, i] * x,
                            decays[t, i + 1] * s[1] + written[t, i + 1] * x,
                            decays[t, i + 2] * s[2] + written[t, i + 2] * x,
                            decays[t, i + 3] * s[3] + written[t, i + 3] * x,
                        )
                        store(sums, (t, 0), combine(load(sums, (t, 0), lanes), queries, t, i, s))
                    store_rows(state, n, h, i, j, s)
                for t in range(steps):
                    store(o, (start + t, h, j), load(sums, (t, 0), lanes))


@njit(inline="always")
def replay(chunk, values, incoming, grads, past, steps, i, j, lanes):
    """Pass through a span again: keep the rows before each step, and add what they give to the queries' gradient."""
    s = load_rows(past, 0, 0, 0, 0, lanes)
    for t in range(steps):
        store_rows(past, 0, t, 0, 0, s)
        x, w = load(chunk, (2, t, i), lanes), load(chunk, (1, t, i), lanes)
        s = (
            x * s[0] + values[t, j] * w,
            x * s[1] + values[t, j + 1] * w,
            x * s[2] + values[t, j + 2] * w,
            x * s[3] + values[t, j + 3] * w,
        )
        store(grads, (0, t, i), combine(load(grads, (0, t, i), lanes), incoming, t, j, s))


@njit(inline="always")
def unwind(chunk, values, incoming, grads, grad_v, past, s, steps, i, j, lanes):  # noqa: PLR0913, PLR0917 - inlined
    """Go back through a span with the gradient `s` of the rows; return it as it is before the span."""
    for t in range(steps - 1, -1, -1):
        w = load(chunk, (0, t, i), lanes)
        s = (
            s[0] + incoming[t, j] * w,
            s[1] + incoming[t, j + 1] * w,
            s[2] + incoming[t, j + 2] * w,
            s[3] + incoming[t, j + 3] * w,
        )
        w = load(chunk, (1, t, i), lanes)
        grad_v[t, j] += total(s[0] * w)
        grad_v[t, j + 1] += total(s[1] * w)
        grad_v[t, j + 2] += total(s[2] * w)
        grad_v[t, j + 3] += total(s[3] * w)
        store(grads, (1, t, i), combine(load(grads, (1, t, i), lanes), values, t, j, s))
        p = load_rows(past, 0, t, 0, 0, lanes)
        d = load(grads, (2, t, i), lanes) + p[0] * s[0] + p[1] * s[1] + p[2] * s[2] + p[3] * s[3]
        store(grads, (2, t, i), d)
        x = load(chunk, (2, t, i), lanes)
        s = (x * s[0], x * s[1], x * s[2], x * s[3])
    return s


def sweep_back(call):
    """Fill the gradients; `dstate`, transposed, turns from that of the last state into that of the first.

    Where heads are few, work is split over values too; each part then has its own gradients of what all values share.
    """
    q, k, v, log_decay, offsets, marks, do, dstate, dq, dk, dv, ddecay, scale, lanes = arguments(call)
    heads, keys = v.shape[1], q.shape[2]
    parts, size = dq.shape[0], v.shape[2] // dq.shape[0]
    chunk, grads = room(q, (3, SPAN, keys)), room(q, (3, SPAN, keys))  # of queries, keys, decays
    values, incoming, grad_v = (
        room(q, (SPAN, v.shape[2])),
        room(q, (SPAN, v.shape[2])),
        room(q, (SPAN, v.shape[2])),
    )
    past = room(q, (1, SPAN, 4, lanes))
    for item in work(call):
        n, h, part = item // (heads * parts), item // parts % heads, item % parts
        for span in range((offsets[n + 1] - offsets[n] + SPAN - 1) // SPAN - 1, -1, -1):
            start = offsets[n] + span * SPAN
            steps = min(SPAN, offsets[n + 1] - start)
            copy(q, chunk[0], start, steps, h % q.shape[1], 1.0)
            copy(k, chunk[1], start, steps, h % k.shape[1], 1.0)
            copy_decay(log_decay, chunk[2], start, steps, h)
            copy(v, values, start, steps, h, 1.0)
            copy(do, incoming, start, steps, h, scale)
            grads[:] = 0.0
            grad_v[:] = 0.0
            for j in range(part * size, (part + 1) * size, 4):
                for i in range(0, keys, lanes):
                    for r in range(4):
                        for c in range(lanes):
                            past[0, 0, r, c] = marks[offsets[n] // SPAN + n + span, h, i + c, j + r]
                    replay(chunk, values, incoming, grads, past, steps, i, j, lanes)
                    s = load_rows(dstate, n, h, j, i, lanes)
                    s = unwind(chunk, values, incoming, grads, grad_v, past, s, steps, i, j, lanes)
                    store_rows(dstate, n, h, j, i, s)
            grads[2] *= chunk[2]
            for t in range(steps):
                dv[start + t, h, part * size : (part + 1) * size] = grad_v[t, part * size : (part + 1) * size]
                dq[part, start + t, h] = grads[0, t]
                dk[part, start + t, h] = grads[1, t]
                if ddecay.shape[3] == 1:
                    ddecay[part, start + t, h, 0] = grads[2, t].sum()
                else:
                    ddecay[part, start + t, h] = grads[2, t]


run, run_back = Kernel(sweep), Kernel(sweep_back)


def shapes(inputs: Any, state: Tensor, keep: bool) -> tuple[Any, Any]:
    """Return the shapes of output and marks: there is room for as many spans as there can be in all sequences."""
    batch, time, heads, key = inputs[0].shape
    value = inputs[2].shape[3]
    spans = batch * time // SPAN + state.shape[0] if keep else 0
    return (batch, time, heads, value), (spans, heads, full(key), full(value))


def laid_out(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs as the kernels read them."""
    decay = log_decay.flatten(0, 1).contiguous() if log_decay.shape[3] == 1 else pack(log_decay)
    return pack(q), pack(k), pack(v), decay


def once(x: Tensor) -> Tensor:
    """Return queries or keys that all heads share with the one head that they are."""
    return x[:, :, :1] if x.stride(2) == 0 else x


def forward(inputs: Any, state: Tensor, offsets: Tensor | None, keep: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, last state and marks."""
    q, k, v, decay = laid_out(once(inputs[0]), once(inputs[1]), *inputs[2:])
    last = fill(state, 2, 3)
    last = last.clone() if last is state else last
    o, marks = torch.empty_like(v), last.new_empty(shapes(inputs, state, keep)[1])
    heads, value = last.shape[0] * last.shape[1], last.shape[3]
    lanes = lanes_for(value, q.dtype, heads)
    parts = parts_for(heads, value // lanes)
    run(heads * parts, q, k, v, decay, bounds_of(inputs[0], offsets), last, o, marks, scale, parts, lanes=lanes)
    return unpack(o, inputs[2]), last[..., : state.shape[2], : state.shape[3]].contiguous(), marks


def prepare(arguments: Any, outputs: Any, in_place: bool) -> Ready | None:
    """Return the call for one step of tensors that stay where they are."""
    inputs, state, offsets, (scale,), keep = arguments
    laid = lay(inputs, state, offsets, keep)
    if laid is None:
        return None
    (q, k, v, decay), calls = laid
    last = state if in_place else outputs[1]
    lanes = lanes_for(v.shape[2], q.dtype, q.shape[0] * q.shape[1])
    heads, bounds = last.shape[0] * last.shape[1], bounds_of(inputs[0], None)
    parts = parts_for(heads, last.shape[3] // lanes)
    o, marks = outputs[0].flatten(0, 1), last.new_empty(shapes(inputs, state, False)[1])
    calls += [] if in_place else [partial(last.copy_, state)]
    return chain([*calls, run.ready(heads * parts, q, k, v, decay, bounds, last, o, marks, scale, parts, lanes=lanes)])


def lay(inputs: Any, state: Tensor, offsets: Tensor | None, keep: bool) -> tuple[list[Tensor], list[Ready]] | None:
    """Return the inputs of one step as the kernels read them, and the calls that keep them so; None for other calls."""
    sizes = (inputs[0].shape[3], inputs[2].shape[3])
    if keep or offsets is not None or inputs[0].shape[1] != 1 or not whole(*sizes) or not state.is_contiguous():
        return None
    laid, calls = zip(*(steady(x) for x in inputs), strict=True)
    return [x.flatten(0, 1) for x in laid], [call for part in calls for call in part]


def backward(
    inputs: Any, state: Tensor, marks: Tensor, offsets: Tensor | None, do: Tensor, dlast: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Return the gradients of inputs and first state."""
    q, k, v, decay = laid_out(once(inputs[0]), once(inputs[1]), *inputs[2:])
    dstate = fill(dlast.mT.clone(memory_format=torch.contiguous_format), 2, 3)
    items, parts = dstate.shape[0] * dstate.shape[1], 1
    while items * parts < torch.get_num_threads() and v.shape[2] // parts % 8 == 0:
        parts *= 2
    dq, dk, ddecay = (x.new_empty(parts, x.shape[0], v.shape[1], x.shape[2]) for x in (q, k, decay))
    dv, lanes = torch.empty_like(v), lanes_for(q.shape[2], q.dtype)
    bounds = bounds_of(inputs[0], offsets)
    run_back(items * parts, q, k, v, decay, bounds, marks, pack(do), dstate, dq, dk, dv, ddecay, scale, lanes=lanes)
    dq, dk, ddecay = (x[0] if parts == 1 else x.sum(0) for x in (dq, dk, ddecay))
    grads = (unpack(dx, x) for dx, x in zip((dq, dk, dv, ddecay), inputs, strict=True))
    return *grads, dstate.mT[..., : state.shape[2], : state.shape[3]].contiguous()
