"""Hierarchical grouping: the two most alike neighbors become one, until one region is left.

Uijlings et al. 2013, algorithm 1 and equations 1 to 6. The merged region's histograms follow from
its parts' by their sizes; no pixel is looked at again.
"""

from __future__ import annotations

import heapq

import numpy as np

from cvtrain.proposals.regions import Regions

SIMILARITIES = "CTSF"
"""Color, texture, size, fill: what a strategy adds up, e.g. ``CTSF`` or ``TSF``."""


def group(regions: Regions, measures: str) -> np.ndarray:
    """The boxes of all regions of the hierarchy.

    Of pairs that are equally alike the one with the smaller numbers goes first; merged regions are
    numbered on.

    Args:
        regions: R initial regions.
        measures: letters of ``SIMILARITIES``.

    Returns:
        int64 ``(2 R - 1, 4)`` xyxy: the initial regions, then each merge in order; the whole image
        is the last.
    """
    count = len(regions.sizes)
    total = 2 * count - 1
    state = _State(regions, measures, total)
    first, second = regions.pairs[:, 0], regions.pairs[:, 1]
    alike = _initial(state, first, second)
    heap = list(zip((-alike).tolist(), first.tolist(), second.tolist(), strict=True))
    heapq.heapify(heap)
    around: list[set[int] | None] = [set() for _ in range(count)]
    for a, b in regions.pairs.tolist():
        around[a].add(b)  # type: ignore[union-attr]
        around[b].add(a)  # type: ignore[union-attr]
    new = count
    while new < total:
        _, a, b = heapq.heappop(heap)
        near_a, near_b = around[a], around[b]
        if near_a is None or near_b is None:  # one of them is part of a larger region by now
            continue
        near = near_a | near_b
        near.discard(a)
        near.discard(b)
        around[a] = around[b] = None
        state.merge(a, b, new)
        around.append(near)
        for c in near:
            others = around[c]
            assert others is not None
            others.discard(a)
            others.discard(b)
            others.add(new)
        if near:
            ids = np.fromiter(near, np.intp, len(near))
            for minus, c in zip(state.unlike(ids, new), ids.tolist(), strict=True):
                heapq.heappush(heap, (minus, c, new))
        new += 1
    return state.boxes()


class _State:
    """Arrays of all regions there will be; rows are filled as regions come to be."""

    def __init__(self, regions: Regions, measures: str, total: int) -> None:
        count = len(regions.sizes)
        parts = [regions.colors] * ("C" in measures) + [regions.textures] * ("T" in measures)
        width = sum(part.shape[1] for part in parts)
        self.bins = np.empty((total, width))
        np.concatenate([*parts, np.empty((count, 0))], axis=1, out=self.bins[:count])
        self.sizes = np.empty(total)
        self.sizes[:count] = regions.sizes
        # x0, y0, -x1, -y1: the smallest of each is the box around two.
        self.corners = np.empty((total, 4))
        self.corners[:count] = regions.boxes * [1, 1, -1, -1]
        self.area = float(regions.area)
        self.with_bins, self.with_size, self.with_fill = (
            width > 0,
            "S" in measures,
            "F" in measures,
        )

    def merge(self, a: int, b: int, new: int) -> None:
        """Fills row ``new`` with the union of rows ``a`` and ``b``."""
        of_a, of_b = self.sizes[a], self.sizes[b]
        self.sizes[new] = both = of_a + of_b
        np.minimum(self.corners[a], self.corners[b], out=self.corners[new])
        if self.with_bins:
            row = self.bins[new]
            np.multiply(self.bins[a], of_a, out=row)
            row += self.bins[b] * of_b
            row /= both

    def unlike(self, ids: np.ndarray, new: int) -> list[float]:
        """Minus the similarity of each of ``ids`` to ``new``."""
        return (-self.alike(ids, new)).tolist()

    def alike(self, ids: np.ndarray, other: int | np.ndarray) -> np.ndarray:
        """float64 ``(n,)``: similarities of rows ``ids`` to one row, or row by row to others."""
        found = np.zeros(len(ids))
        if self.with_bins:
            near = self.bins[ids]
            found = np.minimum(near, self.bins[other], out=near).sum(axis=1)
        together = self.sizes[ids] + self.sizes[other]
        if self.with_size:
            found += 1.0 - together / self.area
        if self.with_fill:
            union = np.minimum(self.corners[ids], self.corners[other])
            box = (union[:, 0] + union[:, 2]) * (union[:, 1] + union[:, 3])
            found += 1.0 - (box - together) / self.area
        return found

    def boxes(self) -> np.ndarray:
        return (self.corners * [1, 1, -1, -1]).astype(np.int64)


def _initial(state: _State, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 ``(E,)`` similarities of all neighbors, some at a time to spare memory."""
    step = 4096
    parts = [
        state.alike(first[i : i + step], second[i : i + step]) for i in range(0, len(first), step)
    ]
    return np.concatenate([np.zeros(0), *parts])
