"""From a matplotlib figure to an SVG that belongs to the page: its colours, its font, its width."""

import io
import re
import warnings
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from penstock.bench.report.palette import NAMES, SENTINEL

NAMESPACE = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def inline(figure: Figure, name: str, label: str) -> Markup:
    """Return the figure as an inline SVG.

    Args:
        figure: drawn with colours from `palette.ink`.
        name: what the ids in it begin with; unique in the page.
        label: what the figure shows, for those who do not see it.
    """
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(file, format="svg", transparent=True)
    root = ET.fromstring(file.getvalue())  # noqa: S314 - matplotlib wrote it just now
    _prune(root)
    _own_ids(root, name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(NAMESPACE)
        _restyle(element)
    for key in ("width", "height", "version"):
        root.attrib.pop(key)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - serialized from a tree, so it is escaped


def _prune(root: ET.Element) -> None:
    """Drop the metadata, which has the date, and the style sheet, which would reach into the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            style = child.tag == f"{NAMESPACE}defs" and child.find(f"{NAMESPACE}style") is not None
            if style or child.tag == f"{NAMESPACE}metadata":
                parent.remove(child)
            else:
                child.tail = None
        parent.text = parent.text if parent.tag == f"{NAMESPACE}text" else None


def _own_ids(root: ET.Element, name: str) -> None:
    """Keep the ids that are referred to, and make them unique in the page."""
    used: dict[str, str] = {}
    for element in root.iter():
        if HREF in element.attrib:
            target = element.attrib.pop(HREF)[1:]
            element.set("href", "#" + used.setdefault(target, f"{name}-{len(used)}"))
        if found := re.fullmatch(r"url\(#(.+)\)", element.get("clip-path", "")):
            element.set("clip-path", f"url(#{used.setdefault(found[1], f'{name}-{len(used)}')})")
    for element in root.iter():
        if "id" in element.attrib:
            old = element.attrib.pop("id")
            if old in used:
                element.set("id", used[old])


def _restyle(element: ET.Element) -> None:
    if style := element.get("style"):
        style = re.sub(r"font-family: [^;]+(; )?", "", style)
        style = re.sub(rf"{SENTINEL}([0-9a-f]{{2}})", lambda found: f"var(--{NAMES[int(found[1], 16)]})", style)
        element.set("style", style.replace(": ", ":").replace("; ", ";"))
    for key in ("d", "x", "y", "width", "height", "transform", "points"):
        if value := element.get(key):
            value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
            element.set(key, " ".join(value.split()))
    if re.match(r"rotate\(-?0 ", element.get("transform", "")):
        del element.attrib["transform"]
