"""Which mechanisms a check is for: decided from the card alone, so that nothing need be imported to list the tests."""

from collections.abc import Callable
from typing import Any, TypeVar

from penstock.core.card import Card
from penstock.core.ranges import Range

Check = Callable[[type[Any]], None]
F = TypeVar("F", bound=Check)


def applies(when: Callable[[Card], bool]) -> Callable[[F], F]:
    """Mark a check as one for the cards that `when` accepts; an unmarked check is for every mechanism."""

    def mark(check: F) -> F:
        check.when = when  # type: ignore[attr-defined]
        return check

    return mark


def to(*contracts: str) -> Callable[[F], F]:
    """Mark a check as one for mechanisms of these contracts."""
    return applies(lambda card: card.contract in contracts)


def except_for(*contracts: str) -> Callable[[F], F]:
    """Mark a check as one for mechanisms of all other contracts."""
    return applies(lambda card: card.contract not in contracts)


def is_hard(card: Card) -> bool:
    """Tell whether a gate takes a few values only, so that its gradient is an estimate."""
    return any(Range.parse(text).is_hard for text in card.gates.values())
