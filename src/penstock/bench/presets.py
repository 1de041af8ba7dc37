"""The sizes a comparison comes in. A preset is what `Study` needs and the user did not say."""

from collections.abc import Mapping
from typing import Any

MECHANISMS = ("attention", "gated-attention", "gla", "hgrn", "gam")
TASKS = ("mqar", "text")

_COMMON = {
    "match": "params",
    "lowest_rate": 5e-4,
    "highest_rate": 2e-2,
    "trial_share": 1.0,
    "warmup": 0.1,
    "weight_decay": 0.1,
    "clip": 1.0,
    "evaluations": 10,
    "device": "auto",
    "precision": "auto",
    "threads": 1,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": _COMMON | {"seeds": 3, "trials": 3, "trial_share": 0.5, "steps": 300, "batch": 32, "dim": 64, "layers": 2},
    "standard": _COMMON | {"seeds": 3, "trials": 4, "steps": 3000, "batch": 64, "dim": 128, "layers": 2},
    "thorough": _COMMON | {"seeds": 5, "trials": 8, "steps": 10000, "batch": 64, "dim": 128, "layers": 4},
}
OPTIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "quick": {"mqar": {}, "text": {}},
    "standard": {"mqar": {}, "text": {}},
    "thorough": {"mqar": {}, "text": {}},
}
"""What a task is given under a preset where the user does not say otherwise."""
