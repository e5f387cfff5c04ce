"""The gate's look at a split's boxes as a whole: are they written in the way they are read?

Fractions in place of pixels, corners in place of sizes and the like give boxes that are numbers all
right, each by itself. Over a whole set they show: they leave their images, lie within the first
pixel, or beside their own outlines, and read in another way nearly all of them fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from cvtrain.data.formats import rle
from cvtrain.data.gate.report import SplitState
from cvtrain.data.table import CROWD

LAYOUTS = {
    "xywh": "x y width height",
    "xyxy": "x1 y1 x2 y2",
    "cxcywh": "center x, center y, width, height",
}
"""In what way a format writes a box, with what messages call it."""

_SWAPPED = {
    "xywh": "y x height width",
    "xyxy": "y1 x1 y2 x2",
    "cxcywh": "center y, center x, height, width",
}

PIXELS, FRACTIONS = "pixels", "fractions of the image"
_PERCENT, _THOUSANDTHS = "percent of the image", "thousandths of the image"
_FULL = {FRACTIONS: 1.0, _PERCENT: 100.0, _THOUSANDTHS: 1000.0}  # what is the image's whole side

_MOST = 50_000  # boxes looked at, evenly spaced
_ODD = 0.25  # of the boxes: so many that do not fit are a reason to try other readings
_FEWEST = 3  # boxes; fewer that do not fit are single mistakes
_FIT = 0.95  # of the boxes fit in the reading that is named
_LEAVE = 0.5  # of the boxes leave their images: wrong whatever the right reading is
_GENEROUS = 0.25  # of the box, at least, is its outline's own box: drawn generously, not elsewhere
_MARGIN = 0.02  # of the image's side, beside one pixel: hand-drawn boxes leave images by that
_TINY = 4  # pixels: in an image of that size a box may well lie within the first pixel
_LOST, _FEWEST_LOST = 0.1, 5  # of the boxes, and boxes: half of each is lost by cutting it
_SLIGHTLY, _FEWEST_SLIGHTLY = 0.02, 5  # do not fit: a reason, where another reading fits them all
_ALL = 0.99  # of the boxes
_FEWEST_MIRRORED = 4  # boxes, mirrored, do not fit in that reading
_BOTH, _FEWEST_BOTH = 0.06, 10  # of the boxes, and boxes, that do not fit or would not, mirrored
_HALF = 0.2  # of the boxes lie in each half of their images, where mirroring tells anything
_FEWEST_ALIKE = 5  # boxes, whose sizes are held against their corners
_ALIKE = 0.35  # sizes that are corners differ from the first corners by so much of their spread
_SPREAD = 0.05  # of the image: corners of smaller spread tell nothing
_FEWEST_CORNERED, _FEWEST_IMAGES = 20, 5  # boxes, and images, whose boxes all lie in one corner


class Reading(NamedTuple):
    """A way to read the four numbers of a box."""

    layout: str
    unit: str
    swapped: bool = False

    def __str__(self) -> str:
        return f"{(_SWAPPED if self.swapped else LAYOUTS)[self.layout]} in {self.unit}"


def check_units(state: SplitState, layout: str) -> None:
    """An error where the boxes of a split are most likely written in another way than read.

    Args:
        state: before anything was done to the boxes; sizes are those of the files.
        layout: one of ``LAYOUTS``: how the format writes a box.
    """
    found = _Sample.of(state, layout).judge()
    if found is not None:
        row, message = found
        file, where = state.place(row, int(state.image_of[row]))
        state.split_problem("box-units", f"{state.name}: {message}", file=file, where=where)


class _Sample:
    """Boxes of a split as they were written, with what they are held against.

    Attributes:
        rows: int64 ``(M,)`` of the table.
        written: float64 ``(M, 4)``.
        limits: float64 ``(M, 2)`` width, height of its image.
        outlines: float64 ``(M, 4)`` xyxy pixels; NaN where there are none.
        reading: the format's own.
        images: how many the boxes are on.
    """

    def __init__(
        self,
        rows: np.ndarray,
        written: np.ndarray,
        limits: np.ndarray,
        outlines: np.ndarray,
        reading: Reading,
        images: int,
    ) -> None:
        self.rows, self.written, self.limits, self.outlines = rows, written, limits, outlines
        self.reading, self.images = reading, images

    @classmethod
    def of(cls, state: SplitState, layout: str) -> _Sample:
        """The finite boxes of objects in images of known size, evenly spaced if many."""
        table, image_of = state.table, state.image_of
        known = (table.sizes > 0).all(1) & state.images
        counted = known[image_of] & np.isfinite(table.boxes).all(1) & (table.flags & CROWD == 0)
        if table.segments is not None and table.relative:
            counted &= np.diff(table.segments.offsets) == 0  # the others are written as polygons
        rows = np.flatnonzero(counted)
        if len(rows) > _MOST:
            rows = rows[np.linspace(0, len(rows) - 1, _MOST).astype(np.int64)]
        outlines = np.full((len(rows), 4), np.nan)
        if table.segments is not None and not table.relative:
            outlines = outline_boxes(table.segments, rows)
        limits = table.sizes[image_of[rows]][:, ::-1].astype(np.float64)  # (M, 2) width, height
        reading = Reading(layout, FRACTIONS if table.relative else PIXELS)
        written = _written(table.boxes[rows], layout)
        return cls(rows, written, limits, outlines, reading, len(np.unique(image_of[rows])))

    def judge(self) -> tuple[int, str] | None:
        """A row that shows what is wrong, and what is; None where nothing is."""
        if not len(self.rows):
            return None
        checks = (
            self._judge_units,
            self._judge_sizes,
            self._judge_fit,
            self._judge_slight,
            self._judge_losses,
            self._judge_outlines,
        )
        return next((found for check in checks if (found := check()) is not None), None)

    @property
    def _few(self) -> float:
        """So many boxes that do not fit are no single mistakes."""
        return max(_FEWEST, _ODD * len(self.rows))

    def _judge_units(self) -> tuple[int, str] | None:
        """Numbers that are too small for pixels: all of them in the first pixel, or one corner."""
        if self.reading.unit != PIXELS:
            return None
        count = len(self.rows)
        first = self._in_first_pixel()
        broken = first & (self.written != np.round(self.written)).any(1)
        if first.sum() >= self._few or broken.sum() >= min(_FEWEST, count):
            which = first if first.sum() >= self._few else broken
            message = (
                f"{which.sum():,} of {count:,} boxes lie within the first pixel: fractions of the "
                "image?"
            )
            return self._say(which, f"{message}{self._other(PIXELS)}")
        near = (self.written >= -1) & (self.written <= 2) & (self.limits.min(1) > _TINY)[:, None]
        if count >= _FEWEST and near.all() and (self.written % 1 != 0).any(1).all():
            message = (
                f"all {count:,} boxes lie within two pixels of the corner: fractions, shifted?"
            )
            return self._say(near.all(1), message)
        if count < _FEWEST_CORNERED or self.images < _FEWEST_IMAGES:
            return None
        for unit in (_PERCENT, _THOUSANDTHS):
            if self._cornered(unit) and self._spans(unit):
                full = f"{_FULL[unit]:.0f} x {_FULL[unit]:.0f} pixels of much larger images"
                message = f"all {count:,} boxes lie in the first {full}: {unit}?"
                return self._say(np.ones(count, bool), f"{message}{self._other(PIXELS)}")
        return None

    def _cornered(self, unit: str) -> bool:
        """Whether no number is above a unit's whole, which is far less than an image's side."""
        full = _FULL[unit]
        small = float(np.median(self.limits.min(1))) < 2 * full
        return not small and bool((np.abs(self.written) <= 1.005 * full).all())

    def _judge_sizes(self) -> tuple[int, str] | None:
        """Sizes that are the other corners of small boxes: they follow the first corners."""
        if self.reading.layout == "xyxy" or len(self.rows) < _FEWEST_ALIKE:
            return None
        scaled = self.written / (np.tile(self.limits, 2) if self.reading.unit == PIXELS else 1)
        apart = scaled[:, 2:] - scaled[:, :2]
        spread = scaled[:, :2].std(0)
        if (apart <= 0).any() or not (spread >= _SPREAD).all():
            return None
        if not (apart.std(0) <= _ALIKE * spread).all():
            return None
        for swapped in (False, True):
            corners = Reading("xyxy", self.reading.unit, swapped)
            if self._fit(corners).mean() >= _FIT:
                message = (
                    f"in all {len(self.rows):,} boxes, read as {self.reading}, width and height "
                    f"are above x and y, and follow them: {corners}?"
                )
                return self._say(np.ones(len(self.rows), bool), message)
        return None

    def _judge_fit(self) -> tuple[int, str] | None:
        """Many boxes that do not fit their images."""
        count = len(self.rows)
        odd = ~self._fit(self.reading)
        if odd.sum() < self._few:
            return None
        if other := self._other():
            message = f"{odd.sum():,} of {count:,} boxes do not fit their images as {self.reading}"
            return self._say(odd, f"{message}{other}")
        leave = self._leave(self._corners(self.reading))
        if leave.sum() < max(_FEWEST, _LEAVE * count):
            return None
        message = f"{leave.sum():,} of {count:,} boxes leave their images as {self.reading}"
        if self.reading.unit == PIXELS:
            message += ": were the images resized after they were annotated?"
        return self._say(leave, message)

    def _judge_slight(self) -> tuple[int, str] | None:
        """Some boxes that do not fit, where another reading fits them all, and not by chance.

        By chance it also fits the boxes mirrored to the other side of their images.
        """
        count = len(self.rows)
        fits = self._fit(self.reading, margin=0)
        if (~fits).sum() < max(_FEWEST_SLIGHTLY, _SLIGHTLY * count):
            return None
        corners = self._corners(self.reading)
        half = ((corners[:, :2] + corners[:, 2:]) / 2 < self.limits / 2).mean(0)
        mirrored = [self._mirrored(k) for k in (0, 1) if _HALF <= half[k] <= 1 - _HALF]
        others = [r for r in self._readings() if r.unit == self.reading.unit]
        others = [r for r in others if self._fit(r, margin=0).mean() >= _ALL]
        for other in others:
            misfits = [int((fits & ~m._fit(other, margin=0)).sum()) for m in mirrored]
            both = int((~fits).sum()) + sum(misfits)
            if sum(misfits) >= _FEWEST_MIRRORED and both >= max(_FEWEST_BOTH, _BOTH * count):
                names = " or as ".join(dict.fromkeys((str(others[0]), str(other))))
                message = (
                    f"{(~fits).sum():,} of {count:,} boxes do not fit their images as "
                    f"{self.reading}; {self._fit(other, margin=0).sum():,} fit as {names}"
                )
                return self._say(~fits, message)
        return None

    def _mirrored(self, axis: int) -> _Sample:
        """These boxes without outlines, mirrored: 0 left to right, 1 top to bottom."""
        corners = self._corners(self.reading)
        corners[:, [axis, axis + 2]] = self.limits[:, [axis]] - corners[:, [axis + 2, axis]]
        if self.reading.unit == FRACTIONS:
            corners /= np.tile(self.limits, 2)
        written = _written(corners, self.reading.layout)
        nothing = np.full_like(written, np.nan)
        return _Sample(self.rows, written, self.limits, nothing, self.reading, self.images)

    def _judge_losses(self) -> tuple[int, str] | None:
        """Boxes that lie mostly outside: what cutting leaves of them is a guess."""
        count = len(self.rows)
        corners = self._corners(self.reading)
        low = np.minimum(corners[:, :2], corners[:, 2:])
        high = np.maximum(corners[:, :2], corners[:, 2:])
        inside = np.minimum(high, self.limits) - np.maximum(low, 0)
        areas = np.prod(high - low, axis=1)
        center = (low + high) / 2
        lost = ((center < 0) | (center > self.limits)).any(1)
        lost |= np.prod(np.maximum(inside, 0), axis=1) < 0.5 * areas
        lost &= (areas > 0) & self._leave(np.concatenate([low, high], 1))
        if lost.sum() < max(_FEWEST_LOST, _LOST * count):
            return None
        tried = sorted(
            ((int(self._fit(r).sum()), r) for r in self._readings()), key=lambda t: -t[0]
        )
        best = ", ".join(f"{r} ({number:,} fit)" for number, r in tried[:2])
        message = (
            f"{lost.sum():,} of {count:,} boxes lie outside their images by more than half as "
            f"{self.reading}; of other ways to read them, the best are {best}"
        )
        return self._say(lost, message)

    def _judge_outlines(self) -> tuple[int, str] | None:
        """Boxes that are not where their own outlines are."""
        corners = self._corners(self.reading)
        beside = ~self._agree(corners) & ~self._hold(corners)
        if (~self._fit(self.reading)).sum() < self._few or beside.sum() < self._few:
            return None
        message = f"{beside.sum():,} of {len(self.rows):,} boxes lie beside their own segmentation"
        return self._say(beside, message)

    def _say(self, which: np.ndarray, message: str) -> tuple[int, str]:
        k = int(np.flatnonzero(which)[0])
        values = ", ".join(f"{value:.6g}" for value in self.written[k])
        return int(self.rows[k]), f"{message} (the first is [{values}])"

    def _readings(self) -> list[Reading]:
        """The other ways to read the boxes, the likelier first where several fit alike."""
        units = [self.reading.unit, PIXELS, FRACTIONS, _PERCENT, _THOUSANDTHS]
        cornered = [unit for unit in (_PERCENT, _THOUSANDTHS) if self._cornered(unit)]
        units = [unit for unit in dict.fromkeys([*cornered, *units]) if self._may_be(unit)]
        layouts = dict.fromkeys((self.reading.layout, *LAYOUTS))
        found = [Reading(la, u, sw) for u in units for sw in (False, True) for la in layouts]
        return [reading for reading in found if reading != self.reading]

    def _spans(self, unit: str) -> bool:
        """Whether numbers come near a unit's whole on both axes, where boxes are all over."""
        low, high = self.written[:, :2], self.written[:, 2:]
        edges = np.maximum(low, high) if self.reading.layout == "xyxy" else low + high
        return bool((edges.max(0) >= 0.7 * _FULL[unit]).all())

    def _may_be(self, unit: str) -> bool:
        """Whether the numbers are as large as such a unit's are."""
        if unit in (self.reading.unit, FRACTIONS):
            return True
        if self.reading.unit == PIXELS and not self._spans(unit):
            return False  # of images that were resized, more likely
        most = float(np.quantile(np.abs(self.written).max(1), 0.95))
        return most > {PIXELS: 2, _PERCENT: 2, _THOUSANDTHS: 100}[unit]

    def _other(self, but: str = "") -> str:
        """The reading in which most of the boxes fit, if nearly all do; ``but``: no such unit."""
        readings = [reading for reading in self._readings() if reading.unit != but]
        fits = [float(self._fit(reading).mean()) for reading in readings]
        share = max(fits)
        if share < _FIT:
            return ""
        best = readings[fits.index(share)]
        alike = [
            str(r)
            for r, fit in zip(readings, fits)
            if fit == share and (r.unit, r.swapped) == (best.unit, best.swapped)
        ]
        return f"; {round(share * len(self.rows)):,} fit as {' or as '.join(alike[:2])}"

    def _corners(self, reading: Reading) -> np.ndarray:
        """float64 ``(M, 4)`` xyxy pixels of what is written, read in that way."""
        layout, unit, swapped = reading
        a = self.written[:, [1, 0, 3, 2]] if swapped else self.written
        if layout == "xywh":
            corners = np.concatenate([a[:, :2], a[:, :2] + a[:, 2:]], 1)
        elif layout == "cxcywh":
            corners = np.concatenate([a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2], 1)
        else:
            corners = a.copy()
        return corners if unit == PIXELS else corners * np.tile(self.limits / _FULL[unit], 2)

    def _fit(self, reading: Reading, margin: float = _MARGIN) -> np.ndarray:
        """Bool ``(M,)``: boxes with an area that lie in their images, over their outlines."""
        corners = self._corners(reading)
        area = (corners[:, 2:] > corners[:, :2]).all(1)
        fit: np.ndarray = area & ~self._leave(corners, margin) & self._agree(corners)
        return fit & ~self._in_first_pixel() if reading.unit == PIXELS else fit

    def _leave(self, corners: np.ndarray, margin: float = _MARGIN) -> np.ndarray:
        """Bool ``(M,)``: boxes that leave their images by more than a pixel and ``margin``."""
        excess = np.maximum(-corners[:, :2], corners[:, 2:] - self.limits)
        leave: np.ndarray = (excess > 1 + margin * self.limits).any(1)
        return leave

    def _agree(self, corners: np.ndarray) -> np.ndarray:
        """Bool ``(M,)``: boxes that are those of their outlines, or have none."""
        return ~lie_apart(corners, self.outlines)

    def _hold(self, corners: np.ndarray) -> np.ndarray:
        """Bool ``(M,)``: boxes drawn generously around their outlines, in the right place."""
        inner = self.outlines
        with np.errstate(invalid="ignore"):
            around = (corners[:, :2] <= inner[:, :2] + 1) & (corners[:, 2:] >= inner[:, 2:] - 1)
            areas = [np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (inner, corners)]
            hold: np.ndarray = around.all(1) & (areas[0] >= _GENEROUS * areas[1])
        return hold

    def _in_first_pixel(self) -> np.ndarray:
        """Bool ``(M,)``: numbers that are all 0 to 1, in images where that is next to nothing."""
        low, high = self.written.min(1), self.written.max(1)
        inside = (low >= -1e-3) & (high <= 1 + 1e-3) & (high > 0)
        return inside & (self.limits.min(1) > _TINY)


def _written(boxes: np.ndarray, layout: str) -> np.ndarray:
    """The four numbers of each box in the file, from xyxy ``(M, 4)``."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    if layout == "xywh":
        return np.concatenate([boxes[:, :2], sizes], 1)
    if layout == "cxcywh":
        return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sizes], 1)
    return boxes


def lie_apart(boxes: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """Bool ``(M,)``: boxes that are not those of their outlines; NaN outlines agree with any.

    Apart are those that differ by more than 2 pixels, with an intersection over union below 0.5.
    """
    low = np.maximum(boxes[:, :2], outlines[:, :2])
    high = np.minimum(boxes[:, 2:], outlines[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    areas = areas + np.prod(outlines[:, 2:] - outlines[:, :2], axis=1)
    far = np.abs(boxes - outlines).max(1, initial=0.0) > 2
    apart: np.ndarray = far & (both < 0.5 * (areas - both))
    return apart


def outline_boxes(segments: Any, rows: np.ndarray) -> np.ndarray:
    """The boxes around segments: float64 ``(R, 4)`` xyxy; NaN where there is none to be had.

    Args:
        segments: ``Blobs`` in pixels, unchecked.
        rows: int64 ``(R,)``.
    """
    found = np.full((len(rows), 4), np.nan)
    for k, row in enumerate(rows.tolist()):
        blob = segments[row]
        if blob:
            found[k] = _outline_box(blob)
    return found


def _outline_box(blob: bytes) -> Sequence[float]:
    nothing = [np.nan] * 4
    try:
        value = json.loads(blob)
        if isinstance(value, dict):
            height, width = (int(v) for v in value["size"])
            if rle.broken([value["counts"]], [height * width])[0]:
                return nothing
            encoded = {"size": [height, width], "counts": value["counts"].encode()}
            x, y, w, h = coco.toBbox(encoded)
            return [x, y, x + w, y + h] if w and h else nothing
        points = np.array([v for ring in value for v in ring], np.float64).reshape(-1, 2)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return nothing  # check_segments says what is wrong with it
    if not len(points):
        return nothing
    return [*points.min(0), *points.max(0)]
