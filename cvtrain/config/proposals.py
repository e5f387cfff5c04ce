"""The verbs that look at boxes alone, proposals and anchors; and models that are given boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import command
from cvtrain.config.groups import ConfDirs, pick
from cvtrain.config.overrides import Typed, by_key
from cvtrain.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig


WITH_BOXES = ("detection", "localization", "instance_segmentation")
"""Tasks whose objects have boxes: recall can be told."""

OPTIONAL = "optional"
"""``model.proposals`` of a model that takes boxes or does without (``proposals=null``)."""


def implied(verb: str, typed: Sequence[Typed], conf: ConfDirs) -> list[str]:
    """What a verb chooses where neither the user nor an experiment does."""
    given = by_key(typed)
    experiment = given.get("experiment")
    name = "" if experiment is None else str(experiment.value)
    return [
        f"{group}={option}"
        for group, option in command(verb).defaults.items()
        if group not in given and not (name and conf.override_of("experiment", name, group))
    ]


def unread(t: Typed, flat: dict[str, Any], verb: str) -> str:
    """Why such a verb does not read a word; empty if it does."""
    if verb not in ("proposals", "anchors"):
        return ""
    if t.key == "task" and t.value not in WITH_BOXES:
        why = "held against" if verb == "proposals" else "made from"
        return f"{t.text}: {verb} are {why} boxes; omit it: {' | '.join(WITH_BOXES)}"
    if verb == "anchors":
        return ""
    # A generator draws its scenes at the network's size; files have one of their own.
    drawn = "${data.image_size}" in str(pick(flat, "data.scene_size"))
    if t.key == "data.image_size" and not drawn:
        return f"{t.text} would not be read: proposals are made on the original images"
    return ""


def check(config: DictConfig, typed: Sequence[Typed]) -> None:
    """In training, proposals are for models whose yaml says ``proposals: true``, or ``optional``.

    Raises:
        UsageError: typed for another model, or missing for one that cannot do without.
    """
    model = config.model.get("name")
    mine = [t for t in typed if t.key.split(".")[0] == "proposals"]
    if config.model.get("proposals") == OPTIONAL:
        if any(t.kind == "group" and t.value is None for t in mine):
            config.proposals = None
            return
        crops = config.augment.get("object_crops") if config.augment else None
        trained = crops is not None and crops.get("first_stage_epochs") is not None
        if trained or config.model.get("inference") != "whole":
            return
        if mine:
            raise UsageError(
                f"{mine[0].text} would not be read: training looks at no proposals and, with "
                "model.inference=whole, prediction does not either"
            )
        config.proposals = None
        return
    if config.model.get("proposals"):
        if config.proposals is None or any(t.kind == "group" and t.value is None for t in mine):
            raise UsageError(
                f"model={model} is given its boxes: proposals=selective_search, or proposals=file "
                "proposals.path=FILE"
            )
        return
    if mine:
        raise UsageError(f"{mine[0].text} would not be read: model={model} makes its own boxes")
    config.proposals = None


def check_joint(config: DictConfig) -> None:
    """Images with a class alone are for models whose yaml says ``joint: true``.

    Raises:
        UsageError: given to another model, or to be mixed with others.
    """
    root = config.data.get("classification_root")
    if root is None:
        return
    if not config.model.get("joint"):
        raise UsageError(
            f"data.classification_root={root} would not be read: model={config.model.get('name')} "
            "trains on one kind of images; model=yolo9000 takes both"
        )
    if config.augment.get("mixup"):
        raise UsageError(
            f"augment.mixup={config.augment.mixup} does not go with data.classification_root: "
            "images with boxes and images without cannot be blended"
        )
