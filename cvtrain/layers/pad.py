"""Zeros around images and maps: to a multiple of a stride, and where a kernel needs them given."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below: ``(B, C, H, W)`` -> the next multiples of ``multiple``.

    Of normalised images, zeros are their mean colour. Boxes stay where they are.
    """
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, down)) if down or right else x


def conv_down(conv: nn.Conv2d, x: Tensor, stride: int = 2, padding: int = 1) -> Tensor:
    """A convolution's kernel with another stride and padding: ``(B, C, H, W)`` -> a smaller map.

    On a map of one pixel the padding is written out: torch's bfloat16 kernel on the CPU (2.15) adds
    up uninitialised memory there in the gradient of the weights.
    """
    if padding and tuple(x.shape[-2:]) == (1, 1):
        x, padding = F.pad(x, [padding] * 4), 0
    return F.conv2d(x, conv.weight, conv.bias, stride, padding)
