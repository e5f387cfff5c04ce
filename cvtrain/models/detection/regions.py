"""What the detectors that classify regions share: maps of the whole image, features of a box.

Two forms, by ``neck``:

- ``c4``: one map of stride 16 (conv4 of a ResNet, conv5_3 of VGG; of other networks the map whose
  stride is nearest, resized), as in Fast and Faster R-CNN.
- ``fpn``: a feature pyramid; a box is read from the level that fits its size (Lin et al. 2017,
  arXiv 1612.03144).

And two kinds of layers on a region's map, by ``top``: ``fc``, connected layers of one's own; and,
with ``c4``, ``backbone``: the backbone's own layers after stride 16, which for VGG are fc6 and fc7
(with their weights from ImageNet, if it has them), for a ResNet its last stage and the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from cvtrain.layers.fpn import FPN, nearest_maps, resized
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.layers.roi import Method, RoIPool
from cvtrain.layers.roi_head import BoxHead
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model

Neck = Literal["c4", "fpn"]
Top = Literal["fc", "backbone"]

CHANNELS, HIDDEN = 256, (1024, 1024)
"""Of the pyramid, and of the connected layers (Lin et al. 2017, section 5.2)."""
STRIDE = 16
"""Of the one map."""
MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""


class RegionModel(Model):
    """Backbone, neck, and from a box on it to classes and codes.

    Args:
        backbone: its maps are used.
        num_classes: K.
        neck: ``c4`` or ``fpn``.
        top: ``fc`` or ``backbone``.
        channels: of the pyramid; None: 256.
        hidden: units of the connected layers, with ``top=fc``; None: 1024, 1024.
        roi: ``align`` or ``pool``.
        roi_size: rows and columns of a region's map; None: what ``top=backbone`` takes, else 7.

    Attributes:
        map_channels, strides: of the maps.

    Raises:
        ValueError: an unknown form, a backbone without the maps or layers it needs.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        neck: Neck = "fpn",
        top: Top = "fc",
        channels: int | None = None,
        hidden: Sequence[int] | None = None,
        roi: Method = "align",
        roi_size: int | None = None,
    ) -> None:
        super().__init__()
        if neck not in get_args(Neck):
            raise ValueError(f"neck={neck}: expected {' | '.join(get_args(Neck))}")
        if top not in get_args(Top):
            raise ValueError(f"top={top}: expected {' | '.join(get_args(Top))}")
        if top == "backbone" and neck == "fpn":
            raise ValueError("top=backbone needs neck=c4: a pyramid uses all of the backbone")
        if channels is not None and neck == "c4":
            raise ValueError(f"channels={channels} would not be read: neck=c4 has the backbone's")
        if hidden is not None and top == "backbone":
            raise ValueError(
                f"hidden={list(hidden)} would not be read: with top=backbone the layers on a "
                "region are the backbone's"
            )
        channels = CHANNELS if channels is None else channels
        hidden = HIDDEN if hidden is None else hidden
        if channels < 1 or min(hidden, default=1) < 1:
            raise ValueError(f"channels={channels} hidden={list(hidden)} must be at least 1")
        self.num_classes = num_classes
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.top = top
        side = 7
        if top == "backbone":
            width, side = backbone.split(STRIDE)
        else:
            backbone.set_output("maps")
        self.neck: FPN | None = None
        self.source = 0
        if neck == "fpn":
            self.neck = FPN(
                backbone.channels, backbone.strides, channels, 4, laterals=4, extra="pool"
            )
            self.strides, self.map_channels = self.neck.strides, channels
        else:
            [self.source] = nearest_maps(backbone.strides, [STRIDE])
            self.strides, self.map_channels = [STRIDE], backbone.channels[self.source]
            if top == "fc":
                backbone.truncate(self.source)
        # The coarsest level of a pyramid is the network's that proposes (FPN paper, section 4.1).
        self.pool = RoIPool(self.strides[:4], side if roi_size is None else roi_size, roi)
        if top == "backbone":
            self.head = BoxHead(width, 0, num_classes, ())
        else:
            self.head = BoxHead(self.map_channels, self.pool.size, num_classes, hidden)

    def maps(self, images: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` of any size -> a map a stride, ``(B, map_channels, H_i, W_i)``."""
        x = pad_to_multiple(self.normalize(images), MULTIPLE)
        size = (x.shape[-2], x.shape[-1])
        found = self.backbone(x)
        if self.neck is not None:
            return self.neck(found, size)
        return [resized(found[self.source], (size[0] // STRIDE, size[1] // STRIDE))]

    def classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes ``(N_b, 4)`` of each image, R in all -> logits ``(R, 1 + K)``, the background
        first, and codes ``(R, K, 4)``.
        """
        return self.head(self.features(maps, boxes))

    def features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Boxes ``(N_b, 4)`` of each image, R in all -> ``(R, C, n, n)``, what ``head`` takes."""
        x = self.pool(maps[: len(self.pool.strides)], boxes)  # (R, C, size, size)
        return self.backbone.forward_tail(x) if self.top == "backbone" else x
