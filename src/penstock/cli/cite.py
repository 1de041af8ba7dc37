"""`penstock cite`: BibTeX of the papers behind mechanisms."""

from penstock.core.catalogue import find
from penstock.core.errors import ConfigError
from penstock.core.papers import papers


def cite(*names: str) -> None:
    """Print BibTeX for the papers of these entries, each paper once.

    Args:
        names: names in the catalogue.
    """
    if not names:
        raise ConfigError("cite: expected names from the catalogue, got none")
    keys = dict.fromkeys(find(name).paper for name in names)
    print("\n\n".join(papers()[key].bibtex() for key in keys))
