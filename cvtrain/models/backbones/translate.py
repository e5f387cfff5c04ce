"""Weights files of other projects in timm's names.

timm knows the names that the authors of an architecture use (``checkpoint_filter_fn`` of its
module: VGG's and ConvNeXt's, Swin's, DINOv2's, position embeddings of another image size); it is
asked first. torchvision's names differ beyond renaming for MobileNetV3, EfficientNet, ConvNeXt and
Swin, but its networks have the same layers in the same order, so those are matched by order: only
where *every* tensor of the backbone fits the one in its place and no more than a classifier is left
over.

timm's MobileNetV3 has an epsilon of 1e-5 in its batch norms where torchvision's has 1e-3: the same
weights give outputs that differ in the third digit.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from torch import Tensor

_TORCHVISION = re.compile(r"(features\.\d|encoder\.layers\.encoder_layer_\d)")
_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"\.ln_1\.", ".norm1."),
    (r"\.ln_2\.", ".norm2."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
COUNTERS = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Last parts of names of buffers that are counted or computed, not learned."""


_UNEXPECTED = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What timm's conversions raise on a file of another network, or of another signature."""


def translations(body: Any, state: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    """A file's tensors under timm's names, each way that yields something.

    Args:
        body: a timm model.
        state: the file's tensors, without a prefix that all of them share.
    """
    found = []
    if any(_TORCHVISION.match(name) for name in state):
        renamed = {_vit(name): value for name, value in state.items()}
        if renamed.keys() != state.keys():
            found.append(("torchvision's names translated", renamed))
        ordered = _by_order(body, state)
        if ordered:
            found.append(("torchvision's names translated, by the order of the layers", ordered))
    module = sys.modules[type(body).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is not None:
        how, renamed = found[0] if found else ("", state)
        converted = _converted(convert, renamed, body)
        if converted is not None:
            message = "through timm's own conversion"
            found.append((f"{how}, {message}" if how else message, converted))
    return found


def _vit(name: str) -> str:
    for pattern, new in _VIT:
        name = re.sub(pattern, new, name)
    return name


def _converted(convert: Any, state: dict[str, Tensor], body: Any) -> dict[str, Tensor] | None:
    """Timm's conversion, or None where the file is not what it expects."""
    for arguments in ((dict(state), body), (dict(state),)):
        try:
            converted = convert(*arguments)
        except _UNEXPECTED:
            continue
        if isinstance(converted, dict):
            return {k: v for k, v in converted.items() if isinstance(v, Tensor)}
    return None


def _order(state: dict[str, Tensor]) -> list[str]:
    """A file's names, Swin's patch merging as timm has it: the norm before the reduction."""
    names: list[str] = []
    waiting = ""
    for name in state:
        if waiting and not name.startswith(waiting.removesuffix("reduction.weight") + "norm."):
            names.append(waiting)
            waiting = ""
        if name.endswith(".reduction.weight"):
            waiting = name
        else:
            names.append(name)
    return names


def _by_order(body: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors matched by their place; empty where one does not fit."""
    own = [(k, v) for k, v in body.state_dict().items() if not k.endswith(COUNTERS)]
    theirs = [state[k] for k in _order(state) if not k.endswith(COUNTERS)]
    if not len(own) <= len(theirs) <= len(own) + 2:  # a classifier: weight and bias
        return {}
    matched = {}
    for i, ((name, mine), value) in enumerate(zip(own, theirs, strict=False)):
        if i == 0 and value.ndim == mine.ndim == 4 and value.shape[0] == mine.shape[0]:
            matched[name] = value  # another number of image channels is adapted later
            continue
        if [n for n in value.shape if n > 1] != [n for n in mine.shape if n > 1]:
            return {}
        matched[name] = value.reshape(mine.shape)
    classifier = str(getattr(body, "pretrained_cfg", {}).get("classifier") or "classifier")
    rest = theirs[len(own) :]
    return matched | dict(zip((f"{classifier}.weight", f"{classifier}.bias"), rest, strict=False))
