"""Whether the long lines of YOLO labels are polygons, or boxes with keypoints behind them.

Both are a class and numbers. A line of a pose data set begins with a box (center and size) that
holds the points behind it; without `kpt_shape` in data.yaml it reads as a polygon whose second
vertex is that size. One line rarely tells; all lines of a split do, where they have one length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MOST_LINES = 4_096  # lines looked at
_MOST_VALUES = 404  # on a line: 133 keypoints (a whole body) of three numbers
_MOST_CROSSED = 256  # lines whose edges are held against each other
_ONE_LENGTH = 0.95  # of the long lines have the same number of values
_FIT = 0.9  # of these lines: the box lies in the image and holds the points
_NO_POLYGON = 0.5  # of these lines would be odd polygons
_SEEN = 0.99  # of the third numbers are 0, 1 or 2
_FEWEST_SEEN = 4  # third numbers, over all lines
_FEWEST_LINES = {1: 24, 2: 6}  # points a line -> lines; 4 for more points
_OUT = 0.1  # of the box: so far outside may a keypoint lie, beside a hundredth of the image


@dataclass(frozen=True)
class Pose:
    """Lines that are boxes with keypoints.

    Attributes:
        points, numbers: ``kpt_shape``.
        words: values on each line, the class counted.
        fitting, lines: how many lines have a box that holds its points, of how many looked at.
        file, number: label file and line number of the first.
    """

    points: int
    numbers: int
    words: int
    fitting: int
    lines: int
    file: str
    number: int

    def message(self) -> str:
        """One line: the evidence, and the line that data.yaml lacks."""
        return (
            f"lines of {self.words} values are boxes with {self.points} keypoint"
            f"{'s' if self.points > 1 else ''}, not polygons: "
            f"in {self.fitting:,} of {self.lines:,} the box (values 2 to 5) holds all points behind"
            f" it; add `kpt_shape: [{self.points}, {self.numbers}]` to data.yaml"
        )


class LongLines:
    """The lines of a split that have more values than a box, looked at together.

    Attributes:
        polygons: how many were read as polygons.
        corners: how many of these have four corners.
        first: label file and line number of the first polygon.
    """

    def __init__(self) -> None:
        self.polygons = self.corners = 0
        self.first = ("", 0)
        self._lengths: Counter[int] = Counter()
        self._kept: dict[int, list[tuple[list[float], str, int]]] = {}
        self._room = _MOST_LINES

    def add(self, line: str, file: str, number: int, polygon: bool) -> None:
        """Takes in a line; ``polygon``: it was read as one, and not as malformed."""
        words = line.split()
        if polygon:
            self.first = self.first if self.polygons else (file, number)
            self.polygons += 1
            self.corners += len(words) == 9
        if polygon or (len(words) >= 8 and (len(words) - 5) % 3 == 0):
            self._lengths[len(words)] += 1
            if self._room and len(words) - 1 <= _MOST_VALUES:
                self._keep(words, file, number)

    def _keep(self, words: Sequence[str], file: str, number: int) -> None:
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            return
        self._room -= 1
        self._kept.setdefault(len(words), []).append((values, file, number))

    def pose(self) -> Pose | None:
        """The keypoints that the lines have; None where they are polygons, or nothing tells."""
        if not self._lengths:
            return None
        words, count = self._lengths.most_common(1)[0]
        kept = self._kept.get(words, [])
        if not kept or count < _ONE_LENGTH * self._lengths.total():
            return None
        values = np.array([value for value, _, _ in kept])  # (L, 4 + points * numbers)
        for numbers in (3, 2):
            points, rest = divmod(values.shape[1] - 4, numbers)
            if rest or points < 1:
                continue
            fit = _hold_points(values, numbers)
            if fit.mean() < _FIT:
                continue
            tell = _tell_by_third(values) if numbers == 3 else _tell_by_shape(values)
            if tell:
                _, file, number = kept[0]
                return Pose(points, numbers, words, int(fit.sum()), len(kept), file, number)
        return None


def _points(values: np.ndarray, numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``(L, P, numbers)``, and bool ``(L, P)``: those that are labeled, not at (0, 0)."""
    points = values[:, 4:].reshape(len(values), -1, numbers)
    return points, (points[..., :2] != 0).any(-1)


def _hold_points(values: np.ndarray, numbers: int) -> np.ndarray:
    """Bool ``(L,)``: the first four numbers are a box in the image that holds its points."""
    center, size = values[:, :2], values[:, 2:4]
    points, labeled = _points(values, numbers)
    low, high = center - size / 2, center + size / 2
    box = (size > 0).all(1) & (low > -0.02).all(1) & (high < 1.02).all(1)
    slack = size / 2 + _OUT * size + 0.01
    inside = (np.abs(points[..., :2] - center[:, None]) <= slack[:, None]).all(-1)  # (L, P)
    hold: np.ndarray = box & (inside | ~labeled).all(1)
    return hold


def _tell_by_third(values: np.ndarray) -> bool:
    """Whether every third number is 0, 1 or 2 (hidden, seen): coordinates are not."""
    third = _points(values, 3)[0][..., 2]
    return third.size >= _FEWEST_SEEN and float(np.isin(third, (0, 1, 2)).mean()) >= _SEEN


def _tell_by_shape(values: np.ndarray) -> bool:
    """Whether the lines make odd polygons, as points in no order do with a size among them.

    The second vertex of a polygon lies near the others, edges do not cross, and no two vertices
    lie at (0, 0).
    """
    points, labeled = _points(values, 2)
    if len(values) < _FEWEST_LINES.get(points.shape[1], 4):
        return False
    rows = np.linspace(0, len(values) - 1, min(len(values), _MOST_CROSSED)).astype(np.int64)
    values, points, labeled = values[rows], points[rows], labeled[rows]
    others = np.concatenate([values[:, None, :2], np.where(labeled[..., None], points, np.nan)], 1)
    low, high = np.nanmin(others, 1), np.nanmax(others, 1)  # (L, 2)
    reach = (high - low).max(1, keepdims=True)
    near = ((low - reach <= values[:, 2:4]) & (values[:, 2:4] <= high + reach)).all(1)
    odd = ~near | ((~labeled).sum(1) > 1) | _cross(values.reshape(len(values), -1, 2))
    closed = (points[:, -1] == values[:, :2]).all(1)  # a ring that ends where it begins
    return float((odd & ~closed).mean()) >= _NO_POLYGON


def _cross(rings: np.ndarray) -> np.ndarray:
    """Bool ``(L,)``: rings ``(L, V, 2)`` of which two edges cross, touching not counted."""
    begin, end = rings, np.roll(rings, -1, 1)
    crossed = np.zeros(len(rings), bool)
    for shift in range(2, rings.shape[1] // 2 + 1):
        other, far = np.roll(begin, -shift, 1), np.roll(end, -shift, 1)
        apart = _side(begin, end, other) * _side(begin, end, far) < 0
        crossed |= (apart & (_side(other, far, begin) * _side(other, far, end) < 0)).any(1)
    return crossed


def _side(begin: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """On which side of the lines from ``begin`` to ``end`` points lie: -1, 1, 0 on it."""
    along, to = end - begin, point - begin
    area = along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
    return np.sign(np.where(np.abs(area) > 1e-12, area, 0))
