"""Proposals on their way into a batch: boxes from outside follow the image, whatever moves it.

They travel through augmentation as points, four corners a box, because points are kept where boxes
would be dropped (too small, mostly outside): how many proposals a model sees is its own business.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cvtrain.augment.scene import VISIBLE


class BoxSource(Protocol):
    """Boxes by image, as ``cvtrain.proposals.source`` has them."""

    def boxes(self, file: str) -> Any:
        """Of an image by its name in the table: ``boxes`` float32 ``(P, 4)``, original pixels."""


class BoxFinder(Protocol):
    """Boxes for images that no table holds, as ``cvtrain.proposals.source`` has them."""

    def find(self, file: str, image: np.ndarray) -> Any:
        """Of an image ``(H, W, C)``: ``boxes`` float32 ``(P, 4)``, its pixels."""


def corners(boxes: np.ndarray) -> np.ndarray:
    """``(P, 4)`` xyxy -> keypoints ``(4 P, 3)`` of a scene: the corners of each box, in view."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).T
    seen = np.full_like(x0, VISIBLE)
    points = [[x0, y0, seen], [x1, y0, seen], [x1, y1, seen], [x0, y1, seen]]
    return np.array(points).transpose(2, 0, 1).reshape(-1, 3)  # (4, 3, P) -> (P, 4, 3) -> (4 P, 3)


def around(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Keypoints ``(4 P, 2 or 3)`` -> float32 ``(P', 4)``: the boxes around four corners each.

    Cut at the image ``(height, width)``; those of which nothing is left in it are dropped, and
    where that is all, there is one box, the image.
    """
    places = points[:, :2].reshape(-1, 4, 2)  # (4 P, 2) -> (P, 4, 2)
    boxes = np.concatenate([places.min(axis=1), places.max(axis=1)], axis=1)  # (P, 4)
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return boxes if len(boxes) else np.array([[0, 0, width, height]], np.float32)
