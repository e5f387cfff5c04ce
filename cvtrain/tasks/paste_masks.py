"""Masks of a few pixels a box, put where the box lies: RLE of the whole image, one at a time.

He et al. 2017, "Mask R-CNN", arXiv 1703.06870, section 3.1: the m x m output is resized to the
box's size and binarised at 0.5. Here without a detour over whole pixels: the image's pixels are
sampled at their centers, in the box as it is.
"""

from __future__ import annotations

import numpy as np

from cvtrain.data.masks import part_to_rle
from cvtrain.structures import RLE

THRESHOLD = 0.5
"""Pixels at least as probable as this are the object's."""

_STRIPE = 1 << 22
"""Pixels of a box that are interpolated at once: 16 MiB."""


def paste_rles(probs: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[RLE]:
    """Masks over boxes -> RLE of the whole image; only the area of a box is ever computed.

    Args:
        probs: float32 ``(N, m, m)`` in 0..1, over each box.
        boxes: ``(N, 4)`` xyxy pixels; they may reach beyond the image, where nothing is drawn.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    pairs = zip(probs, boxes.astype(np.float64), strict=True)
    return [part_to_rle(*paste(grid, box, height, width), height, width) for grid, box in pairs]


def paste(
    grid: np.ndarray, box: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, int, int]:
    """One mask where its box lies in the image.

    Bilinear: value (i, j) of the grid stands at the center of its cell, a pixel is asked at its
    own; beyond the outermost centers values fall off to 0 within one cell, as if cells of 0 stood
    around the grid (so the paper's code has it): a mask of ones ends where its box does, its
    corners rounded off by less than half a cell.

    Args:
        grid: float32 ``(m, n)`` in 0..1.
        box: ``(4,)`` xyxy pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        bool ``(h, w)``, the pixels whose centers lie in the box and in the image, and the row and
        the column of the first of them.
    """
    left, top, right, bottom = (float(v) for v in box)
    first, down = _weights(top, bottom, height, grid.shape[0])  # (h, m)
    start, along = _weights(left, right, width, grid.shape[1])  # (w, n)
    inside = np.empty((len(down), len(along)), bool)
    rows = grid.astype(np.float32) @ along.T  # (m, n) -> (m, w)
    step = max(1, _STRIPE // max(1, len(along)))
    for at in range(0, len(down), step):
        inside[at : at + step] = down[at : at + step] @ rows >= THRESHOLD  # -> (step, w)
    return inside, first, start


def _weights(low: float, high: float, size: int, count: int) -> tuple[int, np.ndarray]:
    """The first of ``size`` pixels between two edges, and what each takes of ``count`` cells."""
    first = min(size, max(0, int(np.ceil(low - 0.5))))
    last = max(first, min(size, int(np.ceil(high - 0.5))))
    weights = np.zeros((last - first, count), np.float32)
    if last == first:
        return first, weights
    place = (np.arange(first, last) + 0.5 - low) * (count / (high - low)) - 0.5
    cell = np.floor(place).astype(np.int64)
    share = place - cell
    for k, part in ((cell, 1 - share), (cell + 1, share)):
        there = (k >= 0) & (k < count)
        weights[np.flatnonzero(there), k[there]] = part[there]
    return first, weights
