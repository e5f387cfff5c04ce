"""Starting a detector from torchvision's weights, trained on COCO: what fits, and what is said.

The classes' layer is taken row by row, for the classes whose names COCO has; the others, and
whatever has another shape, keep their start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = (
    (
        r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)$",
        r"neck.pyramid.\1_blocks.\2.0.\3",
    ),
    (r"^backbone\.fpn\.", "neck.pyramid."),
    (r"^rpn\.head\.conv(\.0\.0)?\.", "rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.codes."),
    (r"^roi_heads\.box_head\.fc6\.", "head.connected.0."),
    (r"^roi_heads\.box_head\.fc7\.", "head.connected.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "head.logits."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "head.codes."),
)


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's Faster R-CNN, of its older files too, under our names."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in _NAMES:
            name, found = re.subn(pattern, new, name)
            if found:
                break
        renamed[name] = value
    return renamed
