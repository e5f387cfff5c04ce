"""Linear support vector machines, one per class, fitted to more negatives than memory holds.

Hard-negative mining (Felzenszwalb et al. 2010, "Object Detection with Discriminatively Trained Part
Based Models", section 4.4; R-CNN, arXiv 1311.2524, appendix B): a machine is fitted to all
positives and some negatives; the negatives inside its margin that it has not seen are added, those
far outside forgotten, and it is fitted again. The hinge loss of what is outside the margin is 0, so
once no hard negative is left out, this is the machine of all negatives.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

NEVER = -1e4
"""The margin of a class without positives."""
_HARD, _EASY = -1.0, -1.2
"""Negatives scored above the first are in the margin; those below the second are forgotten."""
_SLACK = 1e-3
"""So far above ``_HARD`` is still on the margin: the solver stops a little before the optimum."""
_ROWS = 16_384
MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class Machines:
    """What was fitted.

    Attributes:
        weight: float64 ``(K, F)``.
        bias: float64 ``(K,)``.
        rounds: fits and passes over all negatives.
        held: negatives that the last fits were of, all classes together.
        left: negatives in a margin that no fit has seen; 0 where the rounds were enough.
    """

    weight: np.ndarray
    bias: np.ndarray
    rounds: int
    held: int
    left: int


def fit_machines(
    features: np.ndarray,
    signs: np.ndarray,
    *,
    C: float,
    scale: float = 1.0,
    positive_weight: float = 1.0,
    bias_scale: float = 10.0,
    rounds: int = 10,
    most: int = 5000,
    tolerance: float = 1e-4,
) -> Machines:
    """Fit K machines (``sklearn.svm.LinearSVC``, hinge loss), mining their negatives.

    Args:
        features: float ``(M, F)``; may be memory-mapped.
        signs: int8 ``(M, K)``: 1 a positive of the class, -1 a negative, 0 neither.
        C: of the SVM: weight of the hinge losses against |w|^2 / 2.
        scale: the features are multiplied by it.
        positive_weight: the positives' share of C, relative to the negatives'.
        bias_scale: LinearSVC's ``intercept_scaling``: the larger, the less the bias is penalised.
        rounds: of mining at most.
        most: negatives of a class that a round adds at most, the hardest; and of the first fit,
            evenly spread over the rows.
        tolerance: of the solver.

    Returns:
        Machines on ``features`` times ``scale``. A class without positives has ``NEVER`` as bias
        and no weights; one without negatives always says 1.
    """
    classes = signs.shape[1]
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, NEVER)
    positives = [np.flatnonzero(signs[:, k] > 0) for k in range(classes)]
    held = [_spread(np.flatnonzero(signs[:, k] < 0), most) for k in range(classes)]
    bias[[k for k in range(classes) if len(positives[k]) and not len(held[k])]] = 1.0
    open_ = [k for k in range(classes) if len(positives[k]) and len(held[k])]
    done, left = 0, 0
    while open_ and done < rounds:
        for k in open_:
            rows = np.concatenate([positives[k], held[k]])
            order = np.sort(rows)  # a memory map is read from its beginning to its end
            x = np.asarray(features[order], np.float64) * scale
            machine = _machine(C, positive_weight, bias_scale, tolerance)
            _fit(machine, x, signs[order, k] > 0)
            weight[k], bias[k] = machine.coef_[0], machine.intercept_[0]
        done += 1
        found = _hard(features, signs, weight[open_] * scale, bias[open_], open_)
        left, still = 0, []
        for k, (rows, scores) in zip(open_, found, strict=True):
            new = ~np.isin(rows, held[k])
            fresh, strength = rows[new], scores[new]
            left += len(fresh)
            if not len(fresh):
                continue
            if done < rounds:
                hardest = np.argsort(-strength, kind="stable")[:most]
                easy = _easy(features, held[k], weight[k] * scale, bias[k])
                held[k] = np.sort(np.concatenate([held[k][~easy], fresh[hardest]]))
            still.append(k)
        open_ = still
    return Machines(weight, bias, done, sum(map(len, held)), left)


def _machine(C: float, positive_weight: float, bias_scale: float, tolerance: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=C,
        loss="hinge",
        dual=True,
        intercept_scaling=bias_scale,
        class_weight={True: positive_weight, False: 1.0},
        max_iter=MAX_ITERATIONS,
        tol=tolerance,
        random_state=0,
    )


def _fit(machine: Any, x: np.ndarray, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        # What a solution that is not quite there is worth, the metric says.
        warnings.filterwarnings("ignore", message=".*[Cc]onverge")
        machine.fit(x, y)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spread, in order."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _hard(
    features: np.ndarray,
    signs: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    classes: list[int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each class the rows of its negatives in the margin, and their scores: one pass."""
    rows: list[list[np.ndarray]] = [[] for _ in classes]
    values: list[list[np.ndarray]] = [[] for _ in classes]
    turned = weight.astype(np.float32).T  # (F, k)
    for start in range(0, len(features), _ROWS):
        part = slice(start, start + _ROWS)
        scores = features[part] @ turned + bias  # (n, k)
        hard = (scores > _HARD + _SLACK) & (signs[part][:, classes] < 0)
        for n in range(len(classes)):
            found = np.flatnonzero(hard[:, n])
            rows[n].append(found + start)
            values[n].append(scores[found, n])
    return [(np.concatenate(r), np.concatenate(v)) for r, v in zip(rows, values, strict=True)]


def _easy(features: np.ndarray, rows: np.ndarray, weight: np.ndarray, bias: float) -> np.ndarray:
    """Which of the rows, bool ``(N,)``, lie far outside the margin."""
    easy = np.zeros(len(rows), bool)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        easy[part] = features[rows[part]] @ weight + bias < _EASY
    return easy
