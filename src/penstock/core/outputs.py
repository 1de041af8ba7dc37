"""What contracts return when it is more than a tensor. All are named tuples, so compilers and exporters see through them."""

from typing import NamedTuple

from torch import Tensor


class Routing(NamedTuple):
    """Where tokens go: `weights` and `indices` are `(N, k)`, `logits` is `(N, experts)`, `losses` maps a name to a scalar.

    An index of -1 marks a route that was dropped; its weight is 0.
    """

    weights: Tensor
    indices: Tensor
    logits: Tensor
    losses: dict[str, Tensor]


class Halting(NamedTuple):
    """What a skip decided: `openness` is broadcastable to the batch and time of the input, `cost` the share computed."""

    openness: Tensor
    cost: Tensor
    losses: dict[str, Tensor]


class Selection(NamedTuple):
    """The tokens that were kept: `tokens` is `(B, S, D)`, `indices` is `(B, S)`, `length` the T they came from."""

    tokens: Tensor
    indices: Tensor
    length: int

    def put_back(self, tokens: Tensor, into: Tensor) -> Tensor:
        """Return `into` `(B, T, D)` with `tokens` `(B, S, D)` in their old places."""
        places = self.indices.unsqueeze(-1).expand_as(tokens)
        return into.scatter(1, places, tokens.to(into.dtype))


class Codes(NamedTuple):
    """Quantized values `(..., D)`, the index of each code `(...)`, or of several with axes more, and losses by name."""

    values: Tensor
    indices: Tensor
    losses: dict[str, Tensor]
