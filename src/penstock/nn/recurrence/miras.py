r"""Memories that learn while they read: a matrix for each head takes a step down a loss of each key and value.

$$ o_t = W_t q_t, \qquad e_t = W_{t-1} k_t - v_t $$
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import Gate, SequenceMixer, Size, check_divides, mechanism
from penstock.nn.recurrence.output import GatedHeadNorm
from penstock.nn.recurrence.parts import ConvolvedHeads
from penstock.ops.attention import default_heads
from penstock.ops.descent import MEMORA, MONETA, YAAD
from penstock.ops.linear import Linear

State = tuple[Tensor, ...]
KEPT = 6.0


class AbstractMiras(ConvolvedHeads, SequenceMixer):
    r"""What the three memories share: `(B, T, dim) -> (B, T, dim)`.

    Queries, keys and values pass a short convolution and SiLU; then queries and keys are scaled to length 1. Each row of a
    memory is kept by a gate and written by another, both read from the token through a bottleneck. The memory begins as it
    was learned. Heads are normalized and gated before the map to the output.

    The keep gate starts at 0.998. The sources do not say where; from 0.5 Moneta's memory, which is divided by a power of a
    shrinking norm, grows until gradients overflow.

    Args:
        dim: width of the stream.
        heads: number of heads, which must divide `dim`; by default as many as divide `dim` and are 32 wide, or 64 wide from
            `dim=512` on.
        rank: width of the bottleneck before the gates.
        chunk: tokens that share a slope. With 1 each token learns from the memory that the token before it left; with more,
            errors are those of the memory at the chunk's start, which is faster and another layer.
        width: taps of the convolutions.
        device: where the parameters live.
        dtype: their type.
    """

    run: ClassVar[Callable[..., tuple[Tensor, Tensor]]]
    gate_names: ClassVar[tuple[str, ...]] = ("keep", "write")

    def __init__(
        self,
        dim: Size,
        heads: Size | None = None,
        *,
        rank: Size = 32,
        width: Size = 4,
        chunk: Size = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.chunk = dim, heads or default_heads(dim), chunk
        check_divides(self.name, heads=self.heads, dim=dim)
        place, size = {"device": device, "dtype": dtype}, dim // self.heads
        self.add_maps(dim, dim, dim, width, place)
        wide = len(self.gate_names) * dim
        raised = Linear(rank, wide, **place)
        nn.init.constant_(raised.bias[:dim], KEPT)
        self.to_gates = nn.Sequential(Linear(dim, rank, bias=False, **place), raised)
        self.memory = nn.Parameter(torch.randn(self.heads, size, size, **place) / math.sqrt(size))
        self.output = GatedHeadNorm(dim, self.heads, size, **place)
        for name in self.gate_names:
            self.add_module(name, Gate())

    def start(self, memory: Tensor) -> Tensor:
        """Return the state of the memory that was learned."""
        return memory

    def openness(self, name: str, logits: Tensor) -> Tensor:
        """Return a gate of its logits."""
        del name
        return torch.sigmoid(logits)

    def init_state(self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        """Return the last inputs of the three convolutions and the state of the memory, in float32 at least.

        Where `chunk` is more than 1 the state is that of now and that at the chunk's start, `(batch, 2, heads, ...)`, and a
        last tensor, without numbers, is as long as the chunk has come: `(batch, tokens, 0)`.
        """
        inputs = self.no_inputs(batch, device, dtype)
        memory = self.start(self.memory.to(inputs[0])).expand(batch, -1, -1, -1)
        if self.chunk == 1:
            return *inputs, memory
        return *inputs, torch.stack((memory, memory), 1), memory.new_empty(batch, 0, 0)

    def extend(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return the outputs for `x` `(batch, time, dim)` after `state`, and the state after them."""
        self.check_shape(x, "batch time dim")
        first, second, third, memory, *done = state or self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        (q, k, v), inputs = self.convolved(x, (first, second, third), memory.dtype)
        logits = self.to_gates(x).to(memory.dtype).chunk(len(self.gate_names), -1)
        gates = [
            self.get_submodule(name)(self.openness(name, part)).unflatten(-1, (self.heads, -1))
            for name, part in zip(self.gate_names, logits, strict=True)
        ]
        come = done[0].shape[1] if done else 0
        o, memory = type(self).run((q, k, v, *gates), memory, self.chunk, come)
        done = [memory.new_empty(x.shape[0], (come + x.shape[1]) % self.chunk, 0)] if done else []
        return self.output(o.unflatten(-1, (self.heads, -1)), x), (*inputs, memory, *done)


@mechanism(
    "moneta",
    paper="behrouz2025miras",
    at="sec. 5.3, Moneta",
    gates={"keep": "(0, 1)", "write": "(0, 1)", "output.gate": "[-0.28, inf)"},
    traits={"causal", "steps", "constant-state", "linear-time"},
    example={"dim": 8, "heads": 2, "rank": 2},
)
class Moneta(AbstractMiras):
    r"""A memory that learns by the cube of its errors and is held back by a norm.

    $$ A_t = \operatorname{Diag}(\alpha_t) A_{t-1} - 3\, (\eta_t \odot e_t \odot |e_t|)\, k_t^\top, \qquad
       W_t = A_t / \lVert A_t \rVert_4^2, \qquad o_t = W_t q_t $$

    The error is $e_t = W_{t-1} k_t - v_t$, its size is $|e| = \sqrt{e^2 + 10^{-6}}$.
    """

    run = staticmethod(MONETA)


@mechanism(
    "yaad",
    paper="behrouz2025miras",
    at="sec. 5.3, Yaad",
    gates={"keep": "(0, 1)", "write": "(0, 1)", "limit": "(0, inf); 0 writes nothing", "output.gate": "[-0.28, inf)"},
    traits={"causal", "steps", "constant-state", "linear-time"},
    example={"dim": 8, "heads": 2, "rank": 2},
)
class Yaad(AbstractMiras):
    r"""A memory that learns by the Huber loss, so that a value far off cannot overturn it.

    $$ W_t = \operatorname{Diag}(\alpha_t) W_{t-1}
       - \Big( \eta_t \odot \min\big(1, \delta_t / \lVert e_t \rVert\big) \odot e_t \Big)\, k_t^\top, \qquad o_t = W_t q_t $$

    The error is $e_t = W_{t-1} k_t - v_t$.
    """

    run = staticmethod(YAAD)
    gate_names = ("keep", "write", "limit")

    def openness(self, name: str, logits: Tensor) -> Tensor:
        """Return a gate of its logits."""
        return F.softplus(logits) if name == "limit" else torch.sigmoid(logits)


@mechanism(
    "memora",
    paper="behrouz2025miras",
    at="sec. 5.3, Memora",
    gates={"keep": "(0, 1)", "write": "(0, 1)", "output.gate": "[-0.28, inf)"},
    traits={"causal", "steps", "constant-state", "linear-time"},
    example={"dim": 8, "heads": 2, "rank": 2},
)
class Memora(AbstractMiras):
    r"""A memory whose rows are positive and sum to 1, which learns and forgets in logarithms.

    $$ W_t = \operatorname{softmax}\big( \operatorname{Diag}(\alpha_t) \log W_{t-1} - (\eta_t \odot e_t)\, k_t^\top \big),
       \qquad o_t = W_t q_t $$

    The error is $e_t = W_{t-1} k_t - v_t$, the softmax is over each row.
    """

    run = staticmethod(MEMORA)

    def start(self, memory: Tensor) -> Tensor:
        """Return the logarithms of the rows that were learned."""
        return memory.log_softmax(-1)
