"""Starting a DeconvNet: VGG-16 with batch norm from ImageNet, or a DeconvNet that was trained.

torchvision's and timm's files name the convolutions alike; of the first the connected layers are
matrices, of the second convolutions. They have no batch norm behind the connected layers, ours keep
their start.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor, nn

from cvtrain.errors import CheckpointError
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.backbones.weights import adapt_channels, adapted_text
from cvtrain.models.backbones.weights_file import read_weights, refuse_not_finite

log = logging.getLogger(__name__)

NAME = "vgg16_bn"
FIRST = "features.0.weight"
_NAMES = (
    (r"^body\.", ""),
    (r"^(pre_logits\.fc1|classifier\.0)\.", "fc6.0."),
    (r"^(pre_logits\.fc2|classifier\.3)\.", "fc7.0."),
)
_CLASSES = "score."


def load_encoder(model: nn.Module, path: str | Path | None) -> str:
    """Fill a ``DeconvNet`` as far as a file goes, and say what was taken.

    Args:
        model: it.
        path: a file of VGG-16 with batch norm, a checkpoint or a run with such a backbone, or of
            this model; None: timm's weights are fetched.

    Returns:
        One line, which is logged as well.

    Raises:
        UsageError: there is no such file.
        RunError: they could not be fetched.
        CheckpointError: the file is damaged, holds another network's, or such as are not finite.
    """
    if path is None:
        source, given = "model.pretrained=true", TimmBackbone(NAME, pretrained=True).state_dict()
        found = None
    else:
        found = read_weights(path, "model.weights", whole=True)
        source, given = f"model.weights={found.path}", dict(found.state)
    state = {_ours(name): value for name, value in given.items()}
    if FIRST not in state or "features.1.running_mean" not in state:
        raise CheckpointError(
            f"{source} holds no VGG-16 with batch norm (it has no {FIRST} or no batch norm behind "
            "it): give a file of timm's or torchvision's vgg16_bn, or a run of model=deconvnet"
        )
    own = model.state_dict()
    taken, notes = {}, []
    for name, value in own.items():
        other = state.get(name)
        if other is None or name.startswith("normalize."):
            continue
        if name.startswith("fc") and other.ndim == 2:
            other = _as_convolution(other, value)
        if name == FIRST and other.shape[1] != value.shape[1]:
            notes.append(adapted_text(other.shape[1], value.shape[1]))
            other = adapt_channels(other, value.shape[1])
        if other.shape == value.shape:
            taken[name] = other
    if FIRST not in taken:
        raise CheckpointError(
            f"{source} is of another width: its first layer has {len(state[FIRST])} channels, "
            f"model.width={len(own[FIRST])}"
        )
    if found is not None:
        refuse_not_finite(found, taken)
    model.load_state_dict(taken, strict=False)
    total = sum(not name.startswith("normalize.") for name in own)
    left = {name.split(".")[0] for name in own if name not in taken} - {"normalize"}
    line = f"{source}: took {len(taken)} of the model's {total} tensors"
    if left:
        line += f"; random start in {', '.join(sorted(left))}"
    line = "; ".join([line, *notes])
    log.log(
        logging.WARNING if left - {"fc6", "fc7", "unfc6", "levels", "score"} else logging.INFO, line
    )
    return line


def _ours(name: str) -> str:
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name


def _as_convolution(matrix: Tensor, like: Tensor) -> Tensor:
    """``(O, C h w)`` -> ``(O, C, h, w)`` where that is the shape of ``like``."""
    fits = matrix.shape[0] == like.shape[0] and matrix.numel() == like.numel()
    return matrix.reshape(like.shape) if fits else matrix
