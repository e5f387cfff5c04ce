"""A small darknet-style network for CPUs and demonstrations.

Ours; after the 9-layer "fast" network of Redmon et al. 2015, arXiv 1506.02640, section 2.2, and the
batch norm of YOLO9000 (Redmon & Farhadi 2016, arXiv 1612.08242): 3 x 3 convolutions, batch norm,
leaky ReLU (0.1), channels doubled wherever the resolution halves. A strided convolution halves it
instead of max pooling: that spares the convolutions at full resolution, most of such a network's
time on a CPU. A last 1 x 1 convolution narrows the map, as the bottlenecks of YOLO's 24 layers do,
so that connected layers on it stay small.

``padded=False`` leaves the padding out: what the network says of a window that is cut out of an
image is then what it says of that place in the whole image (backbone=window_net; layers/dense.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from cvtrain.layers.conv import ConvBlock
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.weights import load_weights


class DarknetTiny(Backbone):
    """Stages of 3 x 3 convolutions, the first of each with stride 2.

    Maps: ``widths[i]`` channels at stride ``2 ** (i + 1)``; the last has ``narrow`` channels.

    Args:
        widths: channels of each stage.
        blocks: convolutions in each stage, at least 1.
        narrow: channels of the 1 x 1 convolution at the end of the last stage; None: no such.
        padded: zeros around every map, so that none is smaller than the image over its stride.
        in_channels: channels of the images.
        weights: a file to start from.

    Raises:
        ValueError: ``widths`` and ``blocks`` differ in length, or a stage without a convolution.
        UsageError, CheckpointError: ``weights`` cannot be taken.
    """

    architecture = "darknet_tiny"

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 1, 1, 2),
        narrow: int | None = 32,
        padded: bool = True,
        in_channels: int = 3,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or min(blocks) < 1:
            raise ValueError(
                f"widths={list(widths)} blocks={list(blocks)}: one number each a stage, blocks >= 1"
            )
        self.in_channels = in_channels
        self.channels = list(widths)
        self.blocks = nn.ModuleList()
        previous = in_channels
        for width, count in zip(widths, blocks, strict=True):
            padding = None if padded else 0
            convs = [ConvBlock(previous, width, stride=2, padding=padding)]
            convs += [ConvBlock(width, width, padding=padding) for _ in range(count - 1)]
            if narrow is not None and len(self.blocks) == len(widths) - 1:
                convs.append(ConvBlock(width, narrow, kernel=1))
                self.channels[-1] = narrow
            self.blocks.append(nn.Sequential(*convs))
            previous = width
        self.strides = [2 ** (i + 1) for i in range(len(widths))]
        self.num_features = self.channels[-1]
        for count in reversed(blocks) if not padded else ():
            self.minimum_size = 2 * (self.minimum_size + 2 * (count - 1)) + 1
        if weights is not None:
            load_weights(self, weights)

    def truncate(self, index: int) -> None:
        for values in (self.channels, self.strides, self.blocks):
            del values[index + 1 :]

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x.shape[-2:])
        maps = []
        for stage in self.blocks:
            x = stage(x)
            maps.append(x)
        return maps
