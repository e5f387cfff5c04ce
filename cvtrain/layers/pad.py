"""Images made a multiple of a stride, so that every network gives maps of exact strides."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below: ``(B, C, H, W)`` -> the next multiples of ``multiple``.

    Of normalised images, zeros are their mean colour. Boxes stay where they are.
    """
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, down)) if down or right else x
