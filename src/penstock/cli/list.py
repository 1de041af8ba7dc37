"""`penstock list`: what the catalogue holds, read without importing torch."""

from json import dumps
from typing import Any

from penstock.cli.text import table
from penstock.core.catalogue import as_rows
from penstock.core.errors import ConfigError, unknown


def list_entries(*, room: str | None = None, contract: str | None = None, json: bool = False) -> None:
    """List the catalogue.

    Args:
        room: only this room, such as attention.
        contract: only this contract or kind, such as SequenceMixer or task.
        json: print a JSON array of objects instead of a table.
    """
    rows = [row for row in as_rows() if room in (None, row["room"]) and contract in (None, row["contract"])]
    if not rows:
        _refuse(room=room, contract=contract)
    if json:
        print(dumps(rows, indent=2, ensure_ascii=False))
    else:
        print(table((row["room"], row["name"], row["contract"], row["description"]) for row in rows))


def _refuse(**wanted: str | None) -> None:
    rows: list[dict[str, Any]] = as_rows()
    for kind, name in wanted.items():
        known = {row[kind] for row in rows}
        if name is not None and name not in known:
            raise ConfigError(f"list: {unknown(kind, name, known)}")
