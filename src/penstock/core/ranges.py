"""The range of a gate as a card states it: an interval or a set, and a note after a semicolon."""

import re
from dataclasses import dataclass

from penstock.core.errors import ConfigError

_INTERVAL = re.compile(r"([\[(])\s*(\S+)\s*,\s*(\S+?)\s*([\])])")
_SET = re.compile(r"\{(.+)\}")


@dataclass(frozen=True)
class Range:
    """Where a gate's values lie.

    Args:
        low: least value, or the bound below.
        high: greatest value, or the bound above.
        open_low: whether `low` itself is left out.
        open_high: whether `high` itself is left out.
        values: the values, if there are only these.
        note: what the card says after the range: what 1 means, or over what the gate sums to one.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    values: tuple[float, ...] = ()
    note: str = ""

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Read `(0, 1)`, `[0, inf)` or `{0, 1}`, each with or without `; a note`."""
        body, _, note = (part.strip() for part in text.partition(";"))
        try:
            if found := _INTERVAL.fullmatch(body):
                left, low, high, right = found.groups()
                return cls(float(low), float(high), left == "(", right == ")", note=note)
            if found := _SET.fullmatch(body):
                values = tuple(sorted(float(value) for value in found.group(1).split(",")))
                return cls(values[0], values[-1], values=values, note=note)
        except ValueError:
            pass
        raise ConfigError(
            f"a gate's range reads '(0, 1)', '[0, inf)' or '{{0, 1}}', with or without '; a note', got {text!r}"
        )

    @property
    def is_unit(self) -> bool:
        """Whether the gate goes from closed at 0 to open at 1."""
        return (self.low, self.high) == (0.0, 1.0)

    @property
    def is_hard(self) -> bool:
        """Whether the gate takes a few values only."""
        return bool(self.values)

    @property
    def is_share(self) -> bool:
        """Whether the gate shares out one unit over its last axis, as a router does."""
        return self.note.startswith("sums to 1")

    def contains(self, value: float) -> bool:
        """Tell whether `value` lies in the range."""
        if self.values:
            return value in self.values
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below
