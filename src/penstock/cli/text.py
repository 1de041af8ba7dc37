"""Plain text in columns."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence


def width() -> int | None:
    """Return the width of the terminal, or None where the output goes elsewhere and must not be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text as aligned columns, a line a row; the last column ends where the terminal does."""
    rows = list(rows)
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    limit = width()
    lines = []
    for row in rows:
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        lines.append(line if limit is None or len(line) <= limit else line[: max(1, limit - 1)] + "…")
    return "\n".join(lines)


def section(title: str, body: str) -> str:
    """Return a titled paragraph, its lines indented."""
    return f"{title}\n{textwrap.indent(body, '  ')}\n"
