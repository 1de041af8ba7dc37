"""Kernels for a step of one token: equal to their definition, as operators and prepared, in place or not."""

import math

import pytest
import torch

from penstock.core import use
from penstock.nn.recurrence import gss
from penstock.ops import descent
from penstock.ops.prepared import PREPARED, recording
from penstock.ops.steps import LAGS, serves

CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}


def memory(batch, dtype, gates):
    q, k, v, *rest = (torch.randn(batch, 1, 3, size, dtype=dtype) for size in (32, 32, 21, *[21] * gates))
    return (q, k / k.norm(dim=-1, keepdim=True), v, *(x.sigmoid() for x in rest)), torch.randn(batch, 3, 21, 32, dtype=dtype)


def miras(name, gates):
    def make(batch, dtype):
        inputs, state = memory(batch, dtype, gates)
        return name, inputs, state.log_softmax(-1) if name == "memora" else state

    def expected(inputs, state):
        loop = getattr(descent, name.upper())
        o, state = loop(inputs, state, 1, 0)
        return o.unflatten(-1, (3, -1)), state

    return make, expected


def diagonal(batch, dtype):
    kind = dtype.to_complex()
    decay, read = torch.randn(24, dtype=kind) / 3, torch.randn(11, 24, dtype=kind)
    inputs = torch.randn(batch, 1, 11, dtype=dtype), torch.view_as_real(decay), torch.view_as_real(read)
    return "diagonal", inputs, torch.randn(batch, 11, 24, dtype=kind)


def recurrence(inputs, state):
    u, decay, read = inputs
    return gss.diagonal_step(u, state, torch.view_as_complex(decay), torch.view_as_complex(read).conj())


def ring(place):
    def make(batch, dtype):
        q, k, v = (torch.randn(batch, 1, 2, 16, dtype=dtype) for _ in range(3))
        places = torch.arange(batch) + place
        state = torch.randn(batch, 2, 2, 7, 16, dtype=dtype)
        return "window", (q, k, v, places), state

    return make


def attention(inputs, state):
    q, k, v, places = inputs
    state, y = state.clone(), torch.empty_like(q)
    for n, place in enumerate(places.tolist()):
        state[n, 0, :, place % 7], state[n, 1, :, place % 7] = k[n, 0], v[n, 0]
        keys, values = state[n, :, :, : place + 1]
        weights = (q[n, 0].unsqueeze(1) @ keys.mT / math.sqrt(16)).softmax(-1)
        y[n, 0] = (weights @ values).squeeze(1)
    return y, state


CASES = {
    "moneta": miras("moneta", 2),
    "yaad": miras("yaad", 3),
    "memora": miras("memora", 2),
    "diagonal": (diagonal, recurrence),
    "first": (ring(0), attention),
    "filling": (ring(3), attention),
    "round": (ring(100), attention),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_what_its_definition_says(case, batch, in_place, dtype):
    torch.manual_seed(0)
    make, define = CASES[case]
    name, inputs, state = make(batch, dtype)
    operator = getattr(torch.ops.penstock, f"{name}_step").default
    before = state.clone()
    output, last = operator(list(inputs), state, [])
    assert torch.equal(state, before)
    torch.testing.assert_close((output, last), define(inputs, state), **CLOSE[dtype])
    ready = PREPARED[operator]((list(inputs), state, []), [output, last], in_place)
    for _ in range(3):
        inputs[0].normal_()
        expected = define(inputs, state)
        ready()
        torch.testing.assert_close((output, state if in_place else last), expected, **CLOSE[dtype])
    assert PREPARED[operator]((list(inputs), state.mT, []), [output, last], in_place) is None


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_an_operator_that_compilers_know(case):
    torch.manual_seed(0)
    name, inputs, state = CASES[case][0](2, torch.float64)
    operator = getattr(torch.ops.penstock, f"{name}_step").default
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, (list(inputs), state, []), test_utils=tests)


def test_kernels_serve_what_is_recorded_and_of_one_dtype():
    x, state = torch.randn(1, 1, 16), torch.randn(1, 16, 16)
    assert not serves(state, x)
    with recording():
        assert serves(state, x)
        assert serves(state.to(torch.complex64), x)
        assert not serves(state, x.double())
        assert not serves(state.bfloat16(), x.bfloat16())
        with use("torch"):
            assert not serves(state, x)


@pytest.mark.parametrize(("window", "biased"), [(8, True), (11, False), (16, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_window_that_slides_is_read_in_turns(window, biased, dtype):
    torch.manual_seed(0)
    stream = torch.randn(1, 60, 48, dtype=dtype)
    weight = torch.nn.Parameter(torch.randn(48, 48, window, dtype=dtype) / 7)
    bias = torch.randn(48, dtype=dtype) if biased else None
    seen, y = stream[:, :window].clone(), torch.empty(1, 48, dtype=dtype)
    ready = PREPARED[LAGS]((seen, weight, bias), [y], False)
    places = [*range(25), 3, 4, 5, 6, 7, 8, 30, 30, 31, *range(10, 20)]
    for place in places:
        seen.copy_(stream[:, place : place + window])
        ready()
        expected = torch.nn.functional.conv1d(seen.mT, weight, bias).squeeze(2)
        torch.testing.assert_close(y, expected, **CLOSE[dtype])
    assert PREPARED[LAGS]((seen, weight.data, bias), [y], False) is None
    assert PREPARED[LAGS]((seen.expand(2, -1, -1), weight, bias), [y], False) is None
    torch.testing.assert_close(LAGS(seen, weight, bias), expected, **CLOSE[dtype])
    torch.library.opcheck(LAGS, (seen, weight, bias), test_utils=("test_schema", "test_faketensor"))
