"""The rules on a CPU, a head of a sequence at a time, its memory in the nearest caches.

Memories are transposed, `(K, V)`, so that a vector is a key's part in several values. At the beginning of every span they
are marked down; the backward pass goes through the span again and keeps what it needs of each step. What a memory is known
by is itself, or for Memora the numbers whose logarithms it holds.
"""
# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917 - types are numba's, and calls are inlined

import math
from typing import Any

import torch
from numba import njit
from torch import Tensor

from penstock.core.threads import Kernel
from penstock.ops.descent.reference import SMALL
from penstock.ops.packing import WIDTH
from penstock.ops.vectors import arguments, exp, larger, load, room, store, total, work, zeros

SPAN = 16
MONETA, YAAD, MEMORA = 0, 1, 2
ARGUMENTS = 6


@njit
def ask(known, x, factor, said):
    """Fill `said` with what a memory says of `x`, times a factor."""
    keys, values = known.shape
    for j in range(0, values, WIDTH):
        a, b = zeros(known, WIDTH), zeros(known, WIDTH)
        for i in range(0, keys - 1, 2):
            a = a + x[i] * load(known, (i, j), WIDTH)
            b = b + x[i + 1] * load(known, (i + 1, j), WIDTH)
        if keys % 2:
            a = a + x[keys - 1] * load(known, (keys - 1, j), WIDTH)
        store(said, (j,), factor * (a + b))


@njit
def norm_of(memory):
    """Return the square of the 4-norm."""
    size = zeros(memory, WIDTH)
    for i in range(memory.shape[0]):
        for j in range(0, memory.shape[1], WIDTH):
            x = load(memory, (i, j), WIDTH)
            size = size + (x * x) * (x * x)
    return math.sqrt(total(size) + SMALL)


@njit
def normalize(memory, known, spare):
    """Make what belongs to a value logarithms of numbers that sum to 1, and fill `known` with the numbers."""
    keys, values = memory.shape
    for j in range(0, values, WIDTH):
        top, size = load(memory, (0, j), WIDTH), zeros(memory, WIDTH)
        for i in range(1, keys):
            top = larger(top, load(memory, (i, j), WIDTH))
        for i in range(keys):
            x = exp(load(memory, (i, j), WIDTH) - top)
            size = size + x
            store(known, (i, j), x)
        store(spare, (0, 0), size)
        for lane in range(WIDTH):
            spare[1, lane] = math.log(spare[0, lane])
            spare[0, lane] = 1 / spare[0, lane]
        scale, low = load(spare, (0, 0), WIDTH), top + load(spare, (1, 0), WIDTH)
        for i in range(keys):
            store(memory, (i, j), load(memory, (i, j), WIDTH) - low)
            store(known, (i, j), scale * load(known, (i, j), WIDTH))


@njit
def expose(memory, known):
    """Fill `known` with the numbers whose logarithms the memory holds."""
    for i in range(memory.shape[0]):
        for j in range(0, memory.shape[1], WIDTH):
            store(known, (i, j), exp(load(memory, (i, j), WIDTH)))


@njit
def length_of(errors):
    """Return the length of the errors."""
    size = SMALL
    for v in range(errors.shape[0]):
        size += errors[v] * errors[v]
    return math.sqrt(size)


@njit
def slopes(rule, errors, write, limit, push):
    """Fill `push` with what is added to the memory for each key."""
    if rule == MONETA:
        for v in range(errors.shape[0]):
            push[v] = -3 * write[v] * errors[v] * math.sqrt(errors[v] * errors[v] + SMALL)
    elif rule == YAAD:
        length = length_of(errors)
        for v in range(errors.shape[0]):
            push[v] = -write[v] * errors[v] * min(limit[v] / length, 1.0)
    else:
        for v in range(errors.shape[0]):
            push[v] = -write[v] * errors[v]


@njit
def slopes_back(rule, dpush, errors, write, limit, dwrite, dlimit, derrors):
    """Fill the gradients of errors and gates from those of `push`."""
    if rule == MONETA:
        for v in range(errors.shape[0]):
            e = errors[v]
            size = math.sqrt(e * e + SMALL)
            dwrite[v] = -3 * dpush[v] * e * size
            derrors[v] = -3 * dpush[v] * write[v] * (size + e * e / size)
    elif rule == YAAD:
        length, dlength = length_of(errors), 0.0
        for v in range(errors.shape[0]):
            share, slope = min(limit[v] / length, 1.0), -dpush[v] * write[v]
            dwrite[v] = -dpush[v] * errors[v] * share
            derrors[v], dlimit[v] = slope * share, 0.0
            if limit[v] <= length:
                dlimit[v] = slope * errors[v] / length
                dlength -= dlimit[v] * limit[v] / length
        for v in range(errors.shape[0]):
            derrors[v] += dlength * errors[v] / length
    else:
        for v in range(errors.shape[0]):
            dwrite[v], derrors[v] = -dpush[v] * errors[v], -dpush[v] * write[v]


@njit
def step(rule, before, after, known, next_known, norm, k, v, keep, write, limit, errors, push, spare):
    """Fill `after` and `next_known`, the errors, and what was added for each key; return the norm of `after`."""
    ask(known, k, 1 / norm, errors)
    for j in range(0, errors.shape[0], WIDTH):
        store(errors, (j,), load(errors, (j,), WIDTH) - load(v, (j,), WIDTH))
    slopes(rule, errors, write, limit, push)
    for j in range(0, errors.shape[0], WIDTH):
        gate, pushed = load(keep, (j,), WIDTH), load(push, (j,), WIDTH)
        for i in range(before.shape[0]):
            store(after, (i, j), gate * load(before, (i, j), WIDTH) + k[i] * pushed)
    if rule == MEMORA:
        normalize(after, next_known, spare)
    return norm_of(after) if rule == MONETA else 1.0


def sweep(call):
    """Fill `o`, turn `state` from the first into the last, and keep marks where there is room for them."""
    q, k, v, keep, write, limit, state, o, marks, time, rule = arguments(call)
    heads, keys, values = state.shape[1:]
    rows, spare = room(q, (2, values)), room(q, (2, WIDTH))
    own = room(q, (keys, values))
    for item in work(call):
        n, h = item // heads, item % heads
        memory, norm = state[n, h], 1.0
        known = own if rule == MEMORA else memory
        if rule == MEMORA:
            expose(memory, known)
        if rule == MONETA:
            norm = norm_of(memory)
        for t in range(time):
            if marks.shape[0] > 0 and t % SPAN == 0:
                marks[n, t // SPAN, h] = memory
            s = n * time + t
            norm = step(
                rule, memory, memory, known, known, norm,
                k[s, h], v[s, h], keep[s, h], write[s, h], limit[s, h], rows[0], rows[1], spare,
            )  # fmt: skip
            ask(known, q[s, h], 1 / norm, o[s, h])


@njit
def read_back(rule, after, known, norm, q, do, dq, grad):
    """Fill the gradient of a query, and add what is read to that of the memory."""
    read = 0.0
    for i in range(after.shape[0]):
        y = zeros(after, WIDTH)
        for j in range(0, after.shape[1], WIDTH):
            y = y + load(known, (i, j), WIDTH) * load(do, (j,), WIDTH)
        said = total(y)
        dq[i] = said / norm
        read += q[i] * said
    cubed = -2 * read / (norm * norm * norm)
    for j in range(0, after.shape[1], WIDTH):
        d, size = (1 / norm) * load(do, (j,), WIDTH), zeros(after, WIDTH)
        for i in range(after.shape[0]):
            g = load(grad, (i, j), WIDTH)
            if rule == MONETA:
                x = load(after, (i, j), WIDTH)
                g = g + q[i] * d + cubed * (x * x * x)
            elif rule == YAAD:
                g = g + q[i] * d
            else:
                g = g + q[i] * (d * load(known, (i, j), WIDTH))
                size = size + g
            store(grad, (i, j), g)
        if rule == MEMORA:
            for i in range(after.shape[0]):
                store(grad, (i, j), load(grad, (i, j), WIDTH) - size * load(known, (i, j), WIDTH))


@njit
def keep_back(before, k, grad, dkeep, dpush):
    """Fill the gradients of the gate that keeps and of what was added."""
    for j in range(0, before.shape[1], WIDTH):
        kept, pushed = zeros(before, WIDTH), zeros(before, WIDTH)
        for i in range(before.shape[0]):
            g = load(grad, (i, j), WIDTH)
            kept = kept + g * load(before, (i, j), WIDTH)
            pushed = pushed + k[i] * g
        store(dkeep, (j,), kept)
        store(dpush, (j,), pushed)


@njit
def error_back(rule, before, known, norm, k, v, keep, errors, push, derrors, dk, dv, grad):
    """Fill the gradients of key and value, and turn that of the memory after a step into that of the one before it."""
    through = 0.0
    for i in range(errors.shape[0]):
        through += derrors[i] * (errors[i] + v[i])
        dv[i] = -derrors[i]
    cubed = -2 * through / (norm * norm)
    for i in range(before.shape[0]):
        y = zeros(before, WIDTH)
        for j in range(0, before.shape[1], WIDTH):
            g, d = load(grad, (i, j), WIDTH), (1 / norm) * load(derrors, (j,), WIDTH)
            x = load(known, (i, j), WIDTH)
            y = y + g * load(push, (j,), WIDTH) + x * d
            g = load(keep, (j,), WIDTH) * g
            if rule == MONETA:
                g = g + k[i] * d + cubed * (x * x * x)
            elif rule == YAAD:
                g = g + k[i] * d
            else:
                g = g + k[i] * (d * x)
            store(grad, (i, j), g)
        dk[i] = total(y)


def sweep_back(call):
    """Fill the gradients; `grad`, transposed as memories are, turns from that of the last one into that of the first."""
    (q, k, v, keep, write, limit, marks, do, grad, dq, dk, dv, dkeep, dwrite, dlimit, time, rule) = arguments(call)
    heads, keys, values = grad.shape[1:]
    past, own = room(q, (SPAN + 1, keys, values)), room(q, (SPAN + 1, keys, values))
    known = own if rule == MEMORA else past
    errors, push, rows = room(q, (SPAN, values)), room(q, (SPAN, values)), room(q, (2, values))
    norms, spare = room(q, (SPAN + 1,)), room(q, (2, WIDTH))
    norms[:] = 1.0
    for item in work(call):
        n, h = item // heads, item % heads
        for span in range((time + SPAN - 1) // SPAN - 1, -1, -1):
            start = n * time + span * SPAN
            steps = min(SPAN, time - span * SPAN)
            past[0] = marks[n, span, h]
            if rule == MEMORA:
                expose(past[0], known[0])
            if rule == MONETA:
                norms[0] = norm_of(past[0])
            for t in range(steps):
                s = start + t
                norms[t + 1] = step(
                    rule, past[t], past[t + 1], known[t], known[t + 1], norms[t],
                    k[s, h], v[s, h], keep[s, h], write[s, h], limit[s, h], errors[t], push[t], spare,
                )  # fmt: skip
            for t in range(steps - 1, -1, -1):
                s = start + t
                read_back(rule, past[t + 1], known[t + 1], norms[t + 1], q[s, h], do[s, h], dq[s, h], grad[n, h])
                keep_back(past[t], k[s, h], grad[n, h], dkeep[s, h], rows[0])
                slopes_back(rule, rows[0], errors[t], write[s, h], limit[s, h], dwrite[s, h], dlimit[s, h], rows[1])
                error_back(
                    rule, past[t], known[t], norms[t], k[s, h], v[s, h], keep[s, h],
                    errors[t], push[t], rows[1], dk[s, h], dv[s, h], grad[n, h],
                )  # fmt: skip


run, run_back = Kernel(sweep), Kernel(sweep_back)


def shapes(inputs: Any, state: Tensor, keep: bool) -> tuple[Any, Any]:
    """Return the shapes of output and marks."""
    spans = -(-inputs[0].shape[1] // SPAN) if keep else 0
    return inputs[2].shape, (state.shape[0] if keep else 0, spans, state.shape[1], state.shape[3], state.shape[2])


def laid_out(inputs: Any) -> list[Tensor]:
    """Return the inputs as the kernels read them; a rule without a limit is given another gate in its place."""
    rows = [x.flatten(0, 1).contiguous() for x in inputs]
    return [*rows, rows[-1]] if len(rows) < ARGUMENTS else rows


def forward(inputs: Any, state: Tensor, offsets: Tensor | None, keep: bool, rule: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, last state and marks."""
    del offsets
    rows, last = laid_out(inputs), state.mT.clone(memory_format=torch.contiguous_format)
    o, marks = torch.empty_like(rows[2]), last.new_empty(shapes(inputs, state, keep)[1])
    run(last.shape[0] * last.shape[1], *rows, last, o, marks, inputs[0].shape[1], int(rule))
    return o.view(inputs[2].shape), last.mT.contiguous(), marks


def backward(
    inputs: Any, state: Tensor, marks: Tensor, offsets: Tensor | None, do: Tensor, dlast: Tensor, rule: float
) -> tuple[Tensor, ...]:
    """Return the gradients of inputs and first state."""
    del offsets, state
    rows, grad = laid_out(inputs), dlast.mT.clone(memory_format=torch.contiguous_format)
    grads = [torch.empty_like(x) for x in rows[: len(inputs)]]
    filled = grads if len(grads) == len(rows) else [*grads, grads[-1]]
    items = grad.shape[0] * grad.shape[1]
    run_back(items, *rows, marks, do.flatten(0, 1).contiguous(), grad, *filled, inputs[0].shape[1], int(rule))
    return *(dx.view(x.shape) for dx, x in zip(grads, inputs, strict=True)), grad.mT.contiguous()
