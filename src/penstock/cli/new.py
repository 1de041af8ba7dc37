"""`penstock new`: the three edits that add a mechanism, as files to fill in."""

import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

from penstock.core.catalogue import CONTRACTS, cards
from penstock.core.errors import ConfigError, unknown
from penstock.core.papers import papers


class Form(NamedTuple):
    """How a mechanism of a contract is written.

    The shape of its input, what its forward takes, returns and imports, what is left to write, and the sizes it is built
    with and keeps.
    """

    shape: str
    takes: str = "x: Tensor"
    returns: str = "Tensor"
    imports: tuple[str, ...] = ()
    first: str = "x"
    what: str = "the equation"
    standard: str = ""
    sizes: tuple[str, ...] = ("dim",)
    keep: str = ""


SIZES = {
    "dim": "width of the stream",
    "channels": "number of channels",
    "fields": "number of fields",
    "length": "steps looked back on",
    "horizon": "steps forecast",
}


FORMS = {
    "Activation": Form("... dim"),
    "ChannelMixer": Form("... dim"),
    "SequenceMixer": Form("batch time dim"),
    "ImageMixer": Form("batch channels height width", sizes=("channels",)),
    "Pooling": Form("batch items dim", "x: Tensor, mask: Tensor | None = None", what="the equation under {mask}"),
    "Router": Form("tokens dim", returns="Routing", imports=("Routing",)),
    "Skip": Form(
        "... dim",
        "x: Tensor, block: Callable[[Tensor], Tensor]",
        "tuple[Tensor, Halting]",
        ("Halting",),
        what="when {block} is computed",
        standard="from collections.abc import Callable\n",
    ),
    "TokenSelector": Form("batch time dim", returns="Selection", imports=("Selection",)),
    "Fusion": Form(
        "batch time dim", takes="*streams: Tensor", first="streams[0]", keep="self.dim, self.dims = dim, (dim, dim)"
    ),
    "FieldInteraction": Form(
        "batch fields dim", sizes=("fields", "dim"), keep="self.fields, self.dim, self.width = fields, dim, fields * dim"
    ),
    "Forecaster": Form("batch length channels", sizes=("length", "horizon", "channels")),
    "Codebook": Form("... dim", returns="Codes", imports=("Codes",)),
    "SlotBinder": Form("batch tokens dim"),
}


def new(path: str, /, *, contract: str | None = None, paper: str | None = None) -> None:
    """Begin a mechanism in a checkout: its file, its oracle, and its paper if that is new.

    Args:
        path: room and name, such as recurrence/my-gate.
        contract: the contract it keeps; by default the one most common in the room.
        paper: key in papers.toml; by default a new one, made of the name.
    """
    written = scaffold(checkout(Path.cwd()), path, contract, paper)
    print("\n".join(f"wrote {file}" for file in written))
    print(f"fill these in, then: .venv/bin/python -m pytest -k {path.partition('/')[2]}")


def checkout(start: Path) -> Path:
    """Return the root of the checkout that holds `start`."""
    for folder in (start, *start.parents):
        if (folder / "src/penstock/core/papers.toml").is_file():
            return folder
    raise ConfigError(f"new: expected to run inside a checkout of penstock, and {start} is not in one")


def scaffold(root: Path, path: str, contract: str | None = None, paper: str | None = None) -> list[Path]:
    """Write the files and return them, relative to `root`; nothing is written over, and nothing if anything is amiss."""
    room, _, name = path.partition("/")
    _check_name(root, room, name)
    contract = contract or _usual(room)
    if contract not in FORMS:
        raise ConfigError(f"new: {unknown('contract', contract, CONTRACTS)}")
    key = paper or name.replace("-", "")
    if not re.fullmatch(r"[a-z][a-z0-9]*", key):
        raise ConfigError(f"new: a paper's key is letters and digits, such as 'qiu2025gated', got {key!r}")
    if paper is None and key in papers():
        raise ConfigError(f"new: there is a paper {key!r} already; give the paper's key with --paper")
    words = _words(name, contract, key)
    module = name.replace("-", "_")
    mechanism = root / f"src/penstock/nn/{room}/{module}.py"
    oracle = root / f"tests/oracles/{room}/{module}.py"
    for file in (mechanism, oracle):
        if file.exists():
            raise ConfigError(f"new: {file.relative_to(root)} exists already, and is not written over")
    _write(mechanism, _fill("mechanism", words))
    _write(oracle, _fill("oracle", words))
    written = [mechanism, oracle]
    if key not in papers():
        table = root / "src/penstock/core/papers.toml"
        _write(table, table.read_text("utf-8") + _fill("paper", words))
        written.append(table)
    return [file.relative_to(root) for file in written]


def _check_name(root: Path, room: str, name: str) -> None:
    rooms = [folder.name for folder in (root / "src/penstock/nn").iterdir() if (folder / "__init__.py").is_file()]
    if room not in rooms:
        raise ConfigError(f"new: {unknown('room', room, rooms)}; expected ROOM/NAME, such as recurrence/my-gate")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(f"new: a name is kebab-case and begins with a letter, such as 'my-gate', got {name!r}")
    if name in cards():
        raise ConfigError(f"new: there is a {name!r} already: {cards()[name].symbol}")


def _usual(room: str) -> str:
    kept = Counter(card.contract for card in cards().values() if card.room == room and card.contract in CONTRACTS)
    if not kept:
        raise ConfigError(f"new: room {room!r} is empty, so give the contract with --contract: {', '.join(CONTRACTS)}")
    return kept.most_common(1)[0][0]


def _words(name: str, contract: str, paper: str) -> dict[str, str]:
    form = FORMS[contract]
    return {
        "name": name,
        "function": name.replace("-", "_"),
        "symbol": "".join(part.capitalize() for part in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
        "paper": paper,
        "contract": contract,
        "imports": ", ".join(sorted((contract, "Gate", "Size", *form.imports), key=str)) + ", mechanism",
        **{key: value for key, value in form._asdict().items() if key not in ("imports", "sizes", "keep")},
        "parameters": ", ".join(f"{size}: Size" for size in form.sizes),
        "described": "\n        ".join(f"{size}: {SIZES[size]}." for size in form.sizes),
        "example": "{" + ", ".join(f'"{size}": 8' for size in form.sizes) + "}",
        "keep": form.keep or ", ".join(f"self.{size}" for size in form.sizes) + " = " + ", ".join(form.sizes),
        "width": form.sizes[-1],
        "arguments": ", ".join(form.sizes),
    }


def _fill(template: str, words: dict[str, str]) -> str:
    return Template(files("penstock.cli").joinpath(f"templates/{template}.txt").read_text("utf-8")).substitute(words)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".new")
    beside.write_text(text, "utf-8")
    beside.replace(file)
