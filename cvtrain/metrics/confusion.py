"""Which class was taken for which: one count a pair of truth and prediction, background included.

A picture of a detector at one working point (a score and an IoU threshold), not a metric: boxes
(or masks) are matched without regard to their class, so that a mistaken class shows as such.
"""

from __future__ import annotations

import numpy as np

from cvtrain.metrics.coco import Detections

IOU_THRESHOLD = 0.5
SCORE_THRESHOLD = 0.25


def detection_confusion(
    data: Detections, score: float = SCORE_THRESHOLD, iou: float = IOU_THRESHOLD
) -> np.ndarray:
    """int64 ``(K + 1, K + 1)``: rows are truths, columns predictions, the last of each background.

    From the highest score down, a detection takes the free annotation it overlaps most, of any
    class. One that finds none is counted in the background row, unless it lies in an ignored
    region; an annotation nobody took is counted in the background column.
    """
    k = data.num_classes
    matrix = np.zeros((k + 1, k + 1), np.int64)
    for dt, gt in data.by_image():
        _add_image(matrix, data, best_first(data, dt, score), gt, iou)
    return matrix


def best_first(data: Detections, rows: np.ndarray, score: float) -> np.ndarray:
    """Those of these predictions that score as much, the highest first."""
    rows = rows[data.scores[rows] >= score]
    return rows[np.argsort(-data.scores[rows], kind="stable")]


def _add_image(
    matrix: np.ndarray, data: Detections, dt: np.ndarray, gt: np.ndarray, iou: float
) -> None:
    background = data.num_classes
    ignored = data.gt_ignore[gt]
    objects = gt[~ignored]
    ious = data.ious(dt, objects)  # (D_i, objects)
    covered = data.ious(dt, gt[ignored], crowd=True)  # (D_i, regions)
    excused: np.ndarray = np.any(covered >= iou, axis=1)  # (D_i,)
    free = np.ones(len(objects), bool)
    for row, label in enumerate(data.labels[dt]):
        candidates = np.where(free, ious[row], -1.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= iou:
            free[best] = False
            matrix[data.gt_labels[objects[best]], label] += 1
        elif not excused[row]:
            matrix[background, label] += 1
    np.add.at(matrix, (data.gt_labels[objects[free]], background), 1)
