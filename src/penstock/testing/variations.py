"""Values for a constructor's arguments, drawn from their annotations: ones it must refuse, and ones it must accept."""

import math
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from penstock.core import Mechanism, PenstockError
from penstock.core.arguments import PLACEMENT, Bounds, accepts, annotations, signature

BAD = (0, -1, 1.5, -0.5, 2, 10**6 + 0.5, 0.0, math.nan, math.inf, -math.inf, True, None, "no such choice", [])
NUMBERS = (0, 1, 2, 3, 5, 0.25, 1.0)


def hints(cls: type[Mechanism]) -> dict[str, Any]:
    """Return the annotation of every argument of the constructor; None where there is none."""
    known = annotations(cls.__init__)
    return {name: known.get(name) for name in signature(cls).parameters if name not in PLACEMENT}


def parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one annotation there is."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def is_judged(hint: Any) -> bool:
    """Tell whether a value of this annotation is checked when a mechanism is built."""
    return all(
        get_origin(part) is Literal
        or (get_origin(part) is Annotated and isinstance(part.__metadata__[0], Bounds))
        or part in (bool, NoneType)
        for part in parts(hint)
    )


def refused(cls: type[Mechanism]) -> Iterator[tuple[str, Any]]:
    """Yield each argument with values that its annotation does not accept."""
    for argument, hint in hints(cls).items():
        if is_judged(hint):
            yield from ((argument, value) for value in BAD if not accepts(hint, value))


def accepted(cls: type[Mechanism]) -> Iterator[tuple[str, Any]]:
    """Yield each argument with values that its annotation accepts."""
    for argument, hint in hints(cls).items():
        if is_judged(hint):
            literals = [choice for part in parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
            yield from ((argument, value) for value in (*NUMBERS, True, False, None, *literals) if accepts(hint, value))


def shown(changes: Mapping[str, Any]) -> str:
    """Say which kind of a mechanism is meant."""
    return (
        f"with {', '.join(f'{name}={value!r}' for name, value in changes.items())}" if changes else "at the card's example"
    )


def choices(cls: type[Mechanism]) -> Iterator[Mapping[str, Any]]:
    """Yield what to change of the example to build each kind of the mechanism: nothing, then every choice and flag once."""
    yield {}
    example = {name: p.default for name, p in signature(cls).parameters.items()} | dict(cls.card.example)
    for argument, value in accepted(cls):
        if isinstance(value, str | bool) and value != example[argument]:
            try:
                cls(**{**cls.card.example, argument: value})
            except PenstockError:
                continue
            yield {argument: value}
