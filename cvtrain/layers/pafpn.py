"""A pyramid that goes down and up again: YOLOX's neck.

Papers: Liu et al. 2018, "Path Aggregation Network", arXiv 1803.01534; with CSP blocks as in Ge et
al. 2021, "YOLOX", arXiv 2107.08430 (that of YOLOv5). Maps are joined as channels, not added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.csp import CSP, Scale, conv, conv3
from cvtrain.layers.fpn import nearest_maps, resized

UNITS = 3
"""Units of a block of the large model."""


class PAFPN(nn.Module):
    """Backbone maps -> levels at strides 8, 16 and 32, of the widths in ``channels``.

    A backbone without a map of one of these strides lends the nearest, resized, see layers/fpn.py.

    Args:
        in_channels: channels of the backbone's maps.
        in_strides: their strides.
        channels: of the levels, the finest first; as many levels as numbers.
        scale: units of the blocks, and whether they are depthwise separable.
        finest: stride of the first level, pixels.
        block: what joins two maps, of (inputs, outputs) channels; None: a CSP block.

    Attributes:
        strides: of the levels.

    Raises:
        ValueError: strides that the backbone is too far from.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        channels: Sequence[int],
        scale: Scale,
        finest: int = 8,
        block: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.strides = [finest * 2**i for i in range(len(channels))]
        self.channels = list(channels)
        self.sources = nearest_maps(in_strides, self.strides)
        inputs = [in_channels[i] for i in self.sources]
        units, depthwise = scale.units(UNITS), scale.depthwise
        if block is None:
            block = partial(CSP, count=units, shortcut=False, depthwise=depthwise)
        self.narrow, self.down = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.up = nn.ModuleList(), nn.ModuleList()
        above = inputs[-1]
        for i in reversed(range(len(channels) - 1)):  # from the coarsest level to the finest
            width = channels[i]
            self.narrow.append(conv(above, width))
            self.down.append(block(width + inputs[i], width))
            above = width
        for i, width in enumerate(channels[1:]):  # and back
            below = channels[i]
            self.shrink.append(conv3(below, below, stride=2, depthwise=depthwise))
            self.up.append(block(2 * below, width))

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """The backbone's maps of images of (height, width) pixels -> one map a level.

        Level i is ``(B, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))``.
        """
        sizes = [tuple(-(-side // s) for side in image_size) for s in self.strides]
        chosen = [resized(maps[k], (h, w)) for k, (h, w) in zip(self.sources, sizes, strict=True)]
        x, kept = chosen[-1], []
        for narrow, down, lateral in zip(self.narrow, self.down, chosen[-2::-1], strict=True):
            x = narrow(x)
            kept.append(x)
            x = F.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            x = down(torch.cat([x, lateral], dim=1))
        out = [x]
        for shrink, up, lateral in zip(self.shrink, self.up, reversed(kept), strict=True):
            x = up(torch.cat([shrink(x), lateral], dim=1))
            out.append(x)
        return out
