"""The gate's look at a split's boxes as a whole: are they written in the way they are read?

Fractions in place of pixels, corners in place of sizes and the like give boxes that are numbers all
right, each by itself. Over a whole set they show: they leave their images, lie within the first
pixel, or beside their own outlines, and read in another way nearly all of them fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from cvtrain.data.formats import rle
from cvtrain.data.gate_state import SplitState
from cvtrain.data.table import CROWD

LAYOUTS = {
    "xywh": "x y width height",
    "xyxy": "x1 y1 x2 y2",
    "cxcywh": "center x, center y, width, height",
}
"""In what way a format writes a box, with what messages call it."""

PIXELS, FRACTIONS = "pixels", "fractions of the image"

_MOST = 50_000  # boxes looked at, evenly spaced
_ODD = 0.25  # of the boxes: so many that do not fit are a reason to try other readings
_FEWEST = 3  # boxes; fewer that do not fit are single mistakes
_FIT = 0.95  # of the boxes fit in the reading that is named
_LEAVE = 0.5  # of the boxes leave their images: wrong whatever the right reading is
_GENEROUS = 0.25  # of the box, at least, is its outline's own box: drawn generously, not elsewhere
_MARGIN = 0.02  # of the image's side, beside one pixel: hand-drawn boxes leave images by that
_TINY = 4  # pixels: in an image of that size a box may well lie within the first pixel


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
    """Boxes of a split as they were written, with what they are held against."""

    def __init__(
        self,
        rows: np.ndarray,
        written: np.ndarray,
        limits: np.ndarray,
        outlines: np.ndarray,
        reading: tuple[str, str],
    ) -> None:
        self.rows, self.written, self.limits, self.outlines = rows, written, limits, outlines
        self.reading = reading

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
        unit = FRACTIONS if table.relative else PIXELS
        return cls(rows, _written(table.boxes[rows], layout), limits, outlines, (layout, unit))

    def judge(self) -> tuple[int, str] | None:
        """A row that shows what is wrong, and what is; None where nothing is."""
        count = len(self.rows)
        if not count:
            return None
        first = self._in_first_pixel() & (self.reading[1] == PIXELS)
        odd = ~self._fit(*self.reading)
        broken = first & (self.written != np.round(self.written)).any(1)
        few = max(_FEWEST, _ODD * count)
        if first.sum() >= few or broken.sum() >= min(_FEWEST, count):
            which, what = (first if first.sum() >= few else broken), "within the first pixel"
            message = f"{which.sum():,} of {count:,} boxes lie {what}: fractions of the image?"
            return self._said(which, f"{message}{self._other(PIXELS)}")
        if odd.sum() < few:
            return None
        read = _name(*self.reading)
        other = self._other()
        if other:
            message = f"{odd.sum():,} of {count:,} boxes do not fit their images as {read}{other}"
            return self._said(odd, message)
        leave = self._leave(self._corners(*self.reading))
        if leave.sum() >= max(_FEWEST, _LEAVE * count):
            message = (
                f"{leave.sum():,} of {count:,} boxes leave their images as {read}: were the "
                "images resized after they were annotated?"
            )
            return self._said(leave, message)
        corners = self._corners(*self.reading)
        beside = ~self._agree(corners) & ~self._hold(corners)
        if beside.sum() >= few:
            message = f"{beside.sum():,} of {count:,} boxes lie beside their own segmentation"
            return self._said(beside, message)
        return None

    def _said(self, which: np.ndarray, message: str) -> tuple[int, str]:
        k = int(np.flatnonzero(which)[0])
        values = ", ".join(f"{value:.6g}" for value in self.written[k])
        return int(self.rows[k]), f"{message} (the first is [{values}])"

    def _other(self, but: str = "") -> str:
        """The reading in which most of the boxes fit, if nearly all do; ``but``: no such unit."""
        best, share = None, _FIT
        for layout in dict.fromkeys((self.reading[0], *LAYOUTS)):
            for unit in dict.fromkeys((self.reading[1], PIXELS, FRACTIONS)):
                if (layout, unit) == self.reading or unit == but:
                    continue
                fits = float(self._fit(layout, unit).mean())
                if fits > share or (best is None and fits >= share):
                    best, share = (layout, unit), fits
        if best is None:
            return ""
        number = round(share * len(self.rows))
        return f"; {number:,} fit as {_name(*best)}"

    def _corners(self, layout: str, unit: str) -> np.ndarray:
        """float64 ``(M, 4)`` xyxy pixels of what is written, read in that way."""
        a = self.written
        if layout == "xywh":
            corners = np.concatenate([a[:, :2], a[:, :2] + a[:, 2:]], 1)
        elif layout == "cxcywh":
            corners = np.concatenate([a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2], 1)
        else:
            corners = a
        return corners * np.tile(self.limits, 2) if unit == FRACTIONS else corners

    def _fit(self, layout: str, unit: str) -> np.ndarray:
        """Bool ``(M,)``: boxes with an area that lie in their images, over their outlines."""
        corners = self._corners(layout, unit)
        area = (corners[:, 2:] > corners[:, :2]).all(1)
        fit: np.ndarray = area & ~self._leave(corners) & self._agree(corners)
        return fit & ~self._in_first_pixel() if unit == PIXELS else fit

    def _leave(self, corners: np.ndarray) -> np.ndarray:
        """Bool ``(M,)``: boxes that leave their images by more than a hand's tremble."""
        excess = np.maximum(-corners[:, :2], corners[:, 2:] - self.limits)
        leave: np.ndarray = (excess > 1 + _MARGIN * self.limits).any(1)
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


def _name(layout: str, unit: str) -> str:
    return f"{LAYOUTS[layout]} in {unit}"


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
