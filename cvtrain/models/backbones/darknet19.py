"""Darknet-19, the network of YOLO9000.

Paper: Redmon, Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv 1612.08242, table 6. Written
from the paper.

18 convolutions of 3 x 3 and 1 x 1 with batch norm and leaky ReLU (0.1), five 2 x 2 max poolings.
The nineteenth, 1 x 1 to the classes, is the classifier's: it has no activation, so averaging its
map, as the paper does, is the same as a linear layer on the average of the last map, which is
``pooled``. 19,817,376 parameters, 20.8 million with 1000 classes. 224 x 224 gives 7 x 7 x 1024.

The pooling rounds up, as darknet's own does: any image size gives ``ceil(side / stride)``.

Deviations: weights start as He et al. 2015 (the paper does not say how).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.weights import load_weights

# (kernel, channels) of each convolution, a row for each stride; 2 x 2 pooling between the rows
LAYERS = (
    ((3, 32),),
    ((3, 64),),
    ((3, 128), (1, 64), (3, 128)),
    ((3, 256), (1, 128), (3, 256)),
    ((3, 512), (1, 256), (3, 512), (1, 256), (3, 512)),
    ((3, 1024), (1, 512), (3, 1024), (1, 512), (3, 1024)),
)


class Darknet19(Backbone):
    """Table 6 of the paper up to the last 3 x 3 convolution.

    Maps: 32, 64, 128, 256, 512, 1024 channels at strides 1 to 32, each before its pooling.

    Args:
        in_channels: channels of the images.
        weights: a file to start from.

    Raises:
        UsageError, CheckpointError: ``weights`` cannot be taken.
    """

    architecture = "darknet19"

    def __init__(self, in_channels: int = 3, weights: str | Path | None = None) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.convs = nn.ModuleDict()
        self.last: list[str] = []  # the last convolution of each row
        channels = in_channels
        for row in LAYERS:
            for kernel, width in row:
                name = f"conv{len(self.convs) + 1}"
                self.convs[name] = ConvBlock(channels, width, kernel)
                channels = width
            self.last.append(name)
        self.channels = [row[-1][1] for row in LAYERS]
        self.strides = [2**i for i in range(len(LAYERS))]
        self.num_features = channels
        if weights is not None:
            load_weights(self, weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for name, conv in self.convs.items():
            x = conv(x)
            if name in self.last:
                maps.append(x)
                if name != self.last[-1]:
                    x = F.max_pool2d(x, 2, ceil_mode=True)
        return maps
