"""Pixels of each class in the masks of a split, for weights of classes and for what is there."""

from __future__ import annotations

import numpy as np

from cvtrain.data.dataset import VisionDataset

MOST_MASKS = 2000
"""So many masks of a split are opened at most, spread evenly."""


def spread(count: int) -> np.ndarray:
    """Int64: the rows whose masks are looked at, all or ``MOST_MASKS``."""
    if count <= MOST_MASKS:
        return np.arange(count)
    return np.linspace(0, count - 1, MOST_MASKS).astype(np.int64)


def mask_pixels(dataset: VisionDataset) -> tuple[list[int], list[int]]:
    """Of each class, and of the images that have it, void dropped: K numbers twice."""
    rows = spread(len(dataset)).tolist()
    pixels = np.stack([dataset.mask_pixels(row) for row in rows])  # (N, K)
    totals = ((pixels > 0) * pixels.sum(axis=1, keepdims=True)).sum(axis=0)
    return pixels.sum(axis=0).tolist(), totals.tolist()
