"""Classification metrics: accuracy, top-5, macro F1, per class, confusion matrix, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cvtrain.metrics.base import Metrics, Record, as_array, check_finite, listed
from cvtrain.structures import ImageInfo, Prediction, Target

ECE_BINS = 15


@dataclass(frozen=True)
class PackedClass:
    """What is kept of one image's K probabilities.

    Attributes:
        label: the most probable class, the first of them where several tie.
        score: its probability.
        top5: int32, the min(5, K) most probable classes, falling.
    """

    label: int
    score: float
    top5: np.ndarray


class ClassificationMetrics(Metrics):
    """Accuracy and its kin over the whole set, all in 0..1; NaN without any image.

    Scalars: ``accuracy``; ``accuracy_top5``, the truth among the five most probable classes, from
    six classes on;
    ``f1_macro``, the mean F1 over the classes that occur as truth or as prediction (as scikit-learn
    and torchmetrics take it); ``ece``, the expected calibration error over 15 bins of equal width
    (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, eq. 3).

    ``details()`` has ``per_class`` (F1, precision, recall), ``notes``, ``confusion`` ``(K, K)``
    (rows truths, columns predictions) with ``confusion_labels``, and ``reliability``: ``edges``
    ``(16,)``, and ``count``, ``accuracy``, ``confidence`` ``(15,)``, NaN for empty bins.
    """

    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> PackedClass:
        probs = as_array(prediction.probs, "Prediction.probs", torch.float32)
        if probs.shape != (len(self.classes),):
            raise ValueError(
                f"{info.file_name}: probs of shape {probs.shape}, expected ({len(self.classes)},)"
            )
        check_finite(probs, "probabilities", info)
        order = np.argsort(-probs, kind="stable")[:5]
        best = int(order[0])
        return PackedClass(best, float(probs[best]), order.astype(np.int32))

    def _pack_truth(self, truth: Target, info: ImageInfo) -> int:
        if truth.label is None:
            raise ValueError("Target.label is None, but this metric needs it")
        label = int(truth.label)
        if not 0 <= label < len(self.classes):
            raise ValueError(
                f"{info.file_name}: label {label}, expected 0..{len(self.classes) - 1}"
            )
        return label

    def _packed_entries(self, predicted: PackedClass, info: ImageInfo) -> Iterator[dict[str, Any]]:
        yield {
            "image_id": info.image_id,
            "file_name": info.file_name,
            "category_id": self.classes.ids[predicted.label],
            "category": self.classes.names[predicted.label],
            "score": predicted.score,
        }

    def _truth_entries(self, annotated: int, info: ImageInfo) -> Iterator[dict[str, Any]]:
        yield {"image_id": info.image_id, "category_id": self.classes.ids[annotated]}

    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        k = len(self.classes)
        truths = np.array([r.annotated for r in records], np.int64)
        labels = np.array([r.predicted.label for r in records], np.int64)
        scores = np.array([r.predicted.score for r in records], np.float64)
        top5 = np.array([r.annotated in r.predicted.top5 for r in records], np.float64)

        confusion = np.bincount(truths * k + labels, minlength=k * k).reshape(k, k)
        reliability = calibration_bins(scores, truths == labels)
        precision, recall, f1 = precision_recall_f1(confusion)
        occurs = (confusion.sum(0) + confusion.sum(1)) > 0
        scalars = {
            "accuracy": _mean(truths == labels),
            **({"accuracy_top5": _mean(top5)} if k > 5 else {}),  # of five it is always 1
            "f1_macro": _mean(f1[occurs]),
            "ece": expected_calibration_error(reliability),
        }
        per_class = [
            {
                "name": name,
                "id": self.classes.ids[c],
                "images": int(confusion[c].sum()),
                "predictions": int(confusion[:, c].sum()),
                "f1": float(f1[c]),
                "precision": float(precision[c]),
                "recall": float(recall[c]),
            }
            for c, name in enumerate(self.classes.names)
        ]
        details = {
            "per_class": per_class,
            "notes": self._notes(confusion),
            "confusion": confusion,
            "confusion_labels": list(self.classes.names),
            "reliability": reliability,
        }
        return scalars, details

    def _notes(self, confusion: np.ndarray) -> list[str]:
        if not confusion.sum():
            return ["no image was evaluated"]
        absent = [self.classes.names[c] for c in np.flatnonzero(confusion.sum(axis=1) == 0)]
        if not absent:
            return []
        noun = "class" if len(absent) == 1 else "classes"
        return [f"{len(absent)} {noun} without ground truth: {listed(absent)}"]


def precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(K, K)`` counts, rows truths -> ``(K,)`` precision, recall, F1.

    Precision of a class never predicted is 0; recall of a class without ground truth is NaN, and
    so is the F1 of a class that occurs nowhere.
    """
    true = np.diag(confusion).astype(np.float64)
    predicted, actual = confusion.sum(axis=0), confusion.sum(axis=1)
    precision = np.divide(true, predicted, out=np.zeros_like(true), where=predicted > 0)
    recall = np.divide(true, actual, out=np.full_like(true, np.nan), where=actual > 0)
    both = predicted + actual
    f1 = np.divide(2 * true, both, out=np.full_like(true, np.nan), where=both > 0)
    return precision, recall, f1


def calibration_bins(scores: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """How often predictions of a given confidence are right.

    Args:
        scores: float64 ``(N,)`` confidence of the predicted class, 0..1.
        correct: bool ``(N,)``.

    Returns:
        ``edges`` ``(16,)``; ``count``, ``accuracy``, ``confidence`` ``(15,)``: bin m holds scores
        in ``(edges[m], edges[m + 1]]``, the first one 0 as well; NaN where it is empty.
    """
    edges = np.arange(ECE_BINS + 1) / ECE_BINS
    bins = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, ECE_BINS - 1)
    count = np.bincount(bins, minlength=ECE_BINS)
    empty = np.full(ECE_BINS, np.nan)
    right = np.bincount(bins, weights=correct.astype(np.float64), minlength=ECE_BINS)
    total = np.bincount(bins, weights=scores, minlength=ECE_BINS)
    return {
        "edges": edges,
        "count": count,
        "accuracy": np.divide(right, count, out=empty.copy(), where=count > 0),
        "confidence": np.divide(total, count, out=empty.copy(), where=count > 0),
    }


def expected_calibration_error(bins: dict[str, np.ndarray]) -> float:
    """The gap between confidence and accuracy, averaged over bins by their counts."""
    count = bins["count"]
    if not count.sum():
        return float("nan")
    gap = np.abs(bins["accuracy"] - bins["confidence"])
    return float(np.nansum(count * gap) / count.sum())


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
