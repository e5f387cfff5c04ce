"""Detection metrics: the COCO family, VOC AP50, per class, and the files to score them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cvtrain.data.table import Classes
from cvtrain.errors import UsageError
from cvtrain.metrics.base import Metrics, Record, as_array, check_finite, listed
from cvtrain.metrics.coco import (
    BACKENDS,
    MAX_DETECTIONS,
    COCOResult,
    Detections,
    coco_evaluate,
    mean,
    truth_areas,
)
from cvtrain.metrics.confusion import IOU_THRESHOLD, SCORE_THRESHOLD, detection_confusion
from cvtrain.metrics.voc import voc_evaluate
from cvtrain.structures import ImageInfo, Prediction, Target


@dataclass(frozen=True)
class PackedBoxes:
    """The predictions of one image.

    Attributes:
        boxes: float32 ``(N, 4)`` xyxy.
        scores: float32 ``(N,)``.
        labels: int32 ``(N,)``.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PackedTruth:
    """The annotations of one image.

    Attributes:
        boxes: float32 ``(N, 4)`` xyxy.
        labels: int32 ``(N,)``.
        ignore: bool ``(N,)``.
        areas: float64 ``(N,)`` square pixels.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray


class DetectionMetrics(Metrics):
    """mAP and its kin over the whole set, all in 0..1.

    Scalars, in this order: ``mAP mAP50 mAP75 mAP_small mAP_medium mAP_large AR1 AR10 AR100
    AR_small AR_medium AR_large`` (COCO), ``voc_mAP50`` (all points) and ``voc07_mAP50`` (11
    points). Crowd and difficult objects are no objects, and matches with them no mistakes; classes
    without ground truth are left out of every mean and named in the notes. Without any ground
    truth (of that size) a value is NaN; with ground truth and no prediction it is 0.

    ``details()`` has ``per_class`` (``predictions`` counts those of any score, as AP does,
    ``predicted`` those of 0.25 or more, as a person sees them), ``notes``, ``pr_curves``
    (``recall`` ``(101,)``, ``precision`` ``(K, 101)`` at IoU 0.5, NaN for classes without ground
    truth), ``confusion`` ``(K+1, K+1)`` with its ``confusion_labels`` and the thresholds it was
    taken at.

    Args:
        classes: names and ids.
        backend: ``faster_coco_eval`` (several times faster) or ``pycocotools``; equal to 1e-9.

    Raises:
        UsageError: an unknown backend.
    """

    def __init__(self, classes: Classes, backend: str = BACKENDS[0]) -> None:
        super().__init__(classes)
        if backend not in BACKENDS:
            raise UsageError(f"metrics backend {backend!r}: expected one of {', '.join(BACKENDS)}")
        self.backend = backend

    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> PackedBoxes:
        boxes = as_array(prediction.boxes, "Prediction.boxes", torch.float32).reshape(-1, 4)
        scores = as_array(prediction.scores, "Prediction.scores", torch.float32)
        labels = as_array(prediction.labels, "Prediction.labels", torch.int32)
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"{info.file_name}: {len(boxes)} boxes, {len(scores)} scores, {len(labels)} labels"
            )
        check_finite(boxes, "boxes", info)
        check_finite(scores, "scores", info)
        self._check_labels(labels, info)
        return PackedBoxes(boxes, scores, labels)

    def _pack_truth(self, truth: Target, info: ImageInfo) -> PackedTruth:
        boxes = as_array(truth.boxes, "Target.boxes", torch.float32).reshape(-1, 4)
        labels = as_array(truth.labels, "Target.labels", torch.int32)
        self._check_labels(labels, info)
        ignore, areas = np.zeros(len(boxes), bool), None
        if truth.ignore is not None:
            ignore = as_array(truth.ignore, "Target.ignore", torch.bool)
        if truth.areas is not None:
            areas = as_array(truth.areas, "Target.areas", torch.float64)
        areas = truth_areas(boxes.astype(np.float64), areas)
        if not len(boxes) == len(labels) == len(ignore) == len(areas):
            raise ValueError(
                f"{info.file_name}: {len(boxes)} boxes, {len(labels)} labels, "
                f"{len(ignore)} ignore, {len(areas)} areas"
            )
        return PackedTruth(boxes, labels, ignore, areas)

    def _packed_entries(self, predicted: PackedBoxes, info: ImageInfo) -> Iterator[dict[str, Any]]:
        boxes = _xywh_lists(predicted.boxes)
        for box, score, label in zip(
            boxes, predicted.scores.tolist(), predicted.labels.tolist(), strict=True
        ):
            yield {
                "image_id": info.image_id,
                "file_name": info.file_name,
                "category_id": self.classes.ids[label],
                "category": self.classes.names[label],
                "bbox": box,
                "score": score,
            }

    def _truth_entries(self, annotated: PackedTruth, info: ImageInfo) -> Iterator[dict[str, Any]]:
        for box, label, area, ignore in zip(
            _xywh_lists(annotated.boxes),
            annotated.labels.tolist(),
            annotated.areas.tolist(),
            annotated.ignore.tolist(),
            strict=True,
        ):
            yield {
                "image_id": info.image_id,
                "category_id": self.classes.ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(ignore),
            }

    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        data = pack_detections(records, len(self.classes))
        coco = coco_evaluate(data, self.backend)
        voc = voc_evaluate(data)
        scalars = coco.summary()
        scalars["voc_mAP50"] = mean(voc.all_points)
        scalars["voc07_mAP50"] = mean(voc.eleven_points)
        columns = coco.per_class() | {"voc_AP50": voc.all_points, "voc07_AP50": voc.eleven_points}
        return scalars, self._details(data, coco, columns)

    def _details(
        self, data: Detections, coco: COCOResult, columns: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """What detection and its kin say beside scalars; ``columns`` ``(K,)`` of each class."""
        counts = data.counts()
        predicted = np.bincount(data.labels, minlength=data.num_classes)
        shown = np.bincount(data.labels[data.scores >= SCORE_THRESHOLD], minlength=data.num_classes)
        per_class = [
            {
                "name": name,
                "id": self.classes.ids[k],
                "objects": int(counts[k]),
                "predictions": int(predicted[k]),
                "predicted": int(shown[k]),
            }
            | {column: float(values[k]) for column, values in columns.items()}
            for k, name in enumerate(self.classes.names)
        ]
        return {
            "per_class": per_class,
            "notes": self._notes(data, counts),
            "pr_curves": {
                "recall": coco.recalls,
                "precision": coco.precision[0, :, :, 0, 2].T,  # (R, K) -> (K, R)
                "iou": 0.5,
            },
            "confusion": detection_confusion(data),
            "confusion_labels": [*self.classes.names, "background"],
            "confusion_thresholds": {"score": SCORE_THRESHOLD, "iou": IOU_THRESHOLD},
        }

    def _notes(self, data: Detections, counts: np.ndarray) -> list[str]:
        notes = []
        if not data.num_images:
            notes.append("no image was evaluated")
        elif not counts.any():
            notes.append("no ground truth: every metric is undefined")
        elif absent := [self.classes.names[k] for k in np.flatnonzero(counts == 0)]:
            noun = "class" if len(absent) == 1 else "classes"
            notes.append(f"{len(absent)} {noun} without ground truth, excluded: {listed(absent)}")
        if ignored := int(data.gt_ignore.sum()):
            noun = "object" if ignored == 1 else "objects"
            notes.append(f"{ignored} difficult or crowd {noun} ignored")
        pairs = (data.gt_images * data.num_classes + data.gt_labels)[~data.gt_ignore]
        if len(full := np.unique(pairs[_repeats(pairs) > MAX_DETECTIONS])):
            images = np.unique(full // data.num_classes)
            noun = "image has" if len(images) == 1 else "images have"
            notes.append(
                f"{len(images)} {noun} more than {MAX_DETECTIONS} objects of a class: COCO counts "
                "no more predictions there, so not all can be found"
            )
        if counts.any() and not len(data.scores):
            notes.append("the model predicted nothing")
        return notes

    def _check_labels(self, labels: np.ndarray, info: ImageInfo) -> None:
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise ValueError(
                f"{info.file_name}: labels {labels.min()}..{labels.max()}, "
                f"expected 0..{len(self.classes) - 1}"
            )


def pack_detections(records: list[Record], num_classes: int) -> Detections:
    """Records -> one set of arrays, images in the order of their sorted ids."""
    records = sorted(records, key=lambda record: record.info.image_id)
    predicted: list[PackedBoxes] = [r.predicted for r in records]
    annotated: list[PackedTruth] = [r.annotated for r in records]
    images = np.arange(len(records))

    def join(parts: list[np.ndarray], dtype: Any, *tail: int) -> np.ndarray:
        return np.concatenate([np.zeros((0, *tail), dtype), *parts]).astype(dtype)

    return Detections(
        num_images=len(records),
        num_classes=num_classes,
        images=np.repeat(images, [len(p.scores) for p in predicted]),
        boxes=join([p.boxes for p in predicted], np.float64, 4),
        scores=join([p.scores for p in predicted], np.float64),
        labels=join([p.labels for p in predicted], np.int64),
        gt_images=np.repeat(images, [len(a.labels) for a in annotated]),
        gt_boxes=join([a.boxes for a in annotated], np.float64, 4),
        gt_labels=join([a.labels for a in annotated], np.int64),
        gt_ignore=join([a.ignore for a in annotated], np.bool_),
        gt_areas=join([a.areas for a in annotated], np.float64),
        sizes=np.array([[r.info.height, r.info.width] for r in records], np.int64).reshape(-1, 2),
    )


def _repeats(values: np.ndarray) -> np.ndarray:
    """``(N,)``: how often each value is there."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse]


def _xywh_lists(boxes: np.ndarray) -> list[list[float]]:
    """float32 ``(N, 4)`` xyxy -> COCO's [x, y, w, h], computed in float64."""
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    lists: list[list[float]] = wide.tolist()
    return lists
