"""The ``augment`` node: its keys, its families, what a strength means. No albumentations here.

A family is an entry of the node with a name of its own and a list ``transforms``, so that several
compose (``augment=[geometric,weather]``). It runs at its ``strength``, 0..1: a number in its list
may be written ``{weak: 0, strong: 30}`` and stands for ``weak + strength * (strong - weak)``. An
entry with ``_target_`` is a family of that one transform (``augment.randaugment.magnitude=12``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvtrain.errors import UsageError

FAMILIES = ("geometric", "color", "occlusion", "weather")
"""The order in which composed families run, whatever the order they were typed in; then others."""

DEFAULTS: dict[str, Any] = {
    "transforms": [],
    "mosaic": 0.0,
    "copy_paste": 0.0,
    "mixup": 0.0,
    "mixup_alpha": 0.2,
    "cutmix": 0.0,
    "cutmix_alpha": 1.0,
    "close_epoch": None,
    "object_crops": None,
    "min_visibility": 0.1,
    "min_area": 1.0,
}
"""The keys of a node beside ``name`` and the families, as in conf/config.yaml."""

CROPS = ("first_stage_epochs", "context", "min_iou")
"""The keys of ``object_crops``."""

MIXING = ("mixup", "cutmix", "mosaic", "copy_paste")
"""Probabilities of what makes one image of several: what ``close_epoch`` ends."""

SERVES = {
    "mixup": ("classification", "multilabel_classification", "detection"),
    "cutmix": ("classification", "multilabel_classification"),
    "mosaic": ("detection", "semantic_segmentation", "instance_segmentation"),
    "copy_paste": ("instance_segmentation",),
}
"""The tasks that each of ``MIXING`` is for."""

_WHY = {
    "mixup": "blends whole images",
    "cutmix": "mixes whole images and their classes",
    "mosaic": "makes an image of many objects",
    "copy_paste": "cuts objects out by their masks",
}
_SCALED = frozenset({"weak", "strong"})


def settled(augment: Mapping[str, Any] | None) -> dict[str, Any]:
    """The node with its defaults filled in, its values checked.

    Raises:
        UsageError: an unknown key or a value out of range.
    """
    node = {**DEFAULTS, "transforms": []}
    for key, value in (augment or {}).items():
        family = isinstance(value, Mapping)
        if key not in DEFAULTS and key != "name" and not family and value is not None:
            known = ", ".join(["name", *DEFAULTS])
            raise UsageError(f"augment.{key} is not known; known: {known}, and families")
        if family or key in DEFAULTS or key == "name":
            node[key] = value
    for key in (*MIXING, "min_visibility"):
        _number(f"augment.{key}", node[key], 1.0)
    _number("augment.min_area", node["min_area"], float("inf"))
    for key in ("mixup", "cutmix"):
        alpha = node[f"{key}_alpha"]
        if node[key]:
            _number(f"augment.{key}_alpha", alpha, float("inf"))
            if not alpha:
                raise UsageError(f"augment.{key}_alpha=0: give a number above 0")
    if node["mixup"] + node["cutmix"] > 1:
        raise UsageError(
            f"augment.mixup={node['mixup']:g} and augment.cutmix={node['cutmix']:g} are shares of "
            "the batches: together at most 1"
        )
    if not is_close_epoch(node["close_epoch"]):
        raise UsageError(
            f"augment.close_epoch={node['close_epoch']}: give a number of epochs, a part of the "
            "run below 1, or null"
        )
    if not isinstance(node["transforms"], list):
        raise UsageError(f"augment.transforms={node['transforms']!r}: give a list of transforms")
    for name in families(node):
        _check_family(name, node[name])
    _check_crops(node)
    node["name"] = title(node)
    return node


def _number(name: str, value: Any, most: float) -> None:
    if not _is_number(value) or not 0 <= value <= most:
        upper = f"from 0 to {most:g}" if most < float("inf") else "from 0"
        raise UsageError(f"{name}={value}: give a number {upper}")


def _check_family(name: str, family: Mapping[str, Any]) -> None:
    if "_target_" in family:
        return
    for key in family:
        if key not in ("strength", "transforms"):
            raise UsageError(f"augment.{name}.{key} is not known; known: strength, transforms")
    _number(f"augment.{name}.strength", family.get("strength", 1.0), 1.0)
    if not isinstance(family.get("transforms"), list):
        raise UsageError(f"augment.{name} is no family: give it a list, augment.{name}.transforms")


def _check_crops(node: Mapping[str, Any]) -> None:
    crops = node["object_crops"]
    if crops is None:
        return
    if not isinstance(crops, Mapping) or set(crops) != set(CROPS):
        raise UsageError(f"augment.object_crops={crops}: give {', '.join(CROPS)}, or null")
    if not is_close_epoch(crops["first_stage_epochs"]):
        raise UsageError(
            f"augment.object_crops.first_stage_epochs={crops['first_stage_epochs']}: give a number "
            "of epochs, a part of the run below 1, or null: all"
        )
    context, iou = crops["context"], crops["min_iou"]
    if not _is_number(context) or context < 1:
        raise UsageError(f"augment.object_crops.context={context}: give a number from 1")
    if not _is_number(iou) or not 0 < iou <= 1:
        raise UsageError(f"augment.object_crops.min_iou={iou}: give a number above 0, at most 1")
    if node["mosaic"]:
        raise UsageError(
            f"augment.mosaic={node['mosaic']:g} and augment.object_crops exclude each other: four "
            "images in one have no object in the middle"
        )


def families(node: Mapping[str, Any]) -> list[str]:
    """The names of a node's families, in the order in which they run."""
    there = [k for k, value in node.items() if isinstance(value, Mapping) and k not in DEFAULTS]
    known = [name for name in FAMILIES if name in there]
    return known + [name for name in there if name not in FAMILIES]


def title(node: Mapping[str, Any]) -> str:
    """What a node is called: its own ``name`` and its families', joined by ``+``."""
    own = node.get("name")
    parts = str(own).split("+") if own else (["transforms"] if node.get("transforms") else [])
    parts += [name for name in families(node) if name not in parts]
    parts = [p for p in parts if p != "none"]
    return "+".join(parts) or "none"


def transforms_of(name: str, family: Mapping[str, Any]) -> list[Any]:
    """The list of a family at its strength.

    Raises:
        UsageError: ``{weak, strong}`` without one of them, or of something else than numbers.
    """
    if "_target_" in family:
        return [dict(family)]
    return scaled(family["transforms"], family.get("strength", 1.0), f"augment.{name}.transforms")


def scaled(node: Any, strength: float, path: str) -> Any:
    """A tree with every ``{weak, strong}`` made a number; two whole ones give a whole one.

    Raises:
        UsageError: one of the two is missing or no number.
    """
    if isinstance(node, (list, tuple)):
        return [scaled(value, strength, f"{path}.{i}") for i, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if not _SCALED & set(node):
        return {key: scaled(value, strength, f"{path}.{key}") for key, value in node.items()}
    weak, strong = node.get("weak"), node.get("strong")
    if set(node) != _SCALED or not _is_number(weak) or not _is_number(strong):
        raise UsageError(f"{path}={dict(node)}: give two numbers, {{weak: 0, strong: 1}}")
    value = weak + strength * (strong - weak)  # type: ignore[operator]
    return round(value) if isinstance(weak, int) and isinstance(strong, int) else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_close_epoch(value: Any) -> bool:
    """Whether ``augment.close_epoch`` takes a value: null, a whole number, a part below 1."""
    if value is None:
        return True
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and value >= 0) or (isinstance(value, float) and 0 < value < 1)


def shown_as(config: Mapping[str, Any]) -> str:
    """``task.inference.mode`` as training shows images: tiles of the original, or fitted."""
    transforms = (config.get("augment") or {}).get("transforms") or []
    kept = any(isinstance(t, Mapping) and t.get("of") == "original" for t in transforms)
    return "tiles" if kept else "fit"


def refuse_views(config: Mapping[str, Any]) -> None:
    """Raise UsageError where a model that is given boxes is to be shown images otherwise than
    fitted and once (``task.inference``, its mode settled).
    """
    inference = (config.get("task") or {}).get("inference")
    if not inference or not config.get("proposals"):
        return
    if inference["mode"] != "fit" or inference["flip"] or list(inference["scales"]) != [1.0]:
        raise UsageError(
            "task.inference: a model that is given boxes looks at the fitted image, once; use "
            "mode=fit without flip and scales, or proposals=null"
        )


def closing_epoch(
    close_epoch: float | None, epochs: int | None, key: str = "close_epoch"
) -> int | None:
    """The first epoch (from 0) without mixup, cutmix, mosaic and copy-paste; None: none is.

    Args:
        close_epoch: of the node: that many epochs have them, or that part of the run.
        epochs: of the whole run.
        key: what a message calls it; the first stage of ``object_crops`` is said in the same way.

    Raises:
        UsageError: a part of a run whose epochs are not known.
    """
    if close_epoch is None or isinstance(close_epoch, int):
        return close_epoch
    if epochs is None:
        raise UsageError(f"augment.{key}={close_epoch}: give a number of epochs here")
    return round(close_epoch * epochs)


def refuse_task(node: Mapping[str, Any], task: str) -> None:
    """Raise UsageError where the node does something that this task cannot take."""
    if node.get("object_crops") and task != "semantic_segmentation":
        raise UsageError(
            "augment.object_crops cuts objects out by a mask of classes: it serves "
            f"task=semantic_segmentation, not {task}"
        )
    for key in MIXING:
        value = node.get(key)
        if value and task not in SERVES[key]:
            others = [k for k in MIXING if task in SERVES[k]]
            instead = f"; for {task} there is augment.{' and augment.'.join(others)}"
            raise UsageError(
                f"augment.{key}={value} {_WHY[key]}: it serves task={' | '.join(SERVES[key])}, "
                f"not {task}{instead if others else '; set it 0'}"
            )
