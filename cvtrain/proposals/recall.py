"""How well boxes cover the objects: recall at an IoU, and average best overlap.

Hosang et al. 2016 for recall over the number of boxes; ABO and MABO as in Uijlings et al. 2013,
section 5: the best overlap of each object, averaged over a class's objects, then over classes.
Objects that do not count (crowd, difficult) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cvtrain.data.table import CROWD, DIFFICULT, Table
from cvtrain.proposals.selective_search import Boxes

THRESHOLDS = (0.5, 0.7)
"""IoU from which an object counts as found."""


def overlaps(truths: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU float64 ``(G, P)`` of ``(G, 4)`` with ``(P, 4)`` xyxy."""
    truths, boxes = np.asarray(truths, np.float64), np.asarray(boxes, np.float64)
    low = np.maximum(truths[:, None, :2], boxes[None, :, :2])  # (G, P, 2)
    high = np.minimum(truths[:, None, 2:], boxes[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    first = (truths[:, 2:] - truths[:, :2]).prod(axis=1)
    second = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = first[:, None] + second[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def box_counts(most: int) -> list[int]:
    """1, 2, 5, 10, ... up to ``most``, which is the last."""
    steps = [m * 10**e for e in range(1 + int(math.log10(max(1, most)))) for m in (1, 2, 5)]
    return [*(s for s in steps if s < most), most]


class Recall:
    """Adds up the objects of one split.

    Args:
        most: boxes per image, at most.
        names: of the classes.
    """

    def __init__(self, most: int, names: Sequence[str]) -> None:
        self.counts, self.names = box_counts(most), tuple(names)
        self._best: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self.images = self.boxes = self.largest = 0

    def add(self, table: Table, row: int, found: Boxes) -> None:
        """The boxes of one image."""
        rows = table.rows(row)
        counted = (table.flags[rows] & (CROWD | DIFFICULT)) == 0
        truths = table.boxes[rows][counted]
        self.images += 1
        self.boxes += len(found.boxes)
        self.largest = max(self.largest, len(found.boxes))
        if not len(truths):
            return
        best = np.maximum.accumulate(overlaps(truths, found.boxes), axis=1)  # (G, P)
        at = np.minimum(np.array(self.counts), best.shape[1]) - 1
        self._best.append(best[:, at])  # (G, P) -> (G, counts)
        self._labels.append(table.labels[rows][counted])

    def compute(self) -> dict[str, Any]:
        """Plain data: ``curve``, a row a number of boxes, and ``per_class`` with all boxes."""
        best = np.concatenate([np.zeros((0, len(self.counts))), *self._best])
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels])
        classes = [int(k) for k in np.unique(labels)]
        curve = []
        for n, count in enumerate(self.counts):
            if n and self.counts[n - 1] >= self.largest:  # no image has that many
                break
            column = best[:, n]
            by_class = [column[labels == k].mean() for k in classes]
            row: dict[str, Any] = {"boxes": count}
            for iou in THRESHOLDS:
                row[f"recall{round(100 * iou)}"] = _mean(column >= iou)
            row["ABO"], row["MABO"] = _mean(column), _mean(np.array(by_class))
            curve.append(row)
        per_class = []
        for k in classes:
            column = best[labels == k, -1]
            row = {"name": self.names[k], "objects": len(column)}
            row |= {f"recall{round(100 * iou)}": _mean(column >= iou) for iou in THRESHOLDS}
            per_class.append(row | {"ABO": _mean(column)})
        return {
            "images": self.images,
            "objects": len(best),
            "boxes_per_image": self.boxes / max(1, self.images),
            "curve": curve,
            "per_class": per_class,
        }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
