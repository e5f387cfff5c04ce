"""Feature pyramids over any backbone: maps of one depth at strides that double.

Paper: Lin et al. 2017, "Feature Pyramid Networks for Object Detection", arXiv 1612.03144; the
blocks are torchvision's. Coarser levels are convolutions of stride 2 on top (RetinaNet) or a
pooling (the paper).

A backbone rarely has a map of every stride wanted (a ViT has one in all). The map whose stride is
nearest then stands in for it, resized: averaged where it is finer, interpolated where it is
coarser. Exact strides are left alone, so that with ResNets this is the paper's pyramid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from cvtrain.layers.pad import conv_down

Extra = Literal["map", "pyramid", "pool"]

FARTHEST = 4
"""A map stands in for one of a stride up to so many times its own, or so many times smaller."""


def nearest_maps(strides: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """For each stride wanted the index of the map nearest to it; of two as near the coarser.

    Raises:
        ValueError: a stride more than 4 times away from every map's.
    """
    chosen = []
    for stride in wanted:
        distance = [abs(math.log2(s / stride)) for s in strides]
        best = min(range(len(strides)), key=lambda i: (distance[i], -strides[i]))
        if distance[best] > math.log2(FARTHEST):
            have = ", ".join(map(str, strides))
            raise ValueError(
                f"maps of stride {', '.join(map(str, wanted))} are needed, this backbone has them "
                f"at {have}, which is too far from {stride}: choose another backbone"
            )
        chosen.append(best)
    return chosen


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map ``(B, C, h, w)`` at ``size`` (H, W): averaged down or interpolated up; or as it is."""
    if tuple(x.shape[-2:]) == size:
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class FPN(nn.Module):
    """Backbone maps -> ``levels`` maps of ``channels`` channels, the finest first.

    Args:
        in_channels: channels of the backbone's maps.
        in_strides: their strides.
        channels: of every level.
        finest: stride of the first level, pixels (8: P3; 4: P2).
        laterals: levels made from maps of the backbone; a coarser map it has beyond them (YOLO's 24
            layers end at stride 64) makes one more.
        levels: levels in all.
        extra: how the levels above are made. ``map``: 3 x 3 convolutions of stride 2, the first on
            the backbone's coarsest map (C5, RetinaNet); ``pyramid``: on the coarsest level (P5,
            FCOS); ``pool``: every second pixel of the level below (FPN).

    Attributes:
        strides: of the levels.

    Raises:
        ValueError: strides the backbone is too far from, levels that make no sense.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        channels: int = 256,
        finest: int = 8,
        laterals: int = 3,
        levels: int = 5,
        extra: Extra = "map",
    ) -> None:
        super().__init__()
        if extra not in get_args(Extra):
            raise ValueError(f"extra={extra}: expected {' | '.join(get_args(Extra))}")
        if not 1 <= laterals <= levels:
            raise ValueError(f"laterals={laterals} levels={levels}: give 1 <= laterals <= levels")
        self.strides = [finest * 2**i for i in range(levels)]
        while laterals < levels and in_strides[-1] >= self.strides[laterals]:
            laterals += 1
        self.channels = channels
        self.extra = extra
        self.sources = nearest_maps(in_strides, self.strides[:laterals])
        self.pyramid = FeaturePyramidNetwork([in_channels[i] for i in self.sources], channels)
        count = 0 if extra == "pool" else levels - laterals
        first = in_channels[self.sources[-1]] if extra == "map" else channels
        self.convs = nn.ModuleList()
        for i in range(count):
            conv = nn.Conv2d(channels if i else first, channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.convs.append(conv)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """The backbone's maps of images of (height, width) pixels -> one map a level.

        Level i is ``(B, channels, ceil(H / strides[i]), ceil(W / strides[i]))``.
        """
        height, width = image_size
        chosen = {}
        for stride, source in zip(self.strides, self.sources, strict=False):
            size = (-(-height // stride), -(-width // stride))
            chosen[str(stride)] = resized(maps[source], size)
        top = list(chosen.values())[-1]
        out = list(self.pyramid(chosen).values())
        if self.extra == "pool":
            while len(out) < len(self.strides):
                out.append(F.max_pool2d(out[-1], kernel_size=1, stride=2))
            return out
        x = top if self.extra == "map" else out[-1]
        for i, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            x = conv_down(conv, F.relu(x) if i else x)
            out.append(x)
        return out
