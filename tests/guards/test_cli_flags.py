"""The verbs of the command line and their flags are frozen: people's scripts depend on them.

A change that is meant is made in `flags.json` too: `python tests/guards/test_cli_flags.py` writes it.
"""

import json
from pathlib import Path

from penstock.cli.app import flags

PLACE = Path(__file__).parent / "flags.json"


def test_no_flag_has_changed():
    assert flags() == json.loads(PLACE.read_text("utf-8"))


if __name__ == "__main__":
    PLACE.write_text(json.dumps(flags(), indent=2, sort_keys=True) + "\n", "utf-8")
