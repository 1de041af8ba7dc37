r"""Memories that take a step down a loss for each key and value they read, by one of three rules.

$$ A_t = \alpha_t A_{t-1} - \eta_t\, \ell'(W_{t-1} k_t - v_t)\, k_t^\top, \qquad o_t = W_t q_t $$

The rules are those of `penstock.nn.recurrence.miras`, which says what $\ell$ is and how $W$ comes from $A$. A state is
`(B, H, V, K)`; queries and keys are `(B, T, H, K)`, values and gates `(B, T, H, V)`.
"""

from collections.abc import Callable

from torch import Tensor

from penstock.core.backend import Backend, Operation
from penstock.ops.calls import Inputs, refuse_numba, run, traced
from penstock.ops.descent.reference import LOOPS
from penstock.ops.native import native
from penstock.ops.packing import whole
from penstock.ops.steps import MIRAS, serves
from penstock.ops.stepwise import stepwise

NAME = "descent"
RULES = tuple(LOOPS)
Rule = Callable[[Inputs, Tensor, int, int], tuple[Tensor, Tensor]]


def by_tokens(inputs: Inputs, state: Tensor, offsets: Tensor | None, rule: float) -> tuple[Tensor, Tensor]:
    """Return outputs `(B, T, H, V)` and the last state by a loop in which each token learns from the one before."""
    del offsets
    o, last = LOOPS[RULES[int(rule)]](*inputs, state, 1, 0)
    return o.unflatten(-1, inputs[2].shape[2:]), last


def flops(q: tuple[int, ...], _: tuple[int, ...], v: tuple[int, ...], *__: tuple[int, ...]) -> tuple[int, int]:
    """Return the operations of a forward and of a backward pass, besides what a rule does to its memory."""
    states = q[0] * q[1] * q[2] * q[3] * v[3]
    return 7 * states, 21 * states


def refuse(inputs: Inputs, state: Tensor, *rest: object) -> str | None:
    """Say why the kernel cannot serve a call: devices, dtypes, and values that are no whole vectors."""
    if not whole(state.shape[2]):
        return f"its values are whole vectors, these have {state.shape[2]} channels"
    return refuse_numba(inputs, state, *rest)


def pays(inputs: Inputs, *_: object) -> bool:
    """Tell whether there is more than a step to take; a program is made for any number of them."""
    return inputs[0].shape[1] > 1 or traced()


OPERATION = Operation(
    NAME,
    Backend("numba", native(NAME, by_tokens, flops, like=2), refuse=refuse, pays=pays),
    Backend("reference", by_tokens, refuse=lambda *_: None),
    strict=False,
)


def descent(name: str) -> Rule:
    """Return a rule: `call(series, state, chunk, done) -> outputs (B, T, H * V), last state`.

    The series are queries, keys, values, gates that keep and write, and for Yaad the limit. A chunk is how many tokens share
    a slope, and `done` how many of one there are already; with chunks of more than one token the state is `(B, 2, H, V, K)`,
    now and at the chunk's start.
    """
    steps, step, rule = stepwise(name, LOOPS[name], _width), MIRAS[name], float(RULES.index(name))

    def call(series: Inputs, state: Tensor, chunk: int, done: int) -> tuple[Tensor, Tensor]:
        if chunk > 1 or series[0].device.type != "cpu":
            return steps(series, state, chunk, done)
        if series[0].shape[1] == 1 and serves(state, *series) and whole(series[0].shape[3]):
            o, state = step(series, state)
        elif refuse(series, state) or not pays(series):
            return steps(series, state, chunk, done)
        else:
            o, state = run(OPERATION, None, series, state, None, rule)
        return o.flatten(2), state

    return call


def _width(_: Tensor, __: Tensor, v: Tensor, *___: Tensor) -> int:
    return v.shape[2] * v.shape[3]


MONETA, YAAD, MEMORA = (descent(name) for name in RULES)
