"""Boxes as numbers to regress: relative to an anchor, or distances from a point to the sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cvtrain.layers.boxes import center_size, corners

LARGEST = math.log(1000 / 16)
"""The most that the logarithm of a side over its anchor's may be (Detectron: 1000 / 16)."""
SMALLEST = 1e-6
"""Sides are taken for at least so many pixels before a division or a logarithm."""


class BoxCoder:
    """(dx, dy, dw, dh) relative to an anchor (Girshick et al. 2014, arXiv 1311.2524, appendix C).

    Args:
        weights: the four numbers are multiplied by them: (10, 10, 5, 5) gives them about unit
            variance (Fast R-CNN, SSD), (1, 1, 1, 1) leaves them alone.
        clip: dw and dh are cut to this before the exponential.
    """

    def __init__(
        self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), clip: float = LARGEST
    ) -> None:
        if len(weights) != 4 or min(weights) <= 0:
            raise ValueError(f"weights={list(weights)}: give four numbers above 0, for x, y, w, h")
        self.weights, self.clip = tuple(float(w) for w in weights), clip

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """``(..., 4)`` boxes relative to the anchors in their place -> float32 ``(..., 4)``."""
        box, anchor = center_size(boxes.float()), center_size(anchors.float())
        side = anchor[..., 2:].clamp(min=SMALLEST)
        shift = (box[..., :2] - anchor[..., :2]) / side
        stretch = (box[..., 2:].clamp(min=SMALLEST) / side).log()
        return torch.cat([shift, stretch], dim=-1) * shift.new_tensor(self.weights)

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """``(..., 4)`` codes and the anchors in their place -> float32 ``(..., 4)`` xyxy pixels."""
        codes, anchor = codes.float(), center_size(anchors.float())
        codes = codes / codes.new_tensor(self.weights)
        center = codes[..., :2] * anchor[..., 2:] + anchor[..., :2]
        side = codes[..., 2:].clamp(max=self.clip).exp() * anchor[..., 2:]
        return corners(torch.cat([center, side], dim=-1))


def encode_ltrb(boxes: Tensor, points: Tensor) -> Tensor:
    """Distances from points to the sides of boxes: left, top, right, bottom.

    Args:
        boxes: ``(..., 4)`` xyxy pixels.
        points: ``(..., 2)`` x, y pixels.

    Returns:
        float32 ``(..., 4)`` pixels, some negative where the point is outside.
    """
    boxes, points = boxes.float(), points.float()
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def decode_ltrb(distances: Tensor, points: Tensor) -> Tensor:
    """``(..., 4)`` left, top, right, bottom from ``(..., 2)`` points -> ``(..., 4)`` xyxy."""
    distances, points = distances.float(), points.float()
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
