"""AlexNet.

Paper: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
Networks", NeurIPS 2012, section 3.5 and figure 2. Written from the paper.

Five convolutions with ReLU; the second, fourth and fifth in two groups (the paper's two GPUs);
local response normalization after the first and second (section 3.3); 3 x 3 max pooling of stride 2
after the first, second and fifth (section 3.4); two connected layers of 4096 with dropout 0.5.
Sides of the maps at 224 x 224: 55, 27, 13, then 6 after the last pooling. 2,334,080 parameters in
the convolutions; 60,965,224 with the connected layers and 1000 classes, the paper's "60 million".

Maps end before the poolings, so that the last is conv5's; the connected layers serve ``pooled``
alone: the last pooling, fc6, fc7, what the paper's classifier sees. They are convolutions (6 x 6,
1 x 1) with the paper's weights in them. An image of another size is averaged to 6 x 6 before them.

Deviations: 224 pixels do not give 55 in the paper's own arithmetic; two pixels of padding do.
Weights start as He et al. 2015 with biases 0 (the paper: a normal distribution of deviation 0.01,
some biases 1). ``norm`` other than lrn is not in the paper. Torchvision's "alexnet" is another
network (Krizhevsky 2014, one column, 64 first filters, no normalization): its weights do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock
from cvtrain.models.backbones.base import Backbone, Output
from cvtrain.models.backbones.weights import load_weights

# (kernel, channels, stride, padding, groups) of each convolution
LAYERS = (
    (11, 96, 4, 2, 1),
    (5, 256, 1, 2, 2),
    (3, 384, 1, 1, 1),
    (3, 384, 1, 1, 2),
    (3, 256, 1, 1, 2),
)
POOLED_AFTER = (1, 2)
"""Convolutions that normalization and pooling follow; a last pooling follows the fifth."""
SIDE, UNITS = 6, 4096


class AlexNet(Backbone):
    """The five convolutions, and for ``pooled`` the two connected layers.

    Maps: 96, 256, 256 channels at strides 4, 8, 16. The smallest image is 31 x 31.

    Args:
        norm: ``lrn`` (the paper's), ``batch`` (batch normalization in every convolution instead),
            or ``none``.
        dropout: share of the inputs of each connected layer dropped in training, 0..1.
        in_channels: channels of the images.
        weights: a file to start from.
        image_size: pixels, an int or (H, W): refused where too small. It changes nothing.

    Raises:
        ValueError: another ``norm``, or an ``image_size`` below ``minimum_size``.
        UsageError, CheckpointError: ``weights`` cannot be taken.
    """

    architecture = "alexnet"
    minimum_size = 31

    def __init__(
        self,
        norm: Literal["lrn", "batch", "none"] = "lrn",
        dropout: float = 0.5,
        in_channels: int = 3,
        weights: str | Path | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("lrn", "batch", "none"):
            raise ValueError(f"norm={norm}: there is lrn, batch or none")
        self.check_size(image_size)
        self.in_channels = in_channels
        self.convs = nn.ModuleDict()
        channels = in_channels
        for i, (kernel, width, stride, padding, groups) in enumerate(LAYERS, start=1):
            self.convs[f"conv{i}"] = ConvBlock(
                channels, width, kernel, stride, norm == "batch", padding, leak=0.0, groups=groups
            )
            channels = width
        # The paper multiplies the sum of squares by 1e-4; PyTorch divides alpha by the 5 channels.
        lrn = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        self.norm = lrn if norm == "lrn" else nn.Identity()
        self.connected = nn.ModuleDict(
            {
                "fc6": ConvBlock(channels, UNITS, SIDE, 1, False, padding=0, leak=0.0),
                "fc7": ConvBlock(UNITS, UNITS, 1, 1, False, leak=0.0),
            }
        )
        self.dropout = nn.Dropout(dropout)
        self.channels, self.strides = [96, 256, 256], [4, 8, 16]
        self.num_features = UNITS
        if weights is not None:
            load_weights(self, weights)

    def set_output(self, output: Output) -> None:
        if output == "maps":
            self.connected = nn.ModuleDict()

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x.shape[-2:])
        maps: list[Tensor] = []
        for i, conv in enumerate(self.convs.values(), start=1):
            x = conv(x)
            if i in POOLED_AFTER:
                maps.append(x)
                x = F.max_pool2d(self.norm(x), 3, 2)
        return [*maps, x]

    def pooled(self, x: Tensor) -> Tensor:
        """Normalized images ``(B, C, H, W)`` -> ``(B, 4096)``: the output of fc7."""
        return self.last_and_pooled(x)[1]

    def last_and_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        last = x = self(x)[-1]  # (B, 256, h, w)
        if min(x.shape[-2:]) >= 3:
            x = F.max_pool2d(x, 3, 2)
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.adaptive_avg_pool2d(x, SIDE)
        for layer in self.connected.values():
            x = layer(self.dropout(x))  # (B, 4096, 1, 1)
        return last, torch.flatten(x, 1)
