"""Models that skip: blocks computed for some tokens only, and the budget of a whole model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from penstock.core import ChannelMixer, ConfigError, Halting, SequenceMixer, Skip, State
from penstock.core.choice import build_choice, promises
from penstock.gates import Budget
from penstock.models.block import Block, asked
from penstock.models.stepping import StepPart, Taken


class MixerPart:
    """What the first half of a block adds to the stream, as a `Skip` is given it."""

    def __init__(self, block: Block, tokens: Tensor | None) -> None:
        self.block, self.tokens = block, tokens

    def read(self, x: Tensor) -> Tensor:
        """Return what the mixer is given of the stream."""
        return self.block.mixer_norm(x)

    def of(self, rows: Tensor) -> "MixerPart":
        """Return the part for some of the sequences only."""
        return MixerPart(self.block, None if self.tokens is None else self.tokens[rows])

    def __call__(self, x: Tensor) -> Tensor:
        """Return what is added to whole sequences `x` `(B, T, dim)`."""
        return self.block.dropout(self.block.mixer(self.read(x), **asked(self.block.mixer, self.tokens)))

    def at(self, x: Tensor, places: Tensor, among: Tensor | None) -> Tensor:
        """Return what is added to tokens at their `places`, of what was read of them; they see `among`, or each other."""
        if self.block.mixer.reads_tokens and among is None:
            return self.block.dropout(self.block.mixer(x, tokens_at(self.tokens, places)))
        return self.block.dropout(self.block.mixer.forward_at(x, places, among))


class ChannelPart:
    """What the second half of a block adds to the stream, at each position alone."""

    pointwise = True

    def __init__(self, block: Block, tokens: Tensor | None) -> None:
        self.block, self.tokens = block, tokens

    def read(self, x: Tensor) -> Tensor:
        """Return what the channel mixer is given of the stream."""
        return cast("nn.Module", self.block.channel_norm)(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what is added to the positions `x` `(B, T, dim)`."""
        return self.mixed(self.read(x), self.tokens)

    def at(self, x: Tensor, places: Tensor, among: Tensor | None) -> Tensor:  # noqa: ARG002 - each position is alone
        """Return what is added to tokens at their `places`, of each sequence or of all as one, of what was read of them."""
        tokens = self.tokens if cast("ChannelMixer", self.block.channel).reads_tokens else None
        if tokens is not None and len(x) != len(tokens):
            tokens = tokens.reshape(1, -1)
        return self.mixed(x, tokens_at(tokens, places))

    def mixed(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """Return what is added to positions, of what was read of them."""
        channel = cast("ChannelMixer", self.block.channel)
        return self.block.dropout(channel(x, **asked(channel, tokens)))


class WholePart:
    """What a whole block adds to the stream."""

    def __init__(self, block: Block, tokens: Tensor | None) -> None:
        self.block, self.tokens = block, tokens
        self.mixer = MixerPart(block, tokens)
        self.channel = None if block.channel is None else ChannelPart(block, tokens)

    def of(self, rows: Tensor) -> "WholePart":
        """Return the part for some of the sequences only."""
        return WholePart(self.block, None if self.tokens is None else self.tokens[rows])

    def read(self, x: Tensor) -> Tensor:
        """Return what the block is given: the stream as it is."""
        return x

    def __call__(self, x: Tensor) -> Tensor:
        """Return what is added to whole sequences `x` `(B, T, dim)`."""
        mixed = self.mixer(x)
        return mixed if self.channel is None else mixed + self.channel(x + mixed)

    def at(self, x: Tensor, places: Tensor, among: Tensor | None) -> Tensor:
        """Return what is added to the tokens `x` `(B, S, dim)` at their `places`; they see `among`, or only each other."""
        if among is None:
            mixed = self.mixer.at(self.mixer.read(x), places, None)
        else:
            seen = self.mixer.read(among)
            rows = places + among.shape[1] * torch.arange(len(among), device=among.device).unsqueeze(1)
            mixed = self.mixer.at(seen.flatten(0, 1).index_select(0, rows.flatten()).view_as(x), places, seen)
        return mixed if self.channel is None else mixed + self.channel.at(self.channel.read(x + mixed), places, among)


def tokens_at(tokens: Tensor | None, places: Tensor) -> Tensor | None:
    """Return the numbers of the tokens at `places` `(B, S)`."""
    return None if tokens is None else tokens.gather(1, places)


class SkippedBlock(Block):
    """A block that is computed where a `Skip` lets it: one `Skip` for the whole, or one for each of its branches."""

    def __init__(
        self,
        dim: int,
        mixer: SequenceMixer,
        channel: ChannelMixer | None,
        dropout: float,
        place: Mapping[str, Any],
        skips: Sequence[Skip],
    ) -> None:
        super().__init__(dim, mixer, channel, dropout, place)
        self.skips = nn.ModuleList(skips)

    def parts(self, tokens: Tensor | None) -> list[Any]:
        """Return what each skip is given to skip."""
        if not cast("Skip", self.skips[0]).by_branch:
            return [WholePart(self, tokens)]
        return [MixerPart(self, tokens), *([] if self.channel is None else [ChannelPart(self, tokens)])]

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the block's output for whole sequences `x` `(B, T, dim)`, made of `tokens` `(B, T)`."""
        for skip, part in zip(self.skips, self.parts(tokens), strict=True):
            x = skip(x, part)[0]
        return x

    def extend(self, x: Tensor, state: State | None, tokens: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the block's output for `x` `(B, T, dim)`, made of `tokens`, after `state`, and the state after them."""
        states = [Taken(0, None)] * len(self.skips) if state is None else state
        after = []
        for skip, part, before in zip(self.skips, self.parts(tokens), states, strict=True):
            step = StepPart(part, None if isinstance(part, ChannelPart) else self, getattr(skip, "keys", "kept"), before)
            x = skip(x, step)[0]
            after.append(step.state)
        return x, after


def build_block(
    who: str,
    choice: Any,
    dim: int,
    pair: tuple[SequenceMixer, ChannelMixer | None],
    dropout: float,
    place: Mapping[str, Any],
    known: Mapping[str, Any],
) -> Block:
    """Return the block of a layer, with the skip of `choice` before it or its branches, or a plain one for None.

    Args:
        who: model and socket, for messages.
        choice: the skip.
        dim: width of the stream.
        pair: the block's mixers.
        dropout: share of each branch's outputs dropped in training.
        place: device and dtype.
        known: what else a skip may ask for.
    """
    if choice is None:
        return Block(dim, *pair, dropout, place)

    def one() -> Skip:
        return cast("Skip", build_choice(who, choice, Skip, {"dim": dim, **known}))

    first = one()
    mixer = pair[0]
    if getattr(first, "keys", "kept") == "all" and type(mixer).extend_at is SequenceMixer.extend_at:
        raise ConfigError(
            f"{who}: {first.name} lets the mixer see tokens that are skipped, which {mixer.name!r} cannot: give keys='kept'"
        )
    if getattr(first, "select", "top") == "level" and not promises(mixer, "causal"):
        raise ConfigError(f"{who}: select='level' needs a causal mixer, and {mixer.name!r} is not")
    return SkippedBlock(dim, *pair, dropout, place, [first, *([one()] if first.by_branch and pair[1] is not None else [])])


def affordable(who: str, budget: float, least: float, what: str) -> float:
    """Return a budget above 0, at most 1, and at least what is computed in any case; another is a `ConfigError`."""
    Budget(budget)
    if budget < least:
        raise ConfigError(f"{who}: budget must be at least the {least:.1%} of {what}, got {budget!r}")
    return budget


def skips_of(model: nn.Module) -> list[Any]:
    """Return the skips of a model that have a budget, first to last; a model without any is a `ConfigError`."""
    found = [part for part in model.modules() if isinstance(part, Skip) and hasattr(part, "budget")]
    if not found:
        raise ConfigError(f"{type(model).__name__} has nothing that skips by a budget")
    return found


def set_budget(model: nn.Module, budget: float) -> None:
    """Set the share that every skip of a model computes, above 0 and at most 1."""
    for skip in skips_of(model):
        skip.budget = budget


@torch.no_grad()
def calibrate(model: nn.Module, *inputs: Tensor) -> None:
    """Set the levels by which a model's skips keep their budgets on data like `inputs`, and let them choose by level.

    A layer's level is set from what reaches it, given what the layers before it skip. Tokens that are equal have equal
    scores, and those that were skipped so far are equal where the tokens are: of those at the level a share is computed, by
    their places. Where the places are the same too, as at the start of every sequence, no level may come near a budget: the
    layers that follow make up for it, so that the mean over the layers is kept. The levels are saved with the weights; a
    model that was built with `select="level"` uses them when it is loaded.

    Args:
        model: with skips that select by level.
        inputs: what the model takes, of as many sequences as memory allows.
    """
    levelled = [skip for skip in skips_of(model) if hasattr(skip, "level")]
    left, debt = len(levelled), 0.0

    def ask(skip: Any, _inputs: Any) -> None:
        skip.select, skip.wanted = "level", min(1.0, max(1e-6, skip.budget + debt / max(1, left)))

    def settle(skip: Any, _inputs: Any, _output: Any) -> None:
        nonlocal left, debt
        left, debt, skip.wanted = left - 1, debt + skip.budget - skip.reached, None

    handles = [
        handle for skip in levelled for handle in (skip.register_forward_pre_hook(ask), skip.register_forward_hook(settle))
    ]
    training = model.training
    model.eval()
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for skip in levelled:
            skip.wanted = None
        model.train(training)


@contextmanager
def shares(model: nn.Module) -> Iterator[list[float]]:
    """Collect the share computed by every call of every skip of a model."""
    found: list[float] = []

    def note(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Halting]) -> None:
        found.append(float(output[1].cost.detach()))

    handles = [skip.register_forward_hook(note) for skip in skips_of(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
