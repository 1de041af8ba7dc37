"""The one family of errors a user meets, and the words they are told in."""

from collections.abc import Iterable
from difflib import get_close_matches


class PenstockError(ValueError):
    """What the user can put right. The message says who asks, what was expected, and what came."""


class ShapeError(PenstockError):
    """A tensor does not have the shape a call needs."""


class ConfigError(PenstockError):
    """An argument, an option or a name is not one of those accepted."""


class BackendError(PenstockError):
    """The backend that was asked for cannot serve the call."""


class DataError(PenstockError):
    """A file, a record or a data set does not hold what it should."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Return `unknown KIND 'NAME'`, with the nearest known name, or all of them when there are few."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        hint = f"; did you mean {near[0]!r}?"
    elif len(known) <= 12:
        hint = f"; known: {', '.join(known) or 'none'}"
    else:
        hint = ""
    return f"unknown {kind} {name!r}{hint}"
