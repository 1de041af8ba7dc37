"""The page that `report` writes: a table, and a histogram for each gate, in one file that needs no other."""

import os
from contextlib import suppress
from html import escape
from os import PathLike
from pathlib import Path

from penstock.core import DataError
from penstock.inspect.rows import HEADINGS, LEFT, Row, Table

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gates</title>
<style>
:root {{ color-scheme: light dark; --ink: light-dark(#1d2733, #dde5ee); --faint: light-dark(#5d6b7a, #93a2b3);
  --line: light-dark(#dde3ea, #2f3a46); --bar: light-dark(#2f6fb0, #6aa9e9); }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
p {{ color: var(--faint); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ color: var(--faint); font-weight: 600; }}
.left {{ text-align: left; }}
rect {{ fill: var(--bar); }}
</style>
<h1>Gates</h1>
<p>{sentence} Entropy is 0 where a gate is decided and 1 where it is as undecided as can be; load is the mean openness of the
least and the most open unit of the last axis. A histogram has 16 bins over the span written under it.</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
</html>
"""
_BAR, _HEIGHT = 8, 36


def _cell(text: str, column: int, tag: str = "td") -> str:
    side = ' class="left"' if column < LEFT else ""
    return f"<{tag}{side}>{escape(text)}</{tag}>"


def _histogram(row: Row) -> str:
    most = max(row.histogram) or 1
    bars = "".join(
        f'<rect x="{_BAR * place}" y="{_HEIGHT * (1 - share):.1f}" width="{_BAR - 1}" height="{_HEIGHT * share:.1f}"/>'
        for place, share in enumerate(count / most for count in row.histogram)
    )
    width = _BAR * len(row.histogram)
    low, high = row.bins
    label = f"histogram of {escape(row.path)}"
    picture = f'<svg role="img" aria-label="{label}" width="{width}" height="{_HEIGHT}">{bars}</svg>'
    return f'<td class="left">{picture}<br><small>{low:g} to {high:g}</small></td>'


def render(table: Table) -> str:
    """Return the page."""
    lines = (
        "<tr>" + "".join(_cell(text, column) for column, text in enumerate(row.cells())) + _histogram(row) + "</tr>"
        for row in table
    )
    head = "".join(_cell(text, column, "th") for column, text in enumerate(HEADINGS)) + '<th class="left">histogram</th>'
    sentence = f"Gates that were called: {len(table)}."
    return _PAGE.format(sentence=sentence, head=head, body="\n".join(lines))


def write_page(table: Table, path: str | PathLike[str]) -> None:
    """Write the page beside its place and move it there."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(render(table), "utf-8")
        beside.replace(target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise DataError(f"report: cannot write {target}: {error.strerror}") from error
