"""The images on which a detector of boxes or masks does worst, to be looked at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvtrain.metrics.coco import Detections
from cvtrain.metrics.confusion import IOU_THRESHOLD, SCORE_THRESHOLD, best_first
from cvtrain.structures import ImageInfo

WORST = 10
"""Images listed as the worst."""


def worst_images(
    data: Detections,
    infos: Sequence[ImageInfo],
    score: float = SCORE_THRESHOLD,
    iou: float = IOU_THRESHOLD,
) -> list[dict[str, Any]]:
    """The images with the least panoptic quality, the worst first, of equals the one most wrong.

    Quality of an image: the IoU of its found objects, summed, over found + (missed + wrong) / 2
    (Kirillov et al. 2019, "Panoptic Segmentation", arXiv 1801.00868, equation 1, over all classes
    of one image). Images without objects on which nothing is predicted are none of them.

    Args:
        data: all predictions and truths.
        infos: one an image, in their order.
        score: predictions below it do not count.
        iou: from which on a prediction finds an object of its class.

    Returns:
        ``file_name``, ``index``, ``quality`` in 0..1, and the numbers of ``found`` and ``missed``
        objects and of ``wrong`` predictions.
    """
    entries: list[dict[str, Any]] = []
    for info, (rows, truths) in zip(infos, data.by_image(), strict=True):
        overlaps, missed, wrong = _matches(data, best_first(data, rows, score), truths, iou)
        whole = len(overlaps) + (missed + wrong) / 2
        if whole:
            entries.append(
                {
                    "file_name": info.file_name,
                    "index": info.index,
                    "quality": sum(overlaps) / whole,
                    "found": len(overlaps),
                    "missed": missed,
                    "wrong": wrong,
                }
            )
    entries.sort(key=lambda e: (e["quality"], -e["missed"] - e["wrong"], e["index"]))
    return entries[:WORST]


def _matches(
    data: Detections, rows: np.ndarray, truths: np.ndarray, iou: float
) -> tuple[list[float], int, int]:
    """The IoU of each found object, how many were not, and how many predictions are mistaken."""
    objects = truths[~data.gt_ignore[truths]]
    regions = truths[data.gt_ignore[truths]]
    ious = data.ious(rows, objects)  # (n, objects)
    ious[data.labels[rows, None] != data.gt_labels[None, objects]] = 0.0
    excused: np.ndarray = np.any(data.ious(rows, regions, crowd=True) >= iou, axis=1)  # (n,)
    free = np.ones(len(objects), bool)
    overlaps: list[float] = []
    wrong = 0
    for k in range(len(rows)):
        candidates = np.where(free, ious[k], 0.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= iou:
            free[best] = False
            overlaps.append(float(candidates[best]))
        elif not excused[k]:
            wrong += 1
    return overlaps, int(free.sum()), wrong
