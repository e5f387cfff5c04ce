"""What has another name than in older versions: stored configurations are brought up to date, old
keys that are typed are refused with the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODULES = {"cvtrain.losses.boxes": "cvtrain.losses.box_regression"}
"""Old module -> new one, of those that a ``_target_`` of ours has named."""

KEYS = {
    "model": {
        "centre_radius": "center_radius",
        "connected_scale": "fc_lr_scale",
        "foreground_share": "positive_fraction",
        "least_batch": "min_batch_size",
        "positive_share": "positive_fraction",
    },
    "proposals": {"colours": "colors"},
}
"""Group -> old key -> new one, wherever it stands in the group."""


def renamed_key(key: str) -> str | None:
    """The new name of a dotted key that was renamed; None: it was not."""
    parent, _, leaf = key.rpartition(".")
    new = KEYS.get(key.split(".")[0], {}).get(leaf)
    return f"{parent}.{new}" if parent and new is not None else None


def up_to_date(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with today's targets and keys; the input is left as it is."""
    return {str(group): _renamed(node, KEYS.get(str(group), {})) for group, node in config.items()}


def _renamed(node: Any, keys: Mapping[str, str]) -> Any:
    if isinstance(node, Mapping):
        changed = {}
        for key, value in node.items():
            new = keys.get(key, key)
            name = key if new in node else new  # a class of somebody's own may have both
            changed[name] = _target(value) if key == "_target_" else _renamed(value, keys)
        return changed
    if isinstance(node, list):
        return [_renamed(value, keys) for value in node]
    return node


def _target(target: Any) -> Any:
    module, dot, name = str(target).rpartition(".")
    return f"{MODULES[module]}{dot}{name}" if module in MODULES else target
