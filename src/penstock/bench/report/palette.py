"""The colours of the report: one for each mechanism, the same everywhere, told apart by colour-blind eyes in both themes."""

from collections.abc import Mapping

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "page": "#fdfcfa",
        "panel": "#f5f3ee",
        "ink": "#1c2127",
        "muted": "#59616b",
        "line": "#dddad2",
        "link": "#0a5a9c",
        "warn": "#9a3412",
        "m0": "#1156bc",
        "m1": "#ae2901",
        "m2": "#148a4a",
        "m3": "#c74a9a",
        "m4": "#c2840f",
        "m5": "#189ccb",
        "m6": "#533e8a",
        "m7": "#5a6f65",
    },
    "dark": {
        "page": "#15181c",
        "panel": "#1e2227",
        "ink": "#e9e6e0",
        "muted": "#a7adb5",
        "line": "#363c44",
        "link": "#8ac4f5",
        "warn": "#ffab7d",
        "m0": "#789afe",
        "m1": "#e16739",
        "m2": "#53da93",
        "m3": "#e680ba",
        "m4": "#f4cc5a",
        "m5": "#95d4f3",
        "m6": "#9981cb",
        "m7": "#cdc2bf",
    },
}
COLORS = sum(name[0] == "m" and name[1:].isdigit() for name in THEMES["light"])
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
SENTINEL = "#a7c0"
"""How a figure names a colour before it is made inline: these digits, and two for the place in `NAMES`."""
NAMES = tuple(THEMES["light"])


def ink(name: str) -> str:
    """Return the colour a figure is drawn with to have the theme's colour `name` in the page."""
    return f"{SENTINEL}{NAMES.index(name):02x}"


def color(place: int) -> str:
    """Return the name of the colour of the mechanism at `place` in the study."""
    return f"m{place % COLORS}"


def marker(place: int) -> str:
    """Return the marker of the mechanism at `place`: it changes at another pace than the colour, so no pair comes twice."""
    return MARKERS[place % len(MARKERS)]
