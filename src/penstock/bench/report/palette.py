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
        "m0": "#0067ad",
        "m1": "#c2410c",
        "m2": "#00785a",
        "m3": "#a8478f",
        "m4": "#a16a00",
        "m5": "#2f8fc0",
        "m6": "#5b4bb5",
        "m7": "#6a6f76",
    },
    "dark": {
        "page": "#15181c",
        "panel": "#1e2227",
        "ink": "#e9e6e0",
        "muted": "#a7adb5",
        "line": "#363c44",
        "link": "#8ac4f5",
        "warn": "#ffab7d",
        "m0": "#4c9fe6",
        "m1": "#ff8552",
        "m2": "#35c298",
        "m3": "#ea8fcf",
        "m4": "#e3b341",
        "m5": "#9adcf5",
        "m6": "#aa9cf7",
        "m7": "#b4bac2",
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
