"""Localization metrics: is the class right, and does the box lie on the object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cvtrain.metrics.base import Metrics, Record, as_array, check_finite, listed
from cvtrain.metrics.box_overlap import box_ious
from cvtrain.structures import ImageInfo, Prediction, Target

IOU_THRESHOLD = 0.5
"""A box with at least this IoU lies on the object."""
GUESSES = 5
"""How many guesses ILSVRC allows."""
WORST = 10
"""Images listed as the worst."""


@dataclass(frozen=True)
class PackedGuesses:
    """The guesses of one image, best first.

    Attributes:
        label: the class said first: of the best guess, or the most probable where there is none.
        boxes: float32 ``(M, 4)`` xyxy.
        scores: float32 ``(M,)``.
        labels: int32 ``(M,)``.
    """

    label: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PackedObject:
    """The one object of an image.

    Attributes:
        label: its class.
        box: float32 ``(1, 4)`` xyxy.
    """

    label: int
    box: np.ndarray


class LocalizationMetrics(Metrics):
    """One class and one box an image, all in 0..1; NaN without any image.

    Scalars: ``localization_accuracy``, the best guess has the right class and an IoU of at least
    0.5 with the object; ``accuracy``, it has the right class; ``mean_iou``, the mean IoU of its box
    with the object, 0 where there is no box; ``top5_error``, the localization error of ILSVRC
    (Russakovsky et al. 2015, arXiv 1409.0575, section 4.2): the share of images where none of the
    five best guesses has both. A model with fewer guesses is scored on those; all of it follows
    from predictions.json and ground_truth.json, whose boxes are ``[x, y, w, h]`` in pixels.

    ``details()`` has ``per_class``, ``notes``, ``confusion`` ``(K, K)`` (rows truths, columns best
    guesses) with ``confusion_labels``, ``iou_curve`` (``threshold``, ``box``, ``both``, ``(101,)``
    each: the share of images whose best box, or best box and class, hold at an IoU) and ``worst``,
    the ten images with the least IoU.
    """

    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> PackedGuesses:
        probs = as_array(prediction.probs, "Prediction.probs", torch.float32)
        boxes = as_array(prediction.boxes, "Prediction.boxes", torch.float32).reshape(-1, 4)
        scores = as_array(prediction.scores, "Prediction.scores", torch.float32)
        labels = as_array(prediction.labels, "Prediction.labels", torch.int32)
        if probs.shape != (len(self.classes),):
            raise ValueError(
                f"{info.file_name}: probs of shape {probs.shape}, expected ({len(self.classes)},)"
            )
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"{info.file_name}: {len(boxes)} boxes, {len(scores)} scores, {len(labels)} labels"
            )
        for values, what in ((probs, "probabilities"), (boxes, "boxes"), (scores, "scores")):
            check_finite(values, what, info)
        for label in labels.tolist():
            self._check_label(label, info)
        label = int(labels[0]) if len(labels) else int(probs.argmax())
        return PackedGuesses(label, boxes, scores, labels)

    def _pack_truth(self, truth: Target, info: ImageInfo) -> PackedObject:
        box = as_array(truth.boxes, "Target.boxes", torch.float32)
        if truth.label is None:
            raise ValueError("Target.label is None, but this metric needs it")
        if box.shape != (1, 4):
            raise ValueError(f"{info.file_name}: boxes of shape {box.shape}, expected (1, 4)")
        self._check_label(int(truth.label), info)
        return PackedObject(int(truth.label), box)

    def _check_label(self, label: int, info: ImageInfo) -> None:
        if not 0 <= label < len(self.classes):
            raise ValueError(
                f"{info.file_name}: label {label}, expected 0..{len(self.classes) - 1}"
            )

    def _packed_entries(
        self, predicted: PackedGuesses, info: ImageInfo
    ) -> Iterator[dict[str, Any]]:
        for box, score, label in zip(
            predicted.boxes, predicted.scores.tolist(), predicted.labels.tolist(), strict=True
        ):
            yield {
                "image_id": info.image_id,
                "file_name": info.file_name,
                "category_id": self.classes.ids[label],
                "category": self.classes.names[label],
                "bbox": _xywh(box),
                "score": score,
            }

    def _truth_entries(self, annotated: PackedObject, info: ImageInfo) -> Iterator[dict[str, Any]]:
        x, y, width, height = _xywh(annotated.box[0])
        yield {
            "image_id": info.image_id,
            "category_id": self.classes.ids[annotated.label],
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": 0,
        }

    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        k = len(self.classes)
        truths = np.array([r.annotated.label for r in records], np.int64)  # (N,)
        labels = np.array([r.predicted.label for r in records], np.int64)
        ious, found = np.zeros(len(records)), np.zeros(len(records))
        for n, record in enumerate(records):
            ious[n], found[n] = _judge(record.predicted, record.annotated)
        right = truths == labels
        both = right & (ious >= IOU_THRESHOLD)
        scalars = {
            "localization_accuracy": _mean(both),
            "accuracy": _mean(right),
            "mean_iou": _mean(ious),
            "top5_error": _mean(1 - found),
        }
        confusion = np.bincount(truths * k + labels, minlength=k * k).reshape(k, k)
        per_class = []
        for c, name in enumerate(self.classes.names):
            own = truths == c
            per_class.append(
                {
                    "name": name,
                    "id": self.classes.ids[c],
                    "images": int(own.sum()),
                    "predictions": int((labels == c).sum()),
                    "localization_accuracy": _mean(both[own]),
                    "accuracy": _mean(right[own]),
                    "mean_iou": _mean(ious[own]),
                    "top5_error": _mean(1 - found[own]),
                }
            )
        threshold = np.arange(101) / 100
        held = ious[None, :] >= threshold[:, None]  # (101, N)
        details = {
            "per_class": per_class,
            "notes": self._notes(records, truths),
            "confusion": confusion,
            "confusion_labels": list(self.classes.names),
            "iou_curve": {
                "threshold": threshold,
                "box": _mean_rows(held),
                "both": _mean_rows(held & right[None, :]),
            },
            "worst": self._worst(records, ious),
        }
        return scalars, details

    def _worst(self, records: list[Record], ious: np.ndarray) -> list[dict[str, Any]]:
        names = self.classes.names
        return [
            {
                "file_name": records[n].info.file_name,
                "iou": float(ious[n]),
                "predicted": names[records[n].predicted.label],
                "truth": names[records[n].annotated.label],
            }
            for n in np.argsort(ious, kind="stable")[:WORST].tolist()
        ]

    def _notes(self, records: list[Record], truths: np.ndarray) -> list[str]:
        if not records:
            return ["no image was evaluated"]
        notes = []
        images = np.bincount(truths, minlength=len(self.classes))
        if absent := [self.classes.names[c] for c in np.flatnonzero(images == 0)]:
            noun = "class" if len(absent) == 1 else "classes"
            notes.append(f"{len(absent)} {noun} without ground truth: {listed(absent)}")
        if bare := sum(not len(r.predicted.boxes) for r in records):
            noun = "image" if bare == 1 else "images"
            notes.append(f"{bare} {noun} without a predicted box, IoU 0")
        return notes


def _judge(predicted: PackedGuesses, annotated: PackedObject) -> tuple[float, bool]:
    """The best guess's IoU, and whether any of the first five guesses is right in both."""
    if not len(predicted.boxes):
        return 0.0, False
    boxes = predicted.boxes[:GUESSES].astype(np.float64)
    ious = box_ious(boxes, annotated.box.astype(np.float64))[:, 0]  # (M, 1) -> (M,)
    hits = (predicted.labels[:GUESSES] == annotated.label) & (ious >= IOU_THRESHOLD)
    return float(ious[0]), bool(hits.any())


def _xywh(box: np.ndarray) -> list[float]:
    """float32 ``(4,)`` xyxy -> COCO's [x, y, w, h], computed in float64."""
    wide = box.astype(np.float64)
    wide[2:] -= wide[:2]
    values: list[float] = wide.tolist()
    return values


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _mean_rows(values: np.ndarray) -> np.ndarray:
    """``(T, N)`` -> ``(T,)`` means; NaN where N is 0."""
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    means: np.ndarray = values.mean(axis=1)
    return means
