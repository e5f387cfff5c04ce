"""Borders around images and maps: zeros to a multiple of a stride or for a kernel, and mirrors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below: ``(B, C, H, W)`` -> the next multiples of ``multiple``.

    Of normalized images, zeros are their mean color. Boxes stay where they are.
    """
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, down)) if down or right else x


def mirror(x: Tensor, around: Sequence[int]) -> Tensor:
    """The image continued by its mirror images, as often as it takes: ``(B, C, H, W)``.

    The border pixel itself is not repeated (torch's "reflect"), and the image may be smaller than
    what is added.

    Args:
        x: ``(B, C, H, W)``.
        around: pixels added at the left, right, top and bottom; below 0: cut off there.
    """
    left, right, top, bottom = around
    rows = _reflected(x.shape[-2], top, bottom, x.device)
    columns = _reflected(x.shape[-1], left, right, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def _reflected(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Int64 ``(before + size + after,)``: the pixel that stands at each place."""
    if size == 1:
        return torch.zeros(before + 1 + after, dtype=torch.int64, device=device)
    turn = 2 * (size - 1)
    at = torch.arange(-before, size + after, device=device) % turn
    return torch.minimum(at, turn - at)


def conv_down(conv: nn.Conv2d, x: Tensor, stride: int = 2, padding: int = 1) -> Tensor:
    """A convolution's kernel with another stride and padding: ``(B, C, H, W)`` -> a smaller map.

    On a map of one pixel the padding is written out: torch's bfloat16 kernel on the CPU (2.15) adds
    up uninitialized memory there in the gradient of the weights.
    """
    if padding and tuple(x.shape[-2:]) == (1, 1):
        x, padding = F.pad(x, [padding] * 4), 0
    return F.conv2d(x, conv.weight, conv.bias, stride, padding)
