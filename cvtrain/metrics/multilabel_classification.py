"""Multi-label metrics: average precision a class and its mean, F1, precision, recall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cvtrain.metrics.base import Metrics, Record, as_array, check_finite, listed
from cvtrain.structures import ImageInfo, Prediction, Target

THRESHOLD = 0.5
"""A class is predicted from this probability on; average precision needs no threshold."""

_RECALLS = np.arange(1, 102) / 101


class MultilabelClassificationMetrics(Metrics):
    """Metrics of images with any number of classes, over the whole set, in 0..1.

    Scalars: ``mAP``, the mean over classes of the average precision (the area under the curve of
    precision over recall, not interpolated, ties taken together, as scikit-learn's
    ``average_precision_score``); classes that no image has are left out, and named in the notes.
    At a threshold of 0.5: ``f1_macro``, the mean F1 over the classes that occur as truth or as
    prediction; ``f1_micro``, ``precision_micro`` and ``recall_micro`` of all (image, class) pairs
    together; ``exact_match``, the share of images with all classes right. NaN without any image.

    ``details()`` has ``per_class`` (AP, F1, precision, recall), ``notes``, and ``pr_curves``:
    ``recall`` ``(101,)``, ``precision`` ``(K, 101)``, ``ap`` ``(K,)``, NaN for classes without
    images.
    """

    threshold = THRESHOLD

    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> np.ndarray:
        probs = self._shaped(as_array(prediction.probs, "Prediction.probs", torch.float32), info)
        check_finite(probs, "probabilities", info)
        return probs

    def _pack_truth(self, truth: Target, info: ImageInfo) -> np.ndarray:
        probs = self._shaped(as_array(truth.probs, "Target.probs", torch.float32), info)
        return np.flatnonzero(probs >= THRESHOLD).astype(np.int32)

    def _shaped(self, probs: np.ndarray, info: ImageInfo) -> np.ndarray:
        if probs.shape != (len(self.classes),):
            raise ValueError(
                f"{info.file_name}: probs of shape {probs.shape}, expected ({len(self.classes)},)"
            )
        return probs

    def _packed_entries(self, predicted: np.ndarray, info: ImageInfo) -> Iterator[dict[str, Any]]:
        found = np.flatnonzero(predicted >= THRESHOLD)
        yield {
            "image_id": info.image_id,
            "file_name": info.file_name,
            "category_ids": [self.classes.ids[c] for c in found],
            "categories": [self.classes.names[c] for c in found],
            "scores": dict(zip(self.classes.names, predicted.tolist(), strict=True)),
        }

    def _truth_entries(self, annotated: np.ndarray, info: ImageInfo) -> Iterator[dict[str, Any]]:
        for c in annotated:
            yield {"image_id": info.image_id, "category_id": self.classes.ids[c]}

    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        k = len(self.classes)
        scores = np.array([r.predicted for r in records], np.float32).reshape(-1, k)
        truths = np.zeros((len(records), k), bool)
        for row, record in zip(truths, records, strict=True):
            row[record.annotated] = True
        message = scores >= THRESHOLD  # (N, K)
        right = (message & truths).sum(0)  # (K,)
        predicted, actual = message.sum(0), truths.sum(0)
        precision, recall, f1 = _rates(right, predicted, actual)
        curves = [average_precision(truths[:, c], scores[:, c]) for c in range(k)]
        ap = np.array([area for area, _ in curves])
        micro = _rates(right.sum(), predicted.sum(), actual.sum())
        scalars = {
            "mAP": _mean(ap),
            "f1_macro": _mean(f1),
            "f1_micro": float(micro[2]),
            "precision_micro": float(micro[0]) if records else float("nan"),
            "recall_micro": float(micro[1]),
            "exact_match": _mean((message == truths).all(1).astype(np.float64)),
        }
        per_class = [
            {
                "name": name,
                "id": self.classes.ids[c],
                "images": int(actual[c]),
                "predictions": int(predicted[c]),
                "AP": float(ap[c]),
                "f1": float(f1[c]),
                "precision": float(precision[c]),
                "recall": float(recall[c]),
            }
            for c, name in enumerate(self.classes.names)
        ]
        details = {
            "per_class": per_class,
            "notes": self._notes(len(records), actual),
            "pr_curves": {
                "recall": _RECALLS,
                "precision": np.array([curve for _, curve in curves]).reshape(k, len(_RECALLS)),
                "ap": ap,
            },
        }
        return scalars, details

    def _notes(self, images: int, actual: np.ndarray) -> list[str]:
        if not images:
            return ["no image was evaluated"]
        absent = [self.classes.names[c] for c in np.flatnonzero(actual == 0)]
        if not absent:
            return []
        noun = "class" if len(absent) == 1 else "classes"
        return [f"mAP excludes {len(absent)} {noun} that no image has: {listed(absent)}"]


def average_precision(truths: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """``sum_n (R_n - R_(n-1)) P_n`` over the thresholds n, falling, and the curve it is under.

    Args:
        truths: bool ``(N,)``.
        scores: ``(N,)``; equal ones make one threshold.

    Returns:
        The average precision, NaN without a true image, and precision ``(101,)`` at the first
        threshold that reaches each recall of 1/101, 2/101, ..., 1.
    """
    positives = int(truths.sum())
    if not positives:
        return float("nan"), np.full(len(_RECALLS), np.nan)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # the last of each score
    right = np.cumsum(truths[order])[ends]
    precision, recall = right / (ends + 1), right / positives
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return area, precision[np.searchsorted(recall, _RECALLS - 1e-9)]


def _rates(right: Any, predicted: Any, actual: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, 0 where nothing is predicted; recall and F1, NaN where nothing is to be found."""
    right, predicted, actual = (np.asarray(v, np.float64) for v in (right, predicted, actual))
    none = np.full(right.shape, np.nan)
    precision = np.divide(right, predicted, out=np.zeros(right.shape), where=predicted > 0)
    recall = np.divide(right, actual, out=none.copy(), where=actual > 0)
    both = predicted + actual
    f1 = np.divide(2 * right, both, out=none.copy(), where=both > 0)
    return precision, recall, f1


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
