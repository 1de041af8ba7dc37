"""The contracts: call signatures that make mechanisms interchangeable. Each is abstract; a mechanism is a final subclass."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from penstock.core.errors import ConfigError, ShapeError
from penstock.core.module import Mechanism
from penstock.core.outputs import Codes, Halting, Routing, Selection

State = Any


def fill_absent(who: str, streams: Sequence[Tensor], present: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return streams with zeros where a sample lacks one, and `present` `(B, streams)`: all True where it is None.

    Args:
        who: the caller's name, for messages.
        streams: tensors of any shape behind the batch.
        present: boolean, False where that sample lacks that stream.

    Raises:
        ConfigError: if `present` is not boolean.
        ShapeError: if it has another shape.
    """
    wanted = (streams[0].shape[0], len(streams))
    if present is None:
        return tuple(streams), streams[0].new_ones(wanted, dtype=torch.bool)
    if present.dtype != torch.bool:
        raise ConfigError(f"{who}: present must be boolean, got {present.dtype}")
    if tuple(present.shape) != wanted:
        raise ShapeError(f"{who}: present must have shape (batch, streams)={wanted}, got {tuple(present.shape)}")
    return tuple(torch.where(present[:, i].view(-1, *[1] * (x.dim() - 1)), x, 0) for i, x in enumerate(streams)), present


class Activation(Mechanism):
    """`(..., D) -> (..., D)`, without a projection. One that fits a single width has it as `dim`."""

    is_contract: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` `(..., D)`."""


class ChannelMixer(Mechanism):
    """`(..., dim) -> (..., dim)`, each position alone.

    A mixer with `reads_tokens` also takes the numbers of the tokens that `x` was made of, as a `SequenceMixer` does.
    """

    is_contract: ClassVar[bool] = True
    reads_tokens: bool = False
    dim: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of `x` `(..., dim)`."""


class SequenceMixer(Mechanism):
    """`(batch, time, dim) -> (batch, time, dim)`.

    A mixer that goes from left to right (trait `steps`) writes `init_state` and `extend`; `forward` and `step` follow from
    them, so that training, prefill and decoding are one code. A mixer that sees the whole sequence writes `forward`.

    A mixer with `reads_tokens` also takes the numbers of the tokens that `x` was made of, `(batch, time)`, as the last
    argument of `forward`, `extend` and `step`, and how many tokens there are as `vocabulary`; a model gives it both.
    """

    is_contract: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = False
    dim: int

    def init_state(self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        """Return the state before the first token, a tree of tensors with `batch` as the first axis."""
        raise NotImplementedError(f"{self.name} does not go step by step")

    def extend(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return the outputs for `x` `(batch, time, dim)` after `state` (None: the start), and the state after them."""
        raise NotImplementedError(f"{self.name} does not go step by step")

    def forward(self, x: Tensor) -> Tensor:
        """Mix `x` `(batch, time, dim)` from its start."""
        return self.extend(x, None)[0]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the output for one token `x` `(batch, dim)` that follows `state`, and the state after it."""
        y, state = self.extend(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def forward_at(self, x: Tensor, places: Tensor, among: Tensor | None) -> Tensor:
        """Return the outputs for some tokens of a sequence, from its start: as `extend_at`, without a state."""
        if among is None and type(self).extend_at is SequenceMixer.extend_at:
            return self.forward(x)
        return self.extend_at(x, places, among, None)[0]

    def extend_at(
        self,
        x: Tensor,
        places: Tensor,  # noqa: ARG002 - for those who use it
        among: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """Return the outputs for some tokens of a sequence after `state` (None: the start), and the state after them.

        By default the tokens are mixed as if they stood one after another; a mixer with positions, or one that can read
        tokens which it does not answer for, writes its own.

        Args:
            x: the tokens `(batch, some, dim)`.
            places: where they stand, `(batch, some)`, in rising order but for what fills up a shorter row.
            among: all tokens `(batch, time, dim)` that come after the state, which they are to see as far as those are not
                behind them; None where the others take no part.
            state: of the tokens before, all of them where `among` is given, and else of those that took part.

        Raises:
            ConfigError: if the mixer cannot see tokens that it does not answer for.
        """
        if among is not None:
            raise ConfigError(f"{self.name} cannot see tokens that are skipped: use a skip with keys='kept', or attention")
        return self.extend(x, state)

    def tie(self, first: Self) -> None:
        """Share with the first mixer of this kind in the same model what the model has only once; nothing by default."""


class ImageMixer(Mechanism):
    """`(B, C, H, W) -> (B, C, H, W)`."""

    is_contract: ClassVar[bool] = True
    channels: int

    def input_shapes(self, batch: int, time: int) -> list[tuple[int, ...]]:
        """Return the shape of an image, a little wider than high."""
        return [(batch, self.channels, time, time + 1)]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Mix `x` `(B, C, H, W)`."""


class Pooling(Mechanism):
    """`(B, N, dim) -> (B, width)`: one vector for a set of items, some of which may be absent.

    The set's summary is `dim` wide, unless a mechanism says otherwise.
    """

    is_contract: ClassVar[bool] = True
    dim: int

    @property
    def width(self) -> int:
        """Width of the summary."""
        return self.dim

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summarize the items `x` `(B, N, dim)`; those where `mask` `(B, N)` is False are not there."""


class Router(Mechanism):
    """`(N, D) -> Routing`, in float32 at least, whatever the type of the tokens.

    A router with `reads_tokens` also takes the numbers of the tokens, `(N,)`, as a `SequenceMixer` does. One with
    `unit_squares` gives weights whose squares sum to 1; an expert layer keeps that sum where it has shared experts too.
    """

    is_contract: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = False
    unit_squares: ClassVar[bool] = False
    dim: int

    def input_shapes(self, batch: int, time: int) -> list[tuple[int, ...]]:
        """Return the shape of all tokens, whatever sequence they are of."""
        return [(batch * time, self.dim)]

    @abstractmethod
    def forward(self, x: Tensor) -> Routing:
        """Route the tokens `x` `(N, D)`."""


class Skip(Mechanism):
    """`(x, block) -> (y, Halting)`: decides how much of `block` is added to, or computed for, `x`.

    `block` gives what is added to the tokens `(batch, some, dim)` it is called on. That of a model has two methods more:
    `read(x)`, what the block makes of the stream first, and of that `at(x, places, among)`, as `SequenceMixer.forward_at`.
    One that goes on after tokens before has `start`, their number, and `extend(x, keep, weights)`, what the stream becomes.
    A model has a skip before each layer, or before each branch of a layer where `by_branch`.
    """

    is_contract: ClassVar[bool] = True
    by_branch: ClassVar[bool] = False

    @abstractmethod
    def forward(self, x: Tensor, block: Callable[[Tensor], Tensor]) -> tuple[Tensor, Halting]:
        """Apply `block` to `x`, or to what the gate lets through."""


class TokenSelector(Mechanism):
    """`(B, T, D) -> Selection`."""

    is_contract: ClassVar[bool] = True
    dim: int

    @abstractmethod
    def forward(self, x: Tensor) -> Selection:
        """Keep some of the tokens `x` `(B, T, D)`."""


class Fusion(Mechanism):
    """`(*streams (B, T_i, D_i)) -> (B, T, D)`.

    A mechanism to which streams may be missing (trait `partial`) also takes `present` by name, `(B, streams)`, False where a
    sample lacks a stream. What an absent stream holds does not matter, NaN least of all, the output is finite, a sample
    without any stream included, and one that has all streams is fused as it is without `present`.
    """

    is_contract: ClassVar[bool] = True
    dims: tuple[int, ...]

    def input_shapes(self, batch: int, time: int) -> list[tuple[int, ...]]:
        """Return the shape of each stream."""
        return [(batch, time, dim) for dim in self.dims]

    @abstractmethod
    def forward(self, *streams: Tensor) -> Tensor:
        """Fuse the streams."""

    def take(
        self, streams: Sequence[Tensor], present: Tensor | None, *, aligned: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Check the streams and return them as `fill_absent` does, with zeros for what is absent, beside `present`.

        Args:
            streams: as they came, each `(B, T_i, D_i)` with the widths `dims`.
            present: False where a sample lacks a stream; None where all have all.
            aligned: ask for streams of one length.

        Raises:
            ConfigError: if there are more or fewer streams than `dims`, or `present` is not boolean.
            ShapeError: if a stream's width, batch or length does not fit, or the shape of `present`.
        """
        if len(streams) != len(self.dims):
            raise ConfigError(f"{self.name}: it fuses {len(self.dims)} streams, got {len(streams)}")
        for number, (x, dim) in enumerate(zip(streams, self.dims, strict=True)):
            if x.dim() != 3 or x.shape[2] != dim:
                raise ShapeError(f"{self.name}: stream {number} must have shape (batch, time, {dim}), got {tuple(x.shape)}")
            if x.shape[: 1 + aligned] != streams[0].shape[: 1 + aligned]:
                raise ShapeError(
                    f"{self.name}: streams must be alike in {'batch and time' if aligned else 'batch'}, "
                    f"got {tuple(streams[0].shape)} and {tuple(x.shape)}"
                )
        return fill_absent(self.name, streams, present)


class FieldInteraction(Mechanism):
    """`(B, F, D) -> (B, width)`.

    One that `gives_logits` is a whole model but for its embeddings: what it gives is a logit for each task. To the others
    whoever uses them adds a linear map. One that `reads_items` has each item of a list for a field, of zeros where no item
    is, and is told where they are: `history`, beside the field it asks about, `target`.
    """

    is_contract: ClassVar[bool] = True
    gives_logits: ClassVar[bool] = False
    reads_items: ClassVar[bool] = False
    fields: int
    dim: int
    width: int

    def input_shapes(self, batch: int, time: int) -> list[tuple[int, ...]]:  # noqa: ARG002 - fields have no time
        """Return the shape of the embedded fields."""
        return [(batch, self.fields, self.dim)]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Let the fields of `x` `(B, F, D)` interact."""


class Forecaster(Mechanism):
    """`(B, L, C) -> (B, H, C)`."""

    is_contract: ClassVar[bool] = True
    length: int
    horizon: int
    channels: int

    def input_shapes(self, batch: int, time: int) -> list[tuple[int, ...]]:  # noqa: ARG002 - the look-back is fixed
        """Return the shape of the look-back."""
        return [(batch, self.length, self.channels)]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Forecast from the look-back `x` `(B, L, C)`."""


class Codebook(Mechanism):
    """`(..., D) -> Codes`."""

    is_contract: ClassVar[bool] = True
    dim: int

    @abstractmethod
    def forward(self, x: Tensor) -> Codes:
        """Quantize `x` `(..., D)`."""


class SlotBinder(Mechanism):
    """`(B, N, D) -> (B, S, D)`."""

    is_contract: ClassVar[bool] = True
    dim: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Bind the inputs `x` `(B, N, D)` to slots."""
