"""What a comparison is asked to compare: a name from the catalogue, or a user's class, with arguments of its own."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from penstock.core import Activation, ChannelMixer, ConfigError, Pooling, Router, SequenceMixer, Skip
from penstock.core.catalogue import cards, get
from penstock.core.errors import unknown

Socket = Literal["mixer", "channel", "skip", "router", "pooling", "activation"]
SOCKETS: Mapping[str, Socket] = {
    "SequenceMixer": "mixer",
    "ChannelMixer": "channel",
    "Skip": "skip",
    "Router": "router",
    "Pooling": "pooling",
    "Activation": "activation",
}


MODELS = ("early-exit", "evit", "jei-dnn", "skip-middle")
"""Ways of skipping that are models of their own."""


@dataclass(frozen=True)
class Choice:
    """One thing to compare, or one task to compare on.

    Args:
        label: what it is called in records and reports: the text it was asked for with.
        name: a name in the catalogue, or `package.module:Class`.
        arguments: arguments other than their defaults.
    """

    label: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, asked: str | Mapping[str, Any], key: str) -> "Choice":
        """Read `name`, `name,argument=value,...` or a table with the name under `key` and arguments beside it."""
        if isinstance(asked, str):
            name, *pairs = asked.split(",")
            return cls(asked, *found(name, dict(assignment(pair) for pair in pairs), key))
        if not isinstance(asked, Mapping) or not isinstance(asked.get(key), str):
            raise ConfigError(f"a {key} is a name or a table with the key {key!r}, got {asked!r}")
        arguments = {name: value for name, value in asked.items() if name != key}
        label = ",".join([asked[key], *(f"{name}={json.dumps(value)}" for name, value in arguments.items())])
        return cls(label, *found(asked[key], arguments, key))

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.,=+-]", "_", self.label)

    def plain(self, key: str) -> dict[str, Any]:
        """Return the choice as a table that `parse` reads."""
        return {key: self.name, **self.arguments}


def found(name: str, arguments: dict[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """Return a name and its arguments; a member of the survey of activations is asked of the survey."""
    if key != "mechanism" or ":" in name or name in cards():
        return name, arguments
    from penstock.nn.activations.survey.table import find, has

    if not has(name):
        return name, arguments
    return "activation-survey", {"member": find(name).name, **({"parameters": arguments} if arguments else {})}


def assignment(text: str) -> tuple[str, Any]:
    """Read `key=value`; the value is a JSON number, true, false or null, and else a word."""
    key, sign, value = text.partition("=")
    if not (sign and key):
        raise ConfigError(f"an option is written key=value, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@cache
def socket_of(name: str) -> Socket:
    """Return the socket of a model that the mechanism fits in; what fits in none is an error."""
    if ":" in name:
        found = get(name)
        contract = next(
            (
                c.__name__
                for c in (SequenceMixer, ChannelMixer, Skip, Router, Pooling, Activation)
                if isinstance(found, type) and issubclass(found, c)
            ),
            "",
        )
    else:
        if name in MODELS:
            return "skip"
        fitting = [*MODELS, *(card.name for card in cards().values() if card.contract in SOCKETS)]
        if name not in cards():
            raise ConfigError(unknown("mechanism", name, fitting))
        contract = cards()[name].contract
    if contract not in SOCKETS:
        kind = contract or "none of them"
        raise ConfigError(f"{name}: a comparison takes a {', '.join(SOCKETS)}, and this is {kind}")
    return SOCKETS[contract]


def for_socket(names: Iterable[str], socket: Socket) -> list[str]:
    """Return the names, each of a mechanism, with arguments or not, that fits in the socket; another is an error."""
    asked = list(names)
    for name in asked:
        choice = Choice.parse(name, "mechanism")
        if socket_of(choice.name) != socket:
            raise ConfigError(
                f"{choice.name}: --{socket} takes a {socket}, and this goes in the socket {socket_of(choice.name)}"
            )
    return asked
