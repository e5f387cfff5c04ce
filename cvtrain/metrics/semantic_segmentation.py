"""Semantic segmentation: IoU and its kin from one confusion matrix over all pixels of the set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain.data.formats.files import IMAGE_SUFFIXES
from cvtrain.data.table import Classes
from cvtrain.metrics.base import Metrics, Record, listed
from cvtrain.metrics.contours import boundary_counts
from cvtrain.structures import IGNORE_INDEX, ImageInfo, Prediction, Target
from cvtrain.text import output_file

WORST = 10
"""Images listed as the worst."""


@dataclass(frozen=True)
class PackedCounts:
    """What is kept of one image: what of its counts is not 0.

    Attributes:
        places: int32 ``(n,)``, truth * K + prediction.
        pixels: int64 ``(n,)``, so many of them.
        outlined: int64 ``(m,)``, classes with a boundary.
        boundary: int64 ``(m, 4)``, see ``boundary_counts``.
        void: pixels without a true class.
    """

    places: np.ndarray
    pixels: np.ndarray
    outlined: np.ndarray
    boundary: np.ndarray
    void: int


class SemanticSegmentationMetrics(Metrics):
    """Metrics of class maps in the original's pixels, all in 0..1; NaN without any counted pixel.

    All but the last follow from one ``(K, K)`` matrix of counts over all pixels of all images (so
    that a large image counts more than a small one, as in VOC, Cityscapes and ADE20K); pixels whose
    truth is void (255) count for nothing, whatever is predicted there. Means over classes take
    those that the ground truth has anywhere; the others are named in the notes, and what is
    predicted as one of them still lacks elsewhere. A class called background is one like any other.

    Scalars: ``mIoU``, the mean of TP / (TP + FP + FN); ``pixel_accuracy``; ``mean_accuracy``, the
    mean of TP / (TP + FN); ``dice``, the mean of 2 TP / (2 TP + FP + FN); ``fwIoU``, IoU weighted
    with the class's share of the true pixels; ``boundary_F``, the mean over classes of the F
    measure of their outlines: precision is the share of predicted boundary pixels that have a true
    one within 0.75 % of the image's diagonal (in whole pixels, rounded up), recall the share of
    true ones that have a predicted one. Csurka et al. 2013 take its mean over images; here the
    boundary pixels of the whole set are counted together, as all else is. See metrics/contours.py.

    ``details()`` has ``per_class``, ``notes``, ``confusion`` ``(K, K)`` (rows truths, columns
    predictions) with ``confusion_labels``, ``class_iou`` (what a plot of it needs) and ``worst``,
    the ten images with the least IoU: over the classes that the image has, to sort by alone.

    An entry of predictions.json is an image: ``mask``, the PNG of its class map below the run
    folder (a pixel holds the index of its class), and ``pixels`` of each class.

    Attributes:
        keep_suffix: whether the PNG of ``a.jpg`` is ``a.jpg.png``, as there is an ``a.png`` too.
    """

    def __init__(self, classes: Classes) -> None:
        super().__init__(classes)
        self.keep_suffix = False

    def _record(self, prediction: Prediction, truth: Target, info: ImageInfo) -> Record:
        """Counted where the prediction is: of a GPU's no image crosses, but the counts."""
        k = len(self.classes)
        message = self._mask(prediction.mask, "Prediction.mask", info)
        true = self._pack_truth(truth, info).to(message.device)
        if message.shape != true.shape:
            shapes = tuple(message.shape), tuple(true.shape)
            raise ValueError(
                f"{info.file_name}: a mask of {shapes[0]} predicted, "
                f"the ground truth is {shapes[1]}"
            )
        # Void truths come last, in a row of their own.
        rows = torch.where(true == IGNORE_INDEX, k, true.int())
        counts = torch.bincount((rows * k + message).flatten(), minlength=(k + 1) * k)
        matrix = counts.cpu().numpy()  # int64 ((K + 1) K,)
        places = np.flatnonzero(matrix[: k * k])
        packed = PackedCounts(
            places.astype(np.int32),
            matrix[places],
            *boundary_counts(message, true),
            void=int(matrix[k * k :].sum()),
        )
        return Record(info, matrix.reshape(k + 1, k).sum(axis=0), packed)

    def _mask(self, mask: Tensor | None, what: str, info: ImageInfo) -> Tensor:
        """uint8 ``(H, W)``, checked, on the device where it is."""
        if mask is None:
            raise ValueError(f"{what} is None, but this metric needs it")
        mask, k = mask.detach(), len(self.classes)
        low, high = (int(v) for v in mask.aminmax()) if mask.numel() else (0, 0)
        inside = low >= 0 and high < k
        if what.startswith("Target") and not inside:
            inside = low >= 0 and bool(((mask < k) | (mask == IGNORE_INDEX)).all())
        if mask.ndim != 2 or not inside:
            raise ValueError(
                f"{info.file_name}: {what} of shape {tuple(mask.shape)} with values "
                f"{low}..{high}, expected (H, W) of 0..{k - 1}"
            )
        return mask.to(torch.uint8)

    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> np.ndarray:
        """int64 ``(K,)`` pixels of each class."""
        mask = self._mask(prediction.mask, "Prediction.mask", info)
        return torch.bincount(mask.flatten(), minlength=len(self.classes)).cpu().numpy()

    def _pack_truth(self, truth: Target, info: ImageInfo) -> Tensor:
        """The checked mask; it is counted, not kept."""
        return self._mask(truth.mask, "Target.mask", info)

    def _packed_entries(self, predicted: np.ndarray, info: ImageInfo) -> Iterator[dict[str, Any]]:
        yield {
            "image_id": info.image_id,
            "file_name": info.file_name,
            "mask": mask_file(info.file_name, self.keep_suffix),
            "pixels": {
                name: int(n) for name, n in zip(self.classes.names, predicted, strict=True) if n
            },
        }

    def _truth_entries(self, annotated: PackedCounts, info: ImageInfo) -> Iterator[dict[str, Any]]:
        areas = self._matrix([annotated]).sum(axis=1)
        for c in np.flatnonzero(areas).tolist():
            yield {
                "image_id": info.image_id,
                "category_id": self.classes.ids[c],
                "area": int(areas[c]),
            }

    def _matrix(self, parts: list[PackedCounts]) -> np.ndarray:
        """int64 ``(K, K)``, the sum over images."""
        k = len(self.classes)
        matrix = np.zeros(k * k, np.int64)
        for part in parts:
            matrix[part.places] += part.pixels
        return matrix.reshape(k, k)

    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        parts: list[PackedCounts] = [r.annotated for r in records]
        k = len(self.classes)
        confusion = self._matrix(parts)
        outlines = np.zeros((k, 4), np.int64)
        images = np.zeros(k, np.int64)  # those that have the class
        for part in parts:
            outlines[part.outlined] += part.boundary
            images[np.unique(part.places // k)] += 1
        actual, total = confusion.sum(axis=1), int(confusion.sum())
        there = actual > 0
        iou, dice, accuracy, precision = _overlaps(confusion)
        sharp = _boundary_f(outlines, there)
        scalars = {
            "mIoU": _mean(iou[there]),
            "pixel_accuracy": _ratio(int(np.trace(confusion)), total),
            "mean_accuracy": _mean(accuracy[there]),
            "dice": _mean(dice[there]),
            "fwIoU": _ratio(float((actual * np.nan_to_num(iou)).sum()), total),
            "boundary_F": _mean(sharp[~np.isnan(sharp)]),
        }
        per_class = [
            {
                "name": name,
                "id": self.classes.ids[c],
                "images": int(images[c]),
                "pixels": int(actual[c]),
                "IoU": float(iou[c]),
                "dice": float(dice[c]),
                "accuracy": float(accuracy[c]),
                "precision": float(precision[c]),
                "boundary_F": float(sharp[c]),
            }
            for c, name in enumerate(self.classes.names)
        ]
        details = {
            "per_class": per_class,
            "notes": self._notes(parts, actual),
            "confusion": confusion,
            "confusion_labels": list(self.classes.names),
            "class_iou": {"mean": scalars["mIoU"], "share": actual / max(1, total)},
            "worst": self._worst(records),
        }
        return scalars, details

    def _worst(self, records: list[Record]) -> list[dict[str, Any]]:
        """The images with the least IoU, the worst first; those that are all void are none."""
        found = []
        for record in records:
            confusion = self._matrix([record.annotated])
            there = confusion.sum(axis=1) > 0
            if there.any():
                value = float(_overlaps(confusion)[0][there].mean())
                right = _ratio(int(np.trace(confusion)), int(confusion.sum()))
                found.append((value, right, record.info))
        found.sort(key=lambda entry: entry[0])  # stable: in the order of the split
        return [
            {
                "file_name": info.file_name,
                "index": info.index,
                "mean_iou": value,
                "pixel_accuracy": right,
            }
            for value, right, info in found[:WORST]
        ]

    def _notes(self, parts: list[PackedCounts], actual: np.ndarray) -> list[str]:
        if not parts:
            return ["no image was evaluated"]
        notes = []
        if absent := [self.classes.names[c] for c in np.flatnonzero(actual == 0)]:
            noun = "class" if len(absent) == 1 else "classes"
            notes.append(
                f"the means exclude {len(absent)} {noun} without ground truth: {listed(absent)}"
            )
        if blank := sum(not len(part.places) for part in parts):
            noun = "image is" if blank == 1 else "images are"
            notes.append(f"{blank} {noun} void altogether and count for nothing")
        return notes


def mask_file(file_name: str, keep_suffix: bool = False) -> str:
    """Where the class map of an image is written, below the run folder: ``masks/NAME.png``."""
    path = PurePosixPath(file_name)
    if not keep_suffix and path.suffix.lower() in IMAGE_SUFFIXES:
        file_name = str(path.with_suffix(""))
    return f"masks/{output_file(file_name, '.png')}"


def must_keep_suffix(files: list[str]) -> bool:
    """Whether two of these images would have one mask file (``a.jpg`` and ``a.png``)."""
    return len({mask_file(file) for file in files}) < len(files)


def _overlaps(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``(K, K)`` counts -> ``(K,)`` IoU, dice, accuracy (recall), precision.

    NaN for a class without ground truth; the precision of a class never predicted is 0.
    """
    true = np.diag(confusion).astype(np.float64)
    actual, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    there = actual > 0
    union = actual + predicted - np.diag(confusion)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        out = np.where(there, 0.0, np.nan)
        return np.divide(part, whole, out=out, where=there & (whole > 0))

    return (
        share(true, union),
        share(2 * true, actual + predicted),
        share(true, actual),
        share(true, predicted),
    )


def _boundary_f(counts: np.ndarray, there: np.ndarray) -> np.ndarray:
    """``(K, 4)`` of ``boundary_counts`` -> ``(K,)`` F; NaN where the truth has no boundary."""
    values = np.full(len(counts), np.nan)
    for c, (message, near_said, true, near_true) in enumerate(counts.tolist()):
        if not there[c] or not true:
            continue
        precision = near_said / message if message else 0.0
        recall = near_true / true
        both = precision + recall
        values[c] = 2 * precision * recall / both if both else 0.0
    return values


def _ratio(part: float, whole: int) -> float:
    return float(part) / whole if whole else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
