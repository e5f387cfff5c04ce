"""Training at several sizes: the batch is resized on the device, its boxes with it.

Redmon & Farhadi 2016 (arXiv 1612.08242, section 2): every 10 batches another of the sizes 320, 352,
..., 608, whole strides of a network whose usual input is 416. Here the sizes are shares of the
images as they come, so that they suit any ``data.image_size``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from cvtrain.structures import Target

_STREAM = 3  # the last of five numbers: no sample's, no order's and no batch's own draws


class MultiScale:
    """Draws the size of a training batch from (seed, epoch, batch) alone, the same on every rank.

    Args:
        shares: the smallest and the largest size, in shares of the images'.
        every: batches in a row of one size; counted anew in each epoch.
        stride: sizes are whole strides, pixels.
        seed: of the run.

    Raises:
        ValueError: shares that are not two numbers in order, above 0; ``every`` below 1.
    """

    def __init__(
        self, shares: Sequence[float], every: int = 10, stride: int = 32, seed: int = 0
    ) -> None:
        if len(shares) != 2 or not 0 < shares[0] <= shares[1]:
            raise ValueError(
                f"multi_scale={list(shares)}: give the smallest and the largest share of "
                "data.image_size, [0.77, 1.46], or null"
            )
        if every < 1:
            raise ValueError(f"resize_every={every} must be at least 1")
        self.low, self.high = shares
        self.every, self.stride, self.seed = every, stride, seed

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Every size (H, W) that images of that size are trained at, the smallest first."""
        strides = max(1.0, min(height, width) / self.stride)  # of the shorter side
        low, high = (max(1, round(share * strides)) for share in (self.low, self.high))
        return [
            (self._whole(height * k / strides), self._whole(width * k / strides))
            for k in range(low, high + 1)
        ]

    def size(self, epoch: int, batch: int, height: int, width: int) -> tuple[int, int]:
        """The size (H, W) of batch ``batch`` of an epoch, whose images come as H x W."""
        generator = np.random.default_rng([self.seed, epoch, batch // self.every, 0, _STREAM])
        sizes = self.sizes(height, width)
        return sizes[int(generator.integers(len(sizes)))]

    def _whole(self, pixels: float) -> int:
        return max(1, round(pixels / self.stride)) * self.stride


def resize_batch(
    images: Tensor, targets: Sequence[Target], size: tuple[int, int]
) -> tuple[Tensor, list[Target]]:
    """Images ``(B, C, H, W)``, normalized, and their boxes at another size (H, W)."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images, list(targets)
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    scale = images.new_tensor([size[1] / width, size[0] / height] * 2)
    moved = [
        t if t.boxes is None else replace(t, boxes=t.boxes * scale.to(t.boxes)) for t in targets
    ]
    return images, moved
