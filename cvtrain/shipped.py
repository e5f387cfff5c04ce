"""cvtrain's own configuration: where it lies, and which objects it names in which slot.

A slot is a kind of place in a run's configuration: ``model``, a ``part`` of a model, ``loss``,
``reader``, ... What cvtrain's yamls name there is all that a configuration may build there without
``trust=``. Reads YAML alone; no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cvtrain.errors import UsageError

SLOTS = (
    *("model", "part", "backbone", "loss", "reader", "proposals", "task", "augment"),
    *("optimizer", "callbacks", "logger"),
)
"""Places of a configuration in which something is built."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def package_conf() -> Path:
    """The folder of cvtrain's own configuration: in the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UsageError(f"the installation is broken: no conf/config.yaml in {package}; reinstall")


def slot_of(path: str) -> str:
    """The slot of a node at a dotted path (``model.rpn``, ``augment.transforms[0]``); "" for none.

    Below a model lie its parts, which may be backbones and losses too; below a loss other losses.
    """
    head, *rest = re.findall(r"[^.\[\]]+", path) or [""]
    if head == "model" and rest:
        return "part"
    if head == "data" and rest == ["reader"]:
        return "reader"
    if head in ("callbacks", "logger"):
        return head if len(rest) == 1 else ""
    if head in ("augment", "loss"):
        return head
    return head if head in SLOTS and not rest else ""


@functools.cache
def shipped_targets() -> Mapping[str, frozenset[str]]:
    """Slot -> every ``_target_`` that cvtrain's own yamls name there."""
    found: dict[str, set[str]] = {slot: set() for slot in SLOTS}
    conf = package_conf()
    for path in sorted(conf.rglob("*.yaml")):
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
        group = path.relative_to(conf).parts[0]
        is_global = isinstance(content.get(group), Mapping)
        for where, target in targets(content if is_global else {group: content}):
            slot = slot_of(where)
            if slot:
                tasks = content["model"]["tasks"] if "${task.name}" in target else [""]
                found[slot] |= {target.replace("${task.name}", task) for task in tasks}
    found["part"] |= found["backbone"] | found["loss"]
    return {slot: frozenset(names) for slot, names in found.items()}


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` in a tree, as (dotted path of its node, target)."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")
