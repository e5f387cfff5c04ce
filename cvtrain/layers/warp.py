"""Boxes cut out of images and warped to one size, with a border of what is around them.

After R-CNN (Girshick et al. 2014, arXiv 1311.2524, appendix A, "warp"): whatever its aspect, a box
fills a square but for a border of so many of the square's pixels, which shows the image around it;
where that reaches beyond the image, there is the mean color.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align


def with_context(boxes: Tensor, size: int, padding: int) -> Tensor:
    """The part of the image that a warped crop shows.

    Args:
        boxes: ``(N, 4)`` xyxy pixels.
        size: side of a crop, pixels.
        padding: pixels of each of its borders that are around the box.

    Returns:
        float32 ``(N, 4)`` xyxy, partly outside the image where the box is near its edge.
    """
    boxes = boxes.float()
    border = (boxes[:, 2:] - boxes[:, :2]) * (padding / (size - 2 * padding))  # (N, 2)
    return torch.cat([boxes[:, :2] - border, boxes[:, 2:] + border], dim=1)


def warp(images: Tensor, boxes: Sequence[Tensor], size: int, padding: int = 16) -> Tensor:
    """Crops of boxes, each with its context.

    A pixel of a crop is the mean over the part of the image that it covers (RoIAlign: as many
    bilinear samples as the part is pixels wide and high, at least one); samples more than a pixel
    outside the image are 0.

    Args:
        images: float ``(B, C, H, W)``, normalized, so that 0 is the mean color.
        boxes: B of ``(P, 4)`` xyxy pixels, P may be 0.
        size: side of a crop, pixels, more than twice ``padding``.
        padding: see ``with_context``.

    Returns:
        float32 ``(N, C, size, size)``: all boxes of the first image, then those of the second ...
    """
    numbered = [
        torch.cat([b.new_full((len(b), 1), i), with_context(b, size, padding)], dim=1)
        for i, b in enumerate(boxes)
    ]
    return roi_align(images.float(), torch.cat(numbered), size, aligned=True)
