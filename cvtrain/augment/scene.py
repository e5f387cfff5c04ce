"""One image with everything annotated on it, as numpy arrays: what augmentation takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass
class Scene:
    """An image and its truths, in pixels of that image.

    Attributes:
        image: ``(H, W, C)``.
        boxes: float64 ``(N, 4)`` xyxy.
        labels: int64 ``(N,)``.
        ignore: bool ``(N,)``.
        areas: float64 ``(N,)`` square pixels.
        mask: uint8 ``(H, W)`` classes, 255 void; or None.
        masks: uint8 ``(N, H, W)`` of 0 and 1; or None.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    mask: np.ndarray | None = None
    masks: np.ndarray | None = None

    def moved(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        kept: np.ndarray,
        mask: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> Scene:
        """The scene after a transform that kept rows ``kept (M,)`` with new boxes ``(M, 4)``.

        Areas follow the masks where there are any, else they shrink and grow with their boxes.
        """
        if masks is not None:
            areas = masks.sum(axis=(1, 2), dtype=np.float64)
        else:
            before = np.maximum(box_areas(self.boxes[kept]), 1e-9)
            areas = self.areas[kept] * box_areas(boxes) / before
        return replace(
            self,
            image=image,
            boxes=boxes,
            labels=self.labels[kept],
            ignore=self.ignore[kept],
            areas=areas,
            mask=mask,
            masks=masks,
        )


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """``(N, 4)`` xyxy -> ``(N,)`` square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
