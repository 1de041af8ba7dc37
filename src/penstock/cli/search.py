"""`penstock search`: the catalogue, ranked by what a person typed."""

from penstock.cli.text import table
from penstock.core import catalogue
from penstock.core.errors import ConfigError


def search(*words: str, limit: int = 12) -> None:
    """Rank the catalogue by words from names, titles, descriptions, gates, rooms and equations.

    Args:
        words: what to look for, such as: forget gate
        limit: how many entries to print.
    """
    if not words:
        raise ConfigError("search: expected words to look for, such as 'forget gate', got none")
    if limit < 1:
        raise ConfigError(f"search: limit must be an integer of at least 1, got {limit}")
    found = catalogue.search(" ".join(words))
    if not found:
        raise ConfigError(f"search: nothing fits {' '.join(words)!r}; `penstock list` prints the whole catalogue")
    print(table((card.name, card.room, card.description) for card in found[:limit]))
