"""penstock: gates in neural networks.

`penstock.get(name)` is the class of a mechanism, `penstock.build(name, ...)` an instance, `penstock.names()` what there is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.core.backend import use
    from penstock.core.catalogue import build, get, search
    from penstock.core.errors import PenstockError

__version__ = "0.1.0"
__all__ = ["PenstockError", "__version__", "build", "get", "names", "search", "use"]

_HOMES = {
    "PenstockError": "core.errors",
    "build": "core.catalogue",
    "get": "core.catalogue",
    "search": "core.catalogue",
    "use": "core.backend",
}
_ROOMS = ("adapt", "bench", "core", "gates", "inspect", "models", "nn", "ops", "testing")


def names() -> list[str]:
    """Return the names of everything in the catalogue."""
    from penstock.core.catalogue import cards

    return list(cards())


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"penstock.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"penstock.{name}")
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
