"""What had another name in an earlier version, so that what that one stored still works.

A configuration that lies in a run folder or a checkpoint is brought up to date before anything
judges it; on the command line an old key is refused with the new one named. No torch here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

MOVED_TARGETS = {
    "cvtrain.losses.boxes": "cvtrain.losses.box_regression",
}
"""What a stored ``_target_`` is or begins with (a module, a class) -> where it is now. Rows stand
in the order of the moves: a later one may move on what an earlier one has moved."""

RENAMED_KEYS = {
    "model.centre_radius": "model.center_radius",
    "model.connected_scale": "model.fc_lr_scale",
    "model.foreground_share": "model.positive_fraction",
    "model.sampling.foreground_share": "model.sampling.positive_fraction",
    "model.rpn.positive_share": "model.rpn.positive_fraction",
    "model.least_batch": "model.min_batch_size",
    "proposals.colours": "proposals.colors",
}
"""Dotted key, of a value or of a node with all that is in it -> what it is now; in the order of the
changes too. A row of ``loss`` or ``backbone`` holds for the model's copy of that node as well."""

_COPIED = ("loss.", "backbone.")
"""How the keys begin that a model's configuration repeats."""


def up_to_date(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a stored configuration with today's targets and keys.

    Where old and new key are both there, both stay: whoever reads them judges the old one.
    """
    current = copy.deepcopy(dict(config))
    _move_targets(current)
    for old, new in RENAMED_KEYS.items():
        _move_key(current, old, new)
        if old.startswith(_COPIED):
            _move_key(current, f"model.{old}", f"model.{new}")
    return current


def new_key(key: str) -> str:
    """What a dotted key is now: itself, unless it was renamed."""
    inner = key.removeprefix("model.")
    begin = "model." if inner != key and inner.startswith(_COPIED) else ""
    return begin + _moved(key.removeprefix(begin), RENAMED_KEYS)


def _moved(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if f"{name}.".startswith(f"{old}.") and not f"{name}.".startswith(f"{new}."):
            name = new + name.removeprefix(old)
    return name


def _move_targets(node: Any) -> None:
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        node["_target_"] = _moved(node["_target_"], MOVED_TARGETS)
    if isinstance(node, (dict, list, tuple)):
        for part in node.values() if isinstance(node, dict) else node:
            _move_targets(part)


def _move_key(config: dict[str, Any], old: str, new: str) -> None:
    """Move a value to another place of the tree, where there is one and the place is free."""
    *path, last = old.split(".")
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        return
    *path, name = new.split(".")
    there: Any = config
    for part in path:
        if isinstance(there, dict) and there.get(part) is None:
            there[part] = {}
        there = there[part] if isinstance(there, dict) else None
    if isinstance(there, dict) and name not in there:
        there[name] = node.pop(last)
