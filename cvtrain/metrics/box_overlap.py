"""Box arithmetic of the metrics, in float64 numpy: exact enough to be compared with a file."""

from __future__ import annotations

import numpy as np


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """``(N, 4)`` xyxy -> ``(N,)`` square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_ious(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union, float64 ``(N, M)``; 0 where both boxes are empty.

    Args:
        boxes: ``(N, 4)`` xyxy.
        others: ``(M, 4)`` xyxy.
        crowd: bool ``(M,)``: for these the intersection is divided by the area of ``boxes`` alone,
            as COCO does for crowd regions.
    """
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])  # (N, M, 2)
    opposite = np.minimum(boxes[:, None, 2:], others[None, :, 2:])  # (N, M, 2)
    inter = np.clip(opposite - corner, 0, None).prod(axis=2)  # (N, M)
    own = box_areas(boxes)[:, None]
    union = own + box_areas(others)[None, :] - inter
    if crowd is not None:
        union = np.where(crowd[None, :], own, union)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
