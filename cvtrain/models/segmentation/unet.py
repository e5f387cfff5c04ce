"""U-Net (2015) as published: valid convolutions, mirrored borders.

Paper: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", arXiv 1505.04597, figure 1. Written from the paper.

Four times two 3 x 3 convolutions and a 2 x 2 max pooling that halves the map, channels doubling
from 64 to 1024; four times an up-convolution (2 x 2, transposed, stride 2) that halves the
channels, beside it the cropped map of the same level, and two 3 x 3 convolutions; a 1 x 1
convolution. No convolution is padded: a tile of 572 x 572 gives the classes of its inner 388 x 388,
each from real pixels alone. Dropout ends the contracting path; weights start as He et al. 2015.

Where the paper is silent or we deviate:

- ``data.image_size`` is the output: any image is mirrored at its borders (beyond its size if need
  be, again) by 92 pixels and what it lacks to a size that halves evenly, and the result is cropped.
  So an image is its own overlap tile, and tiles of a large image (task.inference.mode=tiles) that
  are cut with their surroundings and begin at multiples of 16 give what the whole image gives.
- Dropout of 0.5 follows the last two levels, as in the authors' network.
- The loss is chosen by ``loss=``; the paper's is ``boundary_weighted``. The optimizer is ours (the
  paper: SGD with momentum 0.99, one tile a batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvtrain.layers.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from cvtrain.layers.pad import mirror
from cvtrain.models.segmentation.base import SegmentationModel

LEVELS = 4
"""Poolings."""
BORDER = 92
"""Pixels that the network's output lacks on each side of its input."""


def tile_size(side: int) -> tuple[int, int]:
    """The least (input, output) side with an output of at least ``side`` pixels: 388 -> 572, 388.

    With b pixels a side before the lowest convolutions the input has ``16 b + 60``, and the output
    ``16 b - 124``.
    """
    lowest = math.ceil((side + 124) / 16)
    return 16 * lowest + 60, 16 * lowest - 124


class UNet(SegmentationModel):
    """The published network.

    Args:
        loss: of the pixels, see ``SegmentationModel``.
        num_classes: K.
        in_channels: of the images.
        width: channels of the first level; the paper's 64.
        dropout: share of the values dropped after the last two levels, 0..1.
        mean, std: the images are normalized with, in 0..1.

    Raises:
        ValueError: a width below 1.
    """

    context = BORDER + 16  # a size that does not halve evenly is grown by up to 15

    def __init__(
        self,
        loss: nn.Module,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        dropout: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(loss, num_classes)
        if width < 1:
            raise ValueError(f"width={width} must be at least 1")
        self.normalize = Normalize(in_channels, mean, std)
        widths = [width * 2**i for i in range(LEVELS + 1)]  # 64, ..., 1024
        before = [in_channels, *widths]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip(before, widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(w, w // 2, 2, stride=2) for w in widths[:0:-1]
        )
        self.up = nn.ModuleList(_double(w, w // 2) for w in widths[:0:-1])
        self.score = nn.Conv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor, around: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
        """``(B, C, H, W)`` of any size -> logits float32 ``(B, K, H, W)``, less what is around.

        Args:
            images: with the tile inside.
            around: pixels at the left, right, top and bottom that are there to be seen.
        """
        left, right, top, bottom = around
        height = images.shape[-2] - top - bottom
        width = images.shape[-1] - left - right
        down, along = (tile_size(n)[0] - n - 2 * BORDER for n in (height, width))
        # What a size lacks to halve evenly is added below and at the right: tiles that begin at
        # multiples of 16 are then pooled as the whole image is.
        x = mirror(
            self.normalize(images),
            (BORDER - left, BORDER + along - right, BORDER - top, BORDER + down - bottom),
        )
        return self.tile(x)[..., :height, :width].float()

    def tile(self, x: Tensor) -> Tensor:
        """The network itself: ``(B, C, h, w)``, ``16 b + 60`` a side -> 184 less a side."""
        skips = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            if i >= LEVELS - 1:
                x = self.dropout(x)
            skips.append(x)
        for enlarge, block, skip in zip(self.enlarge, self.up, skips[-2::-1], strict=True):
            x = enlarge(x)
            top, left = (skip.shape[-2] - x.shape[-2]) // 2, (skip.shape[-1] - x.shape[-1]) // 2
            inner = skip[..., top : top + x.shape[-2], left : left + x.shape[-1]]
            x = block(torch.cat([inner, x], dim=1))
        return self.score(x)


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two valid 3 x 3 convolutions, each with a ReLU: 4 pixels less a side."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3),
        nn.ReLU(inplace=True),
    )
