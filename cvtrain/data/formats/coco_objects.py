"""The annotations of a COCO JSON, checked one by one and packed into columns."""

from __future__ import annotations

import json
import math
import re
from array import array
from typing import Any

import numpy as np

from cvtrain.data.formats import rle
from cvtrain.data.formats.base import problem
from cvtrain.data.formats.files import shorten
from cvtrain.data.formats.packing import blobs
from cvtrain.data.table import CROWD, Problem

_NUMBERS = frozenset({int, float})
_NAN = float("nan")


def _said(value: Any) -> str:
    """A bad value for a message; text in quotes, so that "3" is not taken for 3."""
    return shorten(repr(value) if isinstance(value, str) else value)


def integer(value: Any) -> int | None:
    """A whole number that fits int64, or None."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


_NUMERAL = re.compile(r"\s*[+-]?(?:\d{1,300}(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?\s*", re.ASCII)


def unquoted(value: Any) -> Any:
    """The number that a text spells ("24" -> 24, "1.5" -> 1.5); anything else as it is."""
    if type(value) is not str or not _NUMERAL.fullmatch(value):
        return value
    number = float(value)
    if not math.isfinite(number):
        return value
    return int(value) if value.strip().lstrip("+-").isdigit() else number


class Quoted:
    """Counts the numbers of one JSON that stand in quotes, by key: one problem a key.

    Args:
        file: the JSON; ``split`` likewise, for the problems.
    """

    def __init__(self, file: str, split: str) -> None:
        self._file, self._split = file, split
        self._found: dict[str, tuple[int, str, str]] = {}  # key -> count, first value, its place

    def read(self, record: dict, key: str, where: str, name: str = "") -> Any:
        """``record[key]``, a number in quotes as a number; ``name``: what the key is called."""
        value = record.get(key)
        if type(value) is not str:
            return value
        number = unquoted(value)
        if number is not value:
            name = name or f"`{key}`"
            count, first, place = self._found.get(name, (0, str(value), where))
            self._found[name] = (count + 1, first, place)
        return number

    def problems(self) -> list[Problem]:
        """An error for each key that has numbers in quotes."""
        return [
            problem(
                "number-as-text",
                self._file,
                f"{name} is text in {count:,} record{'' if count == 1 else 's'}, "
                f'such as "{shorten(first, 30)}"',
                where=where,
                split=self._split,
            )
            for name, (count, first, where) in self._found.items()
        ]


class SegmentError(Exception):
    """A segmentation that is none."""


class ObjectPacker:
    """Packs annotations in file order; ``columns`` sorts them by image.

    Args:
        file: the JSON, for messages; ``split`` likewise.
        index: category id -> class index.
        row_of: image id -> row, negative: an image that has none.
        sizes: height, width of each row, one after the other, -1 unknown.
        problems: what is found goes here.
    """

    def __init__(
        self,
        file: str,
        split: str,
        index: dict[int, int],
        row_of: dict[int, int],
        sizes: list[int],
        problems: list[Problem],
    ) -> None:
        self._file, self._split, self._problems = file, split, problems
        self._index, self._row_of, self._sizes = index, row_of, sizes
        self._rows = array("q")
        self._boxes = array("d")
        self._labels = array("q")
        self._flags = array("B")
        self._areas = array("d")
        self._ids = array("q")
        self._segments: list[bytes] = []
        self._encodings: list[tuple[int, str, int]] = []  # (annotation, counts, pixels)
        self._pending: list[tuple[int, str, str]] = []  # (annotation, code, message)
        self._quoted = Quoted(file, split)
        self.lost: list[int] = []
        """Class of each annotation that has no row, -1 where it is not known."""

    def add_all(self, annotations: list[Any]) -> None:
        """Packs the ``annotations`` list of the JSON."""
        for n, record in enumerate(annotations):
            if type(record) is dict:
                self._add(n, record)
            else:
                self._refuse("annotation-malformed", "an object is expected", f"annotations[{n}]")
                self.lost.append(-1)
        self._problems += self._quoted.problems()

    def _refuse(self, code: str, message: str, where: str, image: int = -1) -> None:
        self._problems.append(
            problem(code, self._file, message, where=where, split=self._split, image=image)
        )

    def _add(self, n: int, record: dict) -> None:
        place = f"annotations[{n}]"
        ident = integer(self._quoted.read(record, "id", place, "an annotation's `id`"))
        where = place if ident is None else f"annotation id {ident}"
        image = integer(self._quoted.read(record, "image_id", where))
        row = None if image is None else self._row_of.get(image)
        category = integer(self._quoted.read(record, "category_id", where))
        label = -1 if category is None else self._index.get(category, -1)
        if row is None or row < 0:
            if row is None:
                message = f"image_id {_said(record.get('image_id'))} is not among the images"
                self._refuse("image-unknown", message, where)
            else:
                self.lost.append(label)  # with its image, which was reported
            return
        crowd = self._quoted.read(record, "iscrowd", where)
        if crowd not in (0, 1, None):
            message = f"iscrowd is {_said(record.get('iscrowd'))}"
            self._refuse("annotation-malformed", message, where, row)
            self.lost.append(label)
            return
        here = len(self._rows)
        box = self._box(record.get("bbox"), here)
        area = _area(self._quoted.read(record, "area", where))
        if area is None:
            self._pending.append((here, "area-invalid", f"area is {_said(record.get('area'))}"))
            area = _NAN
        if label < 0:
            message = f"category_id {_said(record.get('category_id'))} is not in the categories"
            self._pending.append((here, "class-unknown", message))
        self._rows.append(row)
        self._boxes.extend(box)
        self._labels.append(label)
        self._flags.append(CROWD if crowd else 0)
        self._areas.append(area)
        self._ids.append(0 if ident is None else ident)
        self._segments.append(self._segment(record.get("segmentation"), row, here))

    def _box(self, raw: Any, here: int) -> list[float]:
        """Four numbers (x, y, width, height); NaN where they are none."""
        box = _box(raw)
        if box is None and type(raw) is list:
            box = _box([unquoted(value) for value in raw])
            if box is not None:
                self._pending.append((here, "box-as-text", f"bbox is {_said(raw)}"))
        if box is None:
            self._pending.append((here, "box-malformed", f"bbox is {_said(raw)}"))
            return [_NAN] * 4
        return box

    def _segment(self, raw: Any, row: int, here: int) -> bytes:
        if not raw:
            return b""
        try:
            if type(raw) is list:
                rings, message = _in_form(raw)
                if message:
                    self._pending.append((here, "segment-form", f"{message}: {shorten(raw)}"))
                rings, left_out = _polygons(rings)
                if left_out:
                    self._pending.append((here, "segment-degenerate", left_out))
                return json.dumps(rings, separators=(",", ":")).encode() if rings else b""
            image = self._sizes[2 * row], self._sizes[2 * row + 1]
            counts, pixels, size = _run_lengths(raw, image)
        except SegmentError as error:
            self._pending.append((here, "segment-malformed", str(error)))
            return b""
        self._encodings.append((here, counts, pixels))
        return json.dumps({"size": size, "counts": counts}, separators=(",", ":")).encode()

    def columns(self, images: int) -> dict[str, Any]:
        """The annotation columns of the table of so many images; reports what was put off."""
        self._check_encodings()
        rows = np.array(self._rows, np.int64)
        order = np.argsort(rows, kind="stable")
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)  # (M, 4) xywh
        boxes[:, 2:] += boxes[:, :2]
        columns: dict[str, Any] = {
            "starts": np.searchsorted(rows[order], np.arange(images + 1)),
            "boxes": boxes[order],
            "labels": np.array(self._labels, np.int64)[order],
            "flags": np.array(self._flags, np.uint8)[order],
            "areas": np.array(self._areas, np.float64)[order],
            "lines": np.array(self._ids, np.int64)[order],
        }
        if any(self._segments):
            parts = [self._segments[i] for i in order.tolist()]
            offsets = np.zeros(len(parts) + 1, np.int64)
            np.cumsum([len(part) for part in parts], out=offsets[1:])
            columns["segments"] = blobs(b"".join(parts), offsets)
        self._report(rows, order)
        self._report_copies(columns)
        return columns

    def _check_encodings(self) -> None:
        if not self._encodings:
            return
        which, counts, pixels = zip(*self._encodings, strict=True)
        for i in np.flatnonzero(rle.broken(counts, pixels)).tolist():
            message = f"the RLE is not of {pixels[i]} pixels: counts {shorten(counts[i])}"
            self._pending.append((which[i], "segment-malformed", message))
            self._segments[which[i]] = b""

    def _report(self, rows: np.ndarray, order: np.ndarray) -> None:
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        for here, code, message in self._pending:
            self._problems.append(
                problem(
                    code,
                    self._file,
                    message,
                    where=f"annotation id {self._ids[here]}",
                    split=self._split,
                    image=int(rows[here]),
                    annotation=int(place[here]),
                )
            )

    def _report_copies(self, columns: dict[str, Any]) -> None:
        """Ids given twice: a copy of the same annotation, or another one."""
        ids = columns["lines"]
        order = np.argsort(ids, kind="stable")
        later = order[1:][(np.diff(ids[order]) == 0) & (ids[order][1:] != 0)]
        if not len(later):
            return
        image = np.repeat(np.arange(len(columns["starts"]) - 1), np.diff(columns["starts"]))
        first: dict[int, int] = {}
        note: set[int] = set()
        for row in order[np.isin(ids[order], ids[later])].tolist():
            ident = int(ids[row])
            start = first.setdefault(ident, row)
            if start == row:
                continue
            same = image[start] == image[row] and columns["labels"][start] == columns["labels"][row]
            copy = bool(same) and np.array_equal(columns["boxes"][start], columns["boxes"][row])
            if not copy and ident in note:
                continue
            note.add(ident)
            self._problems.append(
                problem(
                    "duplicate-annotation" if copy else "duplicate-annotation-id",
                    self._file,
                    f"id {ident} is given twice" + (", with the same content" if copy else ""),
                    where=f"annotation id {ident}",
                    split=self._split,
                    image=int(image[row]),
                    annotation=row,
                )
            )


def _box(raw: Any) -> list[float] | None:
    """Four numbers (x, y, width, height), or None."""
    if type(raw) is not list or len(raw) != 4 or not _NUMBERS.issuperset(map(type, raw)):
        return None
    try:
        return [float(value) for value in raw]
    except OverflowError:
        return None


def _area(raw: Any) -> float | None:
    """A number, NaN where there is none, None where it is something else."""
    if raw is None:
        return _NAN
    try:
        return float(raw) if type(raw) in _NUMBERS else None
    except OverflowError:
        return None


def _in_form(raw: list) -> tuple[list, str]:
    """A flat list of coordinates as the one ring it can be, and numbers without their quotes.

    Returns:
        The polygons, and what was wrong with their form, "" where nothing was.
    """
    flat = not any(type(ring) is list for ring in raw)
    rings = [raw] if flat else raw
    quoted = any(type(value) is str for ring in rings if type(ring) is list for value in ring)
    if quoted:
        rings = [
            [unquoted(value) for value in ring] if type(ring) is list else ring for ring in rings
        ]
    if flat and not _NUMBERS.issuperset(map(type, rings[0])):
        return raw, ""  # no list of numbers: no form that it could be brought into
    if flat:
        return rings, "the polygon is a flat list" + (" of text" if quoted else "")
    return rings, "coordinates are text" if quoted else ""


def _polygons(raw: list) -> tuple[list, str]:
    """The rings that have an inside, and what was left out."""
    if not all(type(ring) is list for ring in raw):
        raise SegmentError("polygons are lists of lists of numbers: [[x, y, x, y, ...], ...]")
    kept = []
    for ring in raw:
        if len(ring) % 2 or not _NUMBERS.issuperset(map(type, ring)):
            raise SegmentError(f"a polygon is no list of x, y pairs: {shorten(ring)}")
        try:
            finite = math.isfinite(sum(ring))
        except OverflowError:
            finite = False
        if not finite:
            raise SegmentError(f"a polygon's coordinates are not finite: {shorten(ring)}")
        if len(ring) >= 6:
            kept.append(ring)
    if len(kept) == len(raw):
        return raw, ""
    return kept, f"{len(raw) - len(kept)} of {len(raw)} polygon rings have fewer than 3 points"


def _run_lengths(raw: Any, image: tuple[int, int]) -> tuple[str, int, list[int]]:
    """Compressed counts, number of pixels and [height, width] of an RLE; runs are checked later."""
    if type(raw) is not dict:
        raise SegmentError(f"neither polygons nor an RLE: {shorten(raw)}")
    size, counts = raw.get("size"), raw.get("counts")
    whole = [integer(value) for value in size] if type(size) is list else []
    if len(whole) != 2 or any(v is None or not 0 < v < 2**31 for v in whole):
        raise SegmentError(f"the RLE's size is {shorten(size)}")
    height, width = (int(v) for v in whole if v is not None)
    if any(have not in (-1, want) for have, want in zip(image, (height, width), strict=True)):
        raise SegmentError(f"the RLE is {width} x {height}, the image {image[1]} x {image[0]}")
    if type(counts) is list:
        runs = [integer(value) for value in counts]
        if any(v is None or not 0 <= v < 2**31 for v in runs):
            raise SegmentError(f"the RLE's counts are {shorten(counts)}")
        counts = rle.compress(np.array(runs, np.int64))
    if type(counts) is not str:
        raise SegmentError(f"the RLE's counts are {shorten(counts)}")
    return counts, height * width, [height, width]
