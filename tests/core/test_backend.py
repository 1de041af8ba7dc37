"""The choice of a backend: by the call, by `use`, or by what pays; and the reasons that are given."""

import pytest

from penstock.core import Backend, BackendError, Operation, use


def operation():
    return Operation(
        "double",
        Backend("numba", lambda x: ("numba", x), lambda x: "x is negative" if x < 0 else None, lambda x: x >= 10),
        Backend("torch", lambda x: ("torch", x), lambda x: None, lambda x: x >= 5),
        Backend("reference", lambda x: ("reference", x), lambda x: None),
    )


def run(x, backend=None):
    return operation().pick(backend, x)(x)[0]


def test_the_first_that_serves_and_pays_is_chosen():
    assert [run(x) for x in (20, 10, 7, 3, -20)] == ["numba", "numba", "torch", "reference", "reference"]


def test_the_call_asks_before_use_and_use_before_the_choice():
    with use("torch"):
        assert run(20) == "torch"
        assert run(20, "reference") == "reference"
        with use("numba"):
            assert run(1) == "numba"
        assert run(20) == "torch"
    assert run(20) == "numba"


def test_use_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), use("reference"):
        _ = 1 / 0
    assert run(20) == "numba"


@pytest.mark.parametrize(
    ("backend", "x", "message"),
    [
        ("numba", -1, "double: backend 'numba' cannot serve this call: x is negative"),
        ("triton", 1, "double: there is no 'triton' backend for this operation; it has numba, torch, reference"),
        ("nunba", 1, "double: unknown backend 'nunba'; did you mean 'numba'?"),
    ],
)
def test_a_backend_that_cannot_serve_says_why(backend, x, message):
    with pytest.raises(BackendError) as told:
        run(x, backend)
    assert str(told.value) == message


def test_use_refuses_an_unknown_name():
    with pytest.raises(BackendError, match="unknown backend 'cuda'"), use("cuda"):
        pass


def test_explain_gives_every_reason():
    reasons = {verdict.backend: (verdict.runs, verdict.reason) for verdict in operation().explain(7)}
    assert reasons == {
        "numba": (False, "can, but does not pay at this size"),
        "torch": (True, "runs"),
        "reference": (False, "can, but a faster one comes first"),
    }
    reasons = {verdict.backend: verdict.reason for verdict in operation().explain(-7, backend="torch")}
    assert reasons == {"numba": "x is negative", "torch": "runs", "reference": "'torch' was asked for"}


@pytest.mark.parametrize("x", [20, 7, 3, -20])
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_explain_names_the_one_that_runs(x, backend):
    (chosen,) = (verdict.backend for verdict in operation().explain(x, backend=backend) if verdict.runs)
    assert chosen == run(x, backend)
