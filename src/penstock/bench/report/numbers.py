"""Numbers as people read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

NONE = "–"
MINUS = "−"


def count(value: float | None) -> str:
    """Return `12.3k`, `4.5M`: at most three digits, and a suffix."""
    if value is None:
        return NONE
    for step, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step * 0.9995:
            return f"{value / step:.3g}{suffix}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return NONE
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 0.9995 * 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Return `1 h 12 min`, `3 min 20 s` or `4.2 s`."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def learning_rate(value: float | None) -> str:
    """Return a learning rate in three digits, with an exponent when it is small."""
    if value is None:
        return NONE
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.2e}".replace("e-0", "e-")


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return a mean, and how far the values lie apart where there are several."""
    mean = f"{sum(values) / len(values):{form}}"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return (mean if len(values) == 1 else f"{mean} ({low} to {high})").replace("-", MINUS)


def time_spent(walls: Sequence[float]) -> str:
    """Return the mean of some times, and their standard deviation where there are several."""
    if len(walls) < 2:
        return duration(walls[0]) if walls else NONE
    mean, apart = fmean(walls), stdev(walls)
    unit, name = (3600, "h") if mean >= 36000 else (60, "min") if mean >= 600 else (1, "s")
    digits = 0 if mean >= 100 * unit else 1
    return f"{mean / unit:.{digits}f} ± {apart / unit:.{digits}f} {name}"


def joined(items: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def plural(number: int, noun: str) -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Metric:
    """How a task's metric is read and written."""

    name: str

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better: so for an accuracy, not so for a loss in bits."""
        return self.name == "accuracy"

    @property
    def scale(self) -> int:
        """What a value is multiplied with before it is shown: shares are shown in percent."""
        return 100 if self.name == "accuracy" else 1

    @property
    def label(self) -> str:
        """The name with its unit, as on an axis."""
        return "accuracy, %" if self.name == "accuracy" else self.name

    def digits(self, *values: float) -> int:
        """Return the decimals that values are written with where they stand together."""
        if self.name != "accuracy":
            return 3
        return 1 if max(map(abs, values)) >= 0.01 else 2

    def text(self, value: float | None) -> str:
        """Return a value in its unit, without the unit's name where that is long."""
        return NONE if value is None else self._text(value, self.digits(value))

    def _text(self, value: float, digits: int) -> str:
        return f"{value * self.scale:.{digits}f}{'%' if self.name == 'accuracy' else ''}"

    def interval(self, ends: tuple[float, float]) -> str:
        """Return `91.0 to 95.2%`."""
        low, high = (self._text(end, self.digits(*ends)) for end in ends)
        return f"{low.removesuffix('%')} to {high}"

    def difference(self, value: float, *beside: float, signed: bool = False) -> str:
        """Return a difference of two values, in points for a share; `beside` are numbers that it stands with."""
        sign = "" if not signed or not value else "+" if value > 0 else MINUS
        return f"{sign}{abs(value) * self.scale:.{self.digits(value, *beside)}f}"

    def differences(self, ends: tuple[float, float], *beside: float) -> str:
        """Return an interval of differences, signed."""
        return " to ".join(self.difference(end, *ends, *beside, signed=True) for end in ends)

    @property
    def unit(self) -> str:
        """What a difference is counted in."""
        return "points" if self.name == "accuracy" else self.name

    def better(self, value: float, other: float) -> bool:
        """Tell whether a value is better than another."""
        return value > other if self.higher_is_better else value < other
