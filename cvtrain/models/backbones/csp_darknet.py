"""CSPDarknet, the backbone of YOLOX, in the sizes nano, tiny, s, m and l.

Papers: Ge et al. 2021, "YOLOX", arXiv 2107.08430, section 2.1 (Darknet-53 with SPP) and table 3
("modified CSPNet" and SiLU of YOLOv5); Wang et al. 2019, "CSPNet", arXiv 1911.11929. Written from
the papers.

A stem that halves the image, four stages that halve it again with a 3 x 3 convolution, each
followed by a CSP block of 3, 9, 9 and 3 residual units (large model); in the last stage, spatial
pyramid pooling stands before the block, whose units have no shortcuts. 64, 128, 256, 512 and 1024
channels, times 0.25 (nano, depthwise separable 3 x 3 convolutions), 0.375, 0.5, 0.75 or 1; units
times 1/3, 1/3, 1/3, 2/3 or 1.

Deviations:

- The stem is a 6 x 6 convolution of stride 2. YOLOX's "Focus" puts the four pixels of each 2 x 2
  into channels and convolves 3 x 3: the same sums, the same weights in another order.
- Batch norm has torch's momentum and eps (the paper does not say): short runs follow sooner.
- Odd sides get a row or column of zeros: any image size gives ``ceil(side / stride)``.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from cvtrain.layers.conv import ConvBlock
from cvtrain.layers.csp import CSP, SPP, STD, Size, conv3, scale_of
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.weights import load_weights

STEM = 64
UNITS = (3, 9, 9, 3)
"""Channels of the stem and units of the stages of the large model; channels double each stage."""


class CSPDarknet(Backbone):
    """Stem and four stages.

    Maps: at strides 2, 4, 8, 16 and 32.

    Args:
        size: nano, tiny, s, m or l.
        in_channels: channels of the images.
        weights: a file to start from.

    Raises:
        ValueError: an unknown size.
        UsageError, CheckpointError: ``weights`` cannot be taken.
    """

    def __init__(
        self, size: Size = "s", in_channels: int = 3, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        scale = scale_of(size)
        self.architecture = f"csp_darknet_{size}"
        self.in_channels = in_channels
        width = scale.channels(STEM)
        act = nn.SiLU(inplace=True)
        self.stem = ConvBlock(in_channels, width, 6, stride=2, padding=2, act=act, std=STD)
        self.channels, self.strides = [width], [2]
        self.blocks = nn.ModuleList()
        for i, count in enumerate(UNITS):
            last = i == len(UNITS) - 1
            layers = [conv3(width, 2 * width, stride=2, depthwise=scale.depthwise)]
            width *= 2
            if last:
                layers.append(SPP(width, width))
            units = scale.units(count)
            layers.append(CSP(width, width, units, not last, scale.depthwise))
            self.blocks.append(nn.Sequential(*layers))
            self.channels.append(width)
            self.strides.append(2 * self.strides[-1])
        self.num_features = width
        if weights is not None:
            load_weights(self, weights)

    def truncate(self, index: int) -> None:
        del self.blocks[index:]
        self.channels, self.strides = self.channels[: index + 1], self.strides[: index + 1]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(pad_to_multiple(x, 2))
        maps = [x]
        for stage in self.blocks:
            x = stage(x)
            maps.append(x)
        return maps
