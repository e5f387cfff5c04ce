"""Ridge regression: a linear map with an L2 penalty, solved at once."""

from __future__ import annotations

import numpy as np

_ROWS = 4096
"""Rows turned into float64 at a time."""


def ridge(
    inputs: np.ndarray, outputs: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weights that minimize |outputs - inputs W' - b|^2 + strength |W|^2.

    As ``sklearn.linear_model.Ridge(alpha=strength)``: the intercept is free of the penalty. Solved
    in as many unknowns as there are rows or columns, whichever are fewer.

    Args:
        inputs: ``(N, F)``, N at least 1; may be memory-mapped.
        outputs: ``(N, T)``.
        strength: above 0.

    Returns:
        float64 W ``(T, F)`` and b ``(T,)``.
    """
    count, features = inputs.shape
    mean_x: np.ndarray = np.zeros(features)
    for rows in _parts(count):
        mean_x = mean_x + inputs[rows].sum(axis=0, dtype=np.float64) / count
    wanted = np.asarray(outputs, np.float64)
    mean_y = wanted.mean(axis=0)
    wanted = wanted - mean_y
    if count < features:
        centered = np.asarray(inputs, np.float64) - mean_x  # (N, F)
        gram = centered @ centered.T
        gram[np.diag_indices(count)] += strength
        weight = np.linalg.solve(gram, wanted).T @ centered  # (T, N) @ (N, F)
    else:
        gram = np.zeros((features, features))
        crossed = np.zeros((features, wanted.shape[1]))
        for rows in _parts(count):
            centered = np.asarray(inputs[rows], np.float64) - mean_x
            gram += centered.T @ centered
            crossed += centered.T @ wanted[rows]
        gram[np.diag_indices(features)] += strength
        weight = np.linalg.solve(gram, crossed).T
    return weight, mean_y - weight @ mean_x


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]
