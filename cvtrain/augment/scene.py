"""One image with everything annotated on it, as numpy arrays: what augmentation takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cvtrain.augment.planes import Masks

UNSEEN, HIDDEN, VISIBLE = 0, 1, 2
"""Visibility of a keypoint, as COCO has it: outside the image or not marked; covered; in view."""


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
        masks: of the N objects; or None.
        keypoints: float64 ``(N, K, 3)`` of the objects, or ``(M, 3)`` of the image: x, y and
            visibility (``UNSEEN``, ``HIDDEN``, ``VISIBLE``); or None. A point that leaves the image
            stays in its place of the list, unseen.
        objects: float64 ``(N, 5)``, boxes and class of the objects that ``mask`` shows, where the
            data set tells them and crops are cut around them; or None.
        windows: float32 ``(P, 4)``, proposals that crops are chosen from; or None.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    mask: np.ndarray | None = None
    masks: Masks | None = None
    keypoints: np.ndarray | None = None
    objects: np.ndarray | None = None
    windows: np.ndarray | None = None

    def moved(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        kept: np.ndarray,
        mask: np.ndarray | None,
        masks: Masks | None,
        keypoints: np.ndarray | None = None,
    ) -> Scene:
        """The scene after a transform that kept rows ``kept (M,)`` with new boxes ``(M, 4)``.

        Areas follow the masks where there are any, else they shrink and grow with their boxes.
        ``keypoints`` are all of the scene's, moved; those of objects that are gone go.
        """
        if masks is not None:
            areas = masks.areas
        else:
            before = np.maximum(box_areas(self.boxes[kept]), 1e-9)
            areas = self.areas[kept] * box_areas(boxes) / before
        if keypoints is not None:
            keypoints = unseen_outside(keypoints, *image.shape[:2])
            keypoints = keypoints[kept] if keypoints.ndim == 3 else keypoints
        return replace(
            self,
            image=image,
            boxes=boxes,
            labels=self.labels[kept],
            ignore=self.ignore[kept],
            areas=areas,
            mask=mask,
            masks=masks,
            keypoints=keypoints,
        )

    @property
    def countable(self) -> int:
        """How many objects count for loss and metric."""
        return int((~self.ignore).sum())


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """``(N, 4)`` xyxy -> ``(N,)`` square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def unseen_outside(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """``(..., 3)`` keypoints, those outside the image marked unseen; a copy."""
    out = keypoints.copy()
    x, y = out[..., 0], out[..., 1]
    inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    out[..., 2] = np.where(inside, out[..., 2], UNSEEN)
    return out


def hide(keypoints: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """``(..., 3)`` keypoints, those in view below ``cover (H, W)`` marked hidden; a copy."""
    out = keypoints.copy()
    height, width = cover.shape
    columns = np.clip(out[..., 0].astype(np.int64), 0, width - 1)
    rows = np.clip(out[..., 1].astype(np.int64), 0, height - 1)
    covered = (cover[rows, columns] != 0) & (out[..., 2] == VISIBLE)
    out[..., 2] = np.where(covered, HIDDEN, out[..., 2])
    return out


def joined_keypoints(scenes: list[Scene]) -> np.ndarray | None:
    """The keypoints of several scenes in one array; None where the first has none."""
    if scenes[0].keypoints is None:
        return None
    return np.concatenate([s.keypoints for s in scenes if s.keypoints is not None])
