"""The masks of many objects in few arrays: objects that do not overlap share one.

500 masks of 512 x 512 pixels are 131 MB one by one, most of it zeros, and every transform would go
over all of it. Here each object is a value, 1 to 255, in one of a few planes of bytes; a plane is
moved at once. That is exact for transforms that take each pixel of a mask from one other pixel
(nearest neighbor), as all do that move masks; ``apart`` serves those that do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

_MOST = 255  # objects of a plane


class Masks:
    """The masks of N objects of one image.

    Args:
        planes: uint8 ``(P, H, W)``.
        plane: int64 ``(N,)``, the plane of each object.
        value: int64 ``(N,)``, its pixels' value there, 1 to 255; pixels of other values, which are
            those of no object of these, do not count.
    """

    def __init__(self, planes: np.ndarray, plane: np.ndarray, value: np.ndarray) -> None:
        self.planes, self.plane, self.value = planes, plane, value

    @classmethod
    def empty(cls, height: int, width: int) -> Masks:
        """No object, in an image of that size."""
        none = np.zeros(0, np.int64)
        return cls(np.zeros((0, height, width), np.uint8), none, none)

    @classmethod
    def of(cls, masks: np.ndarray) -> Masks:
        """``(N, H, W)`` of 0 and others, one an object."""
        windows = []
        for mask in masks:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if not len(rows):
                windows.append((0, 0, np.zeros((0, 0), bool)))
                continue
            y, x = int(rows[0]), int(columns[0])
            windows.append((y, x, mask[y : rows[-1] + 1, x : columns[-1] + 1] != 0))
        return cls.packed(windows, *masks.shape[1:])

    @classmethod
    def packed(
        cls, windows: Iterable[tuple[int, int, np.ndarray]], height: int, width: int
    ) -> Masks:
        """Objects given as row and column of a window, and the bool ``(h, w)`` inside it."""
        planes: list[np.ndarray] = []
        counts: list[int] = []
        plane, value = [], []
        for y, x, inside in windows:
            h, w = inside.shape
            for p in range(len(planes) + 1):
                if p == len(planes):
                    planes.append(np.zeros((height, width), np.uint8))
                    counts.append(0)
                place = planes[p][y : y + h, x : x + w]
                if counts[p] < _MOST and not place[inside].any():
                    break
            counts[p] += 1
            place[inside] = counts[p]
            plane.append(p)
            value.append(counts[p])
        stacked = np.stack(planes) if planes else np.zeros((0, height, width), np.uint8)
        return cls(stacked, np.array(plane, np.int64), np.array(value, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Masks]) -> Masks:
        """The objects of several, of images of one size, one after the other."""
        begins = np.cumsum([0, *(len(part.planes) for part in parts)])
        return cls(
            np.concatenate([part.planes for part in parts]),
            np.concatenate([part.plane + b for part, b in zip(parts, begins, strict=False)]),
            np.concatenate([part.value for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, k: int) -> np.ndarray:
        """uint8 ``(H, W)`` of 0 and 1: the mask of object k."""
        return (self.planes[self.plane[k]] == self.value[k]).astype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H, W."""
        return len(self), *self.planes.shape[1:]

    def take(self, rows: np.ndarray) -> Masks:
        """Some of the objects, by index or bool; planes that none of them lies in go."""
        plane, value = self.plane[rows], self.value[rows]
        used, plane = np.unique(plane, return_inverse=True)
        whole = len(used) == len(self.planes)
        return Masks(self.planes if whole else self.planes[used], plane.ravel(), value)

    def moved(self, planes: np.ndarray) -> Masks:
        """The same objects in planes that a transform moved, ``(P, H', W')``."""
        return Masks(planes, self.plane, self.value)

    def without(self, cover: np.ndarray) -> Masks:
        """The objects as far as bool ``(H, W)`` does not cover them; those covered wholly too."""
        return self.moved(np.where(cover, np.uint8(0), self.planes))

    def apart(self) -> Masks:
        """The same with a plane for each object, where it is 1."""
        return Masks(
            self.dense().view(np.uint8), np.arange(len(self)), np.ones(len(self), np.int64)
        )

    def union(self) -> np.ndarray:
        """Bool ``(H, W)``: where any of the objects is."""
        out = np.zeros(self.planes.shape[1:], bool)
        for p in np.unique(self.plane).tolist():
            chosen = np.zeros(256, bool)
            chosen[self.value[self.plane == p]] = True
            out |= chosen[self.planes[p]]
        return out

    def dense(self) -> np.ndarray:
        """Bool ``(N, H, W)``; only the pages that objects lie in are written."""
        out = np.zeros(self.shape, bool)
        for k, (x0, y0, x1, y1) in enumerate(self.boxes.astype(np.int64).tolist()):
            window = self.planes[self.plane[k], y0:y1, x0:x1]
            np.equal(window, self.value[k], out=out[k, y0:y1, x0:x1])
        return out

    @property
    def areas(self) -> np.ndarray:
        """float64 ``(N,)`` square pixels."""
        return self._measured[0]

    @property
    def boxes(self) -> np.ndarray:
        """float64 ``(N, 4)`` xyxy around each object's pixels; zeros where it has none."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        areas, boxes = np.zeros(len(self)), np.zeros((len(self), 4))
        width = max(1, self.planes.shape[2])
        for p in np.unique(self.plane).tolist():
            flat = self.planes[p].ravel()  # (H, W) -> (H * W,)
            at = np.flatnonzero(flat)
            values = flat[at]
            counts = np.bincount(values, minlength=256)
            order = np.argsort(values, kind="stable")
            rows, columns = np.divmod(at[order], width)
            found = np.flatnonzero(counts)
            starts = np.cumsum(counts[found]) - counts[found]
            bounds = np.zeros((256, 4))
            if len(found):
                bounds[found, 0] = np.minimum.reduceat(columns, starts)
                bounds[found, 1] = rows[starts]  # of one value the rows rise
                bounds[found, 2] = np.maximum.reduceat(columns, starts) + 1
                bounds[found, 3] = rows[starts + counts[found] - 1] + 1
            mine = np.flatnonzero(self.plane == p)
            areas[mine] = counts[self.value[mine]]
            boxes[mine] = bounds[self.value[mine]]
        return areas, boxes
