"""`penstock report`: write a comparison's report again, from its records."""

from pathlib import Path


def report(folder: Path, /) -> None:
    """Write the report of a comparison from the records in its folder, finished or not.

    Args:
        folder: the folder the comparison wrote.
    """
    from penstock.bench.report import write

    print(write(folder))
