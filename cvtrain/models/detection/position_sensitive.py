"""What R-FCN and Light-Head R-CNN share: one backbone, one stride, maps that know positions.

Regions are proposed on the map of stride 16 (conv4 of a ResNet), and read from maps that are made
of the last stage's (conv5). As in the papers that stage runs at stride 16, too: with a ResNet by
dilation (``Backbone.dilate``, the a trous trick; weights from ImageNet serve as they are), with
other networks its map is resized.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from cvtrain.layers.fpn import nearest_maps, resized
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.two_stage import TwoStage

STRIDE = 16
"""Of all maps."""
MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""


class PositionSensitive(TwoStage):
    """Backbone, the map that regions are proposed on, the map that they are read from.

    Args:
        backbone: its map nearest to stride 16, and its last map.
        num_classes: K.

    Attributes:
        proposing_channels, top_channels: of the two maps.

    Raises:
        ValueError: a backbone without a map near stride 16.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        [self.source] = nearest_maps(backbone.strides, [STRIDE])
        self.dilated = backbone.dilate(STRIDE)
        self.proposing_channels = backbone.channels[self.source]
        self.top_channels = backbone.channels[-1]

    @abstractmethod
    def position_maps(self, top: Tensor) -> list[Tensor]:
        """The last map ``(B, top_channels, h, w)`` -> maps that regions are read from."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` of any size -> the map for proposals, then those of positions."""
        x = pad_to_multiple(self.normalize(images), MULTIPLE)
        size = (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)
        found = self.backbone(x)
        return [resized(found[self.source], size), *self.position_maps(resized(found[-1], size))]

    def proposing(self, maps: list[Tensor]) -> list[Tensor]:
        """The first alone."""
        return maps[:1]


def start(layer: nn.Conv2d, deviation: float) -> nn.Conv2d:
    """Normally distributed weights of that deviation, no bias; returns the layer."""
    nn.init.normal_(layer.weight, std=deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
