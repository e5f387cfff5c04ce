"""The Pascal VOC detection metric: average precision at IoU 0.5, as the development kit defines it.

Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", IJCV 88, section 4.2.
Two averages: over all points of the precision/recall curve (VOC 2010 on), and over the 11 recalls
0, 0.1, ... 1 (VOC 2007). Boxes here are continuous coordinates, so widths carry no "+ 1": the VOC
reader turns the inclusive pixels of the files into them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvtrain.metrics.box_overlap import box_ious
from cvtrain.metrics.coco import Detections

THRESHOLD = 0.5


@dataclass(frozen=True)
class VOCResult:
    """``(K,)`` average precisions, NaN for classes without ground truth.

    Attributes:
        all_points: area under the monotone precision/recall curve.
        eleven_points: mean of the best precision at recalls 0, 0.1, ... 1.
    """

    all_points: np.ndarray
    eleven_points: np.ndarray


def voc_evaluate(data: Detections, threshold: float = THRESHOLD) -> VOCResult:
    """Average precision of each class by the devkit's protocol.

    Each detection, from the highest score down, belongs to the annotation of its class and image
    that it overlaps most. At an IoU of at least ``threshold`` it is a true positive if it is the
    first there and a false positive if not; where that annotation is difficult, it is neither.
    """
    best, overlap = _best_annotations(data)
    order = np.argsort(-data.scores, kind="stable")
    counts = data.counts()
    all_points = np.full(data.num_classes, np.nan)
    eleven_points = np.full(data.num_classes, np.nan)
    for k in np.flatnonzero(counts):
        rows = order[data.labels[order] == k]
        hit = overlap[rows] >= threshold
        gt = np.where(hit, best[rows], -1)
        counted = ~(hit & data.gt_ignore[gt]) if len(data.gt_ignore) else np.ones(len(rows), bool)
        hit, gt = hit[counted], gt[counted]
        true = np.zeros(len(gt), bool)
        _, first = np.unique(gt, return_index=True)  # the highest score on each annotation
        true[first] = hit[first]
        all_points[k], eleven_points[k] = average_precisions(true, int(counts[k]))
    return VOCResult(all_points, eleven_points)


def average_precisions(true: np.ndarray, positives: int) -> tuple[float, float]:
    """All-points and 11-point average precision.

    Args:
        true: bool ``(D,)``, the counted detections from the highest score down.
        positives: how many objects there are, at least 1.
    """
    found = np.cumsum(true)
    precision = found / np.arange(1, len(true) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or beyond
    # Recall rises by 1 / positives at each true positive and nowhere else.
    area = float(envelope[true].sum() / positives)
    # recall >= t / 10, in integers: 0.1 * 3 is not 0.3.
    at = np.searchsorted(found * 10, np.arange(11) * positives, side="left")
    levels = np.append(envelope, 0.0)[at]
    return area, float(levels.sum() / 11)


def _best_annotations(data: Detections) -> tuple[np.ndarray, np.ndarray]:
    """``(D,)`` row of the annotation each detection overlaps most (-1: none), ``(D,)`` that IoU."""
    best = np.full(len(data.scores), -1, np.int64)
    overlap = np.zeros(len(data.scores))
    for dt, gt in data.by_image():
        if not len(dt) or not len(gt):
            continue
        ious = box_ious(data.boxes[dt], data.gt_boxes[gt])  # (D_i, G_i)
        ious[data.labels[dt, None] != data.gt_labels[None, gt]] = -1.0
        column = ious.argmax(axis=1)
        value = ious[np.arange(len(column)), column]
        best[dt] = np.where(value >= 0, gt[column], -1)
        overlap[dt] = value
    return best, overlap
