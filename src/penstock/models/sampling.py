"""From logits to a token."""

import torch
from torch import Tensor

from penstock.core import ConfigError


def choose(
    logits: Tensor, temperature: float = 0.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return a token for each row of `logits`: `(B, vocabulary) -> (B)`.

    Args:
        logits: unnormalized log-probabilities.
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_k: draw among this many likeliest tokens; all where None.
        generator: source of the draws.
    """
    if temperature < 0:
        raise ConfigError(f"generate: temperature must be 0 or more, got {temperature}")
    if top_k is not None and not 1 <= top_k <= logits.shape[-1]:
        raise ConfigError(f"generate: top_k must be from 1 to the vocabulary of {logits.shape[-1]}, got {top_k}")
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator).squeeze(1)
