"""Starting a detector from torchvision's weights, trained on COCO: what fits, and what is said.

``fasterrcnn_resnet50_fpn`` and ``maskrcnn_resnet50_fpn`` (BSD-3-Clause; 37.0 box AP on COCO, and
37.9 with 34.6 mask AP). The layers that name classes are taken
row by row: the background's, and those of the classes that COCO has by the same name. What has no
counterpart, or another shape (another number of channels or units), keeps its random start.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)

from cvtrain.errors import CheckpointError
from cvtrain.models.backbones.fetch import fetch_file
from cvtrain.models.backbones.weights import adapt_channels, adapted_text
from cvtrain.models.backbones.weights_file import read_weights, refuse_not_finite

log = logging.getLogger(__name__)

FORM = "backbone=resnet50 model.neck=fpn model.top=fc"
"""What the weights fit."""
FIRST = "backbone.body.conv1.weight"
LOGITS, CODES, MASKS = "head.logits.", "head.codes.", "masks.logits."
"""Layers of the classes; torchvision's codes and masks begin with the background's."""

_NAMES = (
    (
        r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)$",  # of older files
        r"neck.pyramid.\1_blocks.\2.0.\3",
    ),
    (r"^backbone\.fpn\.", "neck.pyramid."),
    (r"^rpn\.head\.conv(\.0\.0)?\.", "rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.codes."),
    (r"^roi_heads\.box_head\.fc6\.", "head.connected.0."),
    (r"^roi_heads\.box_head\.fc7\.", "head.connected.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", LOGITS),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", CODES),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"masks.convs.\1."),
    *((rf"^roi_heads\.mask_head\.mask_fcn{i + 1}\.", f"masks.convs.{i}.") for i in range(4)),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "masks.up."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", MASKS),
)
_COUNTER = "num_batches_tracked"
_NEEDED = (FIRST, "backbone.body.layer3.5.conv3.weight", "rpn.conv.weight", LOGITS + "weight")


@dataclass(frozen=True)
class Release:
    """Weights of torchvision's that a model of ours can start from.

    Attributes:
        name: of the system.
        source: where they are, and the categories they know.
        needed: tensors by which a file of them is known, under our names.
    """

    name: str
    source: WeightsEnum
    needed: Sequence[str]


FASTER_RCNN = Release("Faster R-CNN", FasterRCNN_ResNet50_FPN_Weights.COCO_V1, _NEEDED)
MASK_RCNN = Release(
    "Mask R-CNN", MaskRCNN_ResNet50_FPN_Weights.COCO_V1, (*_NEEDED, MASKS + "weight")
)


def takes(architecture: str, neck: str, top: str) -> bool:
    """Whether the weights fit a detector of this form."""
    return f"backbone={architecture} model.neck={neck} model.top={top}" == FORM


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's Faster or Mask R-CNN, of older files too, under our names."""
    renamed = {}
    for name, value in state.items():
        ours = name
        for pattern, new in _NAMES:
            ours, found = re.subn(pattern, new, name)
            if found:
                break
        renamed[ours] = value
    return renamed


def load_coco(
    model: nn.Module, release: Release, class_names: Sequence[str], path: str | Path | None
) -> str:
    """Fill a Faster or Mask R-CNN from torchvision's weights and say what was taken.

    Args:
        model: of the form that ``takes`` accepts.
        release: the weights of the model's system.
        class_names: of its K classes.
        path: a file of these weights, with 91 outputs; None: they are fetched.

    Returns:
        One line, which is logged as well.

    Raises:
        UsageError: there is no such file.
        RunError: they could not be fetched.
        CheckpointError: the file is damaged, holds other weights, or such as are not finite.
    """
    if path is None:
        size = float(release.source.meta["_file_size"])
        what = f"torchvision's {release.name} weights"
        path = fetch_file(
            release.source.url, what, size, "model.weights=FILE in place of model.pretrained=true"
        )
    found = read_weights(path, "model.weights")
    file, state = found.path, translated(found.state)
    categories: list[str] = release.source.meta["categories"]
    _refuse_others(file, state, release, len(categories))
    own = model.state_dict()
    taken, left, notes = {}, [], []
    for name, value in own.items():
        if name.startswith(("normalize.", LOGITS, CODES, MASKS)) or name.endswith(_COUNTER):
            continue
        other = state.get(name)
        if other is not None and name == FIRST and other.shape[1] != value.shape[1]:
            notes.append(adapted_text(other.shape[1], value.shape[1]))
            other = adapt_channels(other, value.shape[1])
        if other is None or other.shape != value.shape:
            left.append(name)
        else:
            taken[name] = other
    rows = _rows(class_names, categories)
    classes, masks = _classes(own, state, rows), _class_masks(own, state, rows)
    left += [name for name in own if name.startswith(MASKS) and not masks]
    total = sum(not k.startswith("normalize.") and not k.endswith(_COUNTER) for k in own)
    message = [
        f"model.weights={file}: took {len(taken)} of the model's {total} tensors",
        _said_of_classes(class_names, rows, bool(classes)),
    ]
    if left:
        named = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        message.append(f"{len(left)} keep their random start ({named})")
    taken |= {**classes, **masks}
    refuse_not_finite(found, taken)
    model.load_state_dict(taken, strict=False)
    line = "; ".join([*message, *notes])
    partial = bool(left) or len(rows) < len(class_names)
    log.log(logging.WARNING if partial else logging.INFO, line)
    return line


def _refuse_others(file: Path, state: Mapping[str, Tensor], release: Release, classes: int) -> None:
    """Raise CheckpointError where it is not that system on ResNet-50 with COCO's classes."""
    missing = [name for name in release.needed if name not in state]
    if missing:
        raise CheckpointError(
            f"{file} holds no {release.name} of torchvision's on ResNet-50 (it has no "
            f"{missing[0]}); a backbone's weights are given by backbone.weights=FILE"
        )
    outputs = len(state[LOGITS + "weight"])
    if outputs != classes:
        raise CheckpointError(
            f"{file} has {outputs} outputs where the weights trained on COCO have {classes}: "
            "which classes these are is not known"
        )


def _rows(names: Sequence[str], categories: Sequence[str]) -> dict[int, int]:
    """Our class -> COCO's output, for the classes it has; spelling aside (traffic_light)."""
    known = {_plain(name): i for i, name in enumerate(categories) if i and name != "N/A"}
    return {k: known[_plain(name)] for k, name in enumerate(names) if _plain(name) in known}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _classes(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], rows: Mapping[int, int]
) -> dict[str, Tensor]:
    """The layers of the classes with the rows that COCO has; empty where their inputs differ."""
    if own[LOGITS + "weight"].shape[1] != state[LOGITS + "weight"].shape[1]:
        return {}
    filled = {}
    for kind in ("weight", "bias"):
        logits, codes = own[LOGITS + kind].clone(), own[CODES + kind].clone()
        their_logits, their_codes = state[LOGITS + kind], state[CODES + kind]
        logits[0] = their_logits[0]
        for ours, theirs in rows.items():
            logits[1 + ours] = their_logits[theirs]
            codes[4 * ours : 4 * ours + 4] = their_codes[4 * theirs : 4 * theirs + 4]
        filled[LOGITS + kind], filled[CODES + kind] = logits, codes
    return filled


def _class_masks(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], rows: Mapping[int, int]
) -> dict[str, Tensor]:
    """The masks of the classes that COCO has; empty without masks, or where their inputs differ."""
    weight = MASKS + "weight"
    if weight not in own or own[weight].shape[1] != state[weight].shape[1]:
        return {}
    filled = {}
    for name in (weight, MASKS + "bias"):
        filled[name] = own[name].clone()
        for ours, theirs in rows.items():
            filled[name][ours] = state[name][theirs]
    return filled


def _said_of_classes(names: Sequence[str], rows: Mapping[int, int], taken: bool) -> str:
    if not taken:
        return "the layers of the classes keep their random start (model.hidden differs)"
    new = [name for k, name in enumerate(names) if k not in rows]
    if not new:
        return f"the outputs of all {len(names)} classes and of the background with them"
    listed = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
    return (
        f"outputs of the background and of {len(rows)} of {len(names)} classes; COCO has no "
        f"{listed}: random start"
    )
