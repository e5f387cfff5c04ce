"""Box geometry: areas, overlaps, clipping, centers; empty-safe, and in float32 under autocast.

Boxes are xyxy in pixels, ``(N, 4)``. Overlaps: IoU; GIoU (Rezatofighi et al. 2019, arXiv
1902.09630); DIoU and CIoU (Zheng et al. 2020, arXiv 1911.08287). Pairs of boxes without any area
overlap by 0. The pairwise overlaps are torchvision's; the elementwise ones, which losses are made
of, are written here, because torchvision's divide by a height that may be 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torchvision import ops

from cvtrain.structures import Target, empty_boxes

Overlap = Literal["iou", "giou", "diou", "ciou"]

EPS = 1e-7
"""Added to what is divided by."""

_PAIRWISE = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}


def area(boxes: Tensor) -> Tensor:
    """``(..., 4)`` -> ``(...,)`` square pixels, 0 for inverted boxes."""
    return (boxes[..., 2:] - boxes[..., :2]).float().clamp(min=0).prod(dim=-1)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """``(..., 4)`` cut to an image of (height, width) pixels; infinite ones end at its edges."""
    height, width = image_size
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


def center_size(boxes: Tensor) -> Tensor:
    """``(..., 4)`` xyxy -> ``(..., 4)`` x, y of the center, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def corners(boxes: Tensor) -> Tensor:
    """``(..., 4)`` x, y of the center, width, height -> ``(..., 4)`` xyxy."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def pairwise(a: Tensor, b: Tensor, kind: Overlap = "iou") -> Tensor:
    """Overlap of every box with every other.

    Args:
        a: ``(N, 4)``.
        b: ``(M, 4)``.
        kind: of overlap.

    Returns:
        float32 ``(N, M)``; pairs that have none (no area, not finite) 0.
    """
    return torch.nan_to_num(_PAIRWISE[kind](a.float(), b.float()), nan=0.0)


def elementwise(a: Tensor, b: Tensor, kind: Overlap = "iou") -> Tensor:
    """Overlap of each box with the one in its place, with gradients that are finite everywhere.

    Args:
        a: ``(..., 4)``.
        b: ``(..., 4)``.
        kind: of overlap.

    Returns:
        float32 ``(...,)``: IoU in 0..1; GIoU and DIoU above -1; CIoU lower still.
    """
    a, b = a.float(), b.float()
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = size_a.prod(dim=-1) + size_b.prod(dim=-1) - shared
    iou = shared / (union + EPS)
    if kind == "iou":
        return iou
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        whole = hull.prod(dim=-1)
        return iou - (whole - union) / (whole + EPS)
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    diou = iou - apart.square().sum(dim=-1) / (hull.square().sum(dim=-1) + EPS)
    if kind == "diou":
        return diou
    turn = torch.atan2(size_b[..., 0], size_b[..., 1] + EPS)
    turn = turn - torch.atan2(size_a[..., 0], size_a[..., 1] + EPS)
    v = 4 / math.pi**2 * turn.square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + EPS)
    return diou - alpha * v


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """The largest share of each box that lies in one of the regions.

    Args:
        boxes: ``(N, 4)``.
        regions: ``(M, 4)``, M may be 0.

    Returns:
        float32 ``(N,)`` in 0..1; of boxes without area 0.
    """
    boxes, regions = boxes.float(), regions.float()
    if len(regions) == 0:
        return boxes.new_zeros(len(boxes))
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])  # (N, M, 2)
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)  # (N, M)
    return shared.amax(dim=1) / (area(boxes) + EPS)


def objects_of(target: Target, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What a detector's loss wants of a target, ignored objects told from the others.

    Args:
        target: with ``boxes`` and ``labels``, and ``ignore`` where it applies.
        device: where the result lies; None: where the target is.

    Returns:
        Boxes float32 ``(N, 4)`` and labels int64 ``(N,)`` of the objects, and boxes ``(M, 4)`` of
        the regions to ignore (crowds, difficult objects).
    """
    boxes = empty_boxes() if target.boxes is None else target.boxes
    if device is None:
        device = boxes.device
    boxes = boxes.to(device).float()
    labels = torch.zeros(len(boxes), dtype=torch.int64, device=device)
    if target.labels is not None:
        labels = target.labels.to(device)
    if target.ignore is None:
        return boxes, labels, boxes[:0]
    ignore = target.ignore.to(device)
    return boxes[~ignore], labels[~ignore], boxes[ignore]
