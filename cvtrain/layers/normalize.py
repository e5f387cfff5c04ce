"""The first thing every model does to an image: cast it and normalize it, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the R, G, B values of ImageNet, in 0..1."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the R, G, B values of ImageNet, in 0..1."""

FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}
"""What an integer image is divided by; floating-point images are in 0..1 as they come."""


class Normalize(nn.Module):
    """Images in the file's dtype -> float32, about zero mean and unit variance.

    The numbers are buffers, so that a checkpoint is self-sufficient.

    Args:
        channels: channels of the images.
        mean, std: one number a channel, in 0..1. Given for three channels where the images have
            another number, their average serves for every channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", self._per_channel(mean, channels))
        self.register_buffer("std", self._per_channel(std, channels))

    @staticmethod
    def _per_channel(values: Sequence[float], channels: int) -> Tensor:
        if len(values) != channels:
            values = [sum(values) / len(values)] * channels
        return torch.tensor(values, dtype=torch.float32).view(1, channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8, uint16 or float in 0..1 -> float32 ``(B, C, H, W)``.

        Raises:
            ValueError: another dtype, or another number of channels than it was built for.
        """
        if images.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"images have {images.shape[1]} channels, the model was built for "
                f"{self.mean.shape[1]} (data.channels)"
            )
        scale = 1.0 if images.is_floating_point() else FULL_SCALE.get(images.dtype)
        if scale is None:
            raise ValueError(f"images are {images.dtype}; uint8, uint16 or float in 0..1 is needed")
        # One multiplication and one addition: (images / scale - mean) / std
        return images.to(torch.float32) * (1 / (scale * self.std)) - self.mean / self.std
