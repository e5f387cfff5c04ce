"""Segments as the table stores them (JSON polygons or COCO RLE) to masks, and back.

Masks are rasterised by pycocotools, as COCO's own evaluation does, so that areas and IoU agree
with it to the pixel.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as coco

from cvtrain.augment.planes import Masks
from cvtrain.data.formats.rle import runs as rle_runs
from cvtrain.data.mask_file import VOID
from cvtrain.data.table import CROWD, Blobs, Classes, Table
from cvtrain.errors import DataError
from cvtrain.structures import RLE

BACKGROUND = "background"
"""The class that semantic masks made from segments have where no object is."""


def to_rle(segment: bytes, height: int, width: int) -> dict[str, Any]:
    """One stored segment -> compressed COCO RLE ``{"size": [h, w], "counts": bytes}``.

    Several polygons of one object are joined; an empty segment gives an empty mask.

    Raises:
        DataError: an RLE of another size than the image, or something else than polygons or RLE.
    """
    value = json.loads(segment) if segment else []
    if isinstance(value, dict):
        size, counts = [int(v) for v in value["size"]], value["counts"]
        if size != [height, width]:
            raise DataError(f"RLE of size {size} in an image of {[height, width]}; correct it")
        if isinstance(counts, list):
            rle = coco.frPyObjects({"size": size, "counts": counts}, height, width)
        else:
            rle = {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}
        return dict(rle)
    rings = [ring for ring in value if len(ring) >= 6]
    if not rings:
        return to_rle_mask(np.zeros((height, width), np.uint8))
    return dict(coco.merge(coco.frPyObjects(rings, height, width)))


def to_mask(segment: bytes, height: int, width: int) -> np.ndarray:
    """One stored segment -> uint8 ``(height, width)`` of 0 and 1."""
    return np.ascontiguousarray(coco.decode(to_rle(segment, height, width)))


def to_masks(segments: Blobs, rows: slice, height: int, width: int) -> np.ndarray:
    """The segments of these rows -> uint8 ``(N, height, width)`` of 0 and 1."""
    count = rows.stop - rows.start
    if not count:
        return np.zeros((0, height, width), np.uint8)
    rles = [to_rle(segments[i], height, width) for i in range(rows.start, rows.stop)]
    return np.ascontiguousarray(coco.decode(rles).transpose(2, 0, 1))  # (H, W, N) -> (N, H, W)


def to_planes(segments: Blobs, rows: slice, height: int, width: int) -> Masks:
    """The segments of these rows as ``Masks``, without an array of the image's size for each."""
    return planes_of(rles_of(segments, rows, height, width), height, width)


def planes_of(rles: list[RLE], height: int, width: int) -> Masks:
    """Plain RLE as ``Masks`` of an image of that size."""
    runs = rle_runs([rle["counts"] for rle in rles])
    return Masks.packed((_window(run, height) for run in runs), height, width)


def _window(runs: np.ndarray, height: int) -> tuple[int, int, np.ndarray]:
    """Row and column of the box around a mask's runs down the columns, bool ``(h, w)`` in it."""
    ends = np.cumsum(runs)
    starts, stops = ends[0:-1:2], ends[1::2]
    some = stops > starts
    starts, stops = starts[some], stops[some]
    if not len(starts):
        return 0, 0, np.zeros((0, 0), bool)
    left, right = int(starts[0]) // height, int(stops[-1] - 1) // height + 1
    held = np.concatenate([[left * height], np.stack([starts, stops], 1).ravel(), [right * height]])
    lengths = np.diff(held)
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    mask = flat.reshape(right - left, height).T  # (w * H,) down the columns -> (H, w)
    seen = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(seen[0]), int(seen[-1]) + 1
    return top, left, mask[top:bottom]


def to_rle_mask(mask: np.ndarray) -> dict[str, Any]:
    """``(H, W)`` of 0 and 1 (or bool) -> compressed COCO RLE, counts as bytes."""
    return dict(coco.encode(np.asfortranarray(mask.astype(np.uint8, copy=False))))


def from_mask(mask: np.ndarray) -> bytes:
    """``(H, W)`` of 0 and 1 (or bool) -> a segment as the table stores it (RLE in JSON)."""
    return json.dumps(plain_rle(to_rle_mask(mask))).encode("ascii")


def plain_rle(rle: dict[str, Any]) -> RLE:
    """Compressed COCO RLE of plain values, counts as str: what JSON and other processes take."""
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return {"size": [int(v) for v in rle["size"]], "counts": text}


def rles_of(segments: Blobs, rows: slice, height: int, width: int) -> list[RLE]:
    """The segments of these rows as plain RLE; no mask is drawn where they are RLE already."""
    found = range(rows.start, rows.stop)
    return [plain_rle(to_rle(segments[i], height, width)) for i in found]


def part_to_rle(part: np.ndarray, top: int, left: int, height: int, width: int) -> RLE:
    """A mask that is given where something is: its plain RLE in an image of that size.

    What it costs goes by the part, not by the image.

    Args:
        part: ``(h, w)`` of 0 and 1 (or bool), inside the image.
        top: the row where its first pixel lies.
        left: the column of it.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    h, w = part.shape
    columns = np.zeros((w, h + 2), np.int8)  # RLE goes down the columns
    columns[:, 1:-1] = part.T
    steps = np.diff(columns, axis=1)  # (w, h + 1)
    column, row = np.nonzero(steps > 0)
    starts = (left + column) * height + top + row
    column, row = np.nonzero(steps < 0)
    ends = (left + column) * height + top + row
    apart = starts[1:] != ends[:-1]  # a run to the image's end goes on in the next column
    first = np.concatenate([[True], apart])[: len(starts)]
    last = np.concatenate([apart, [True]])[: len(ends)]
    edges = np.stack([starts[first], ends[last]], axis=1).ravel()
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    size = [height, width]
    return plain_rle(coco.frPyObjects({"size": size, "counts": counts.tolist()}, height, width))


def rle_part(rle: RLE) -> tuple[np.ndarray, int, int]:
    """The part of a mask where something is; what it costs goes by the part, not by the image.

    Returns:
        bool ``(h, w)``, the row and the column of its first pixel; ``(0, 0)`` of an empty mask.
    """
    (runs,) = rle_runs([rle["counts"]])
    top, left, part = _window(runs, int(rle["size"][0]))
    return part, top, left


def resize_part(
    part: np.ndarray, top: int, left: int, size: tuple[int, int], new: tuple[int, int]
) -> tuple[np.ndarray, int, int]:
    """A part of an image of one size, in one of another size: each pixel from the nearest.

    Args:
        part: ``(h, w)``.
        top: the row of its first pixel.
        left: the column of it.
        size: height and width of the image.
        new: those it gets.

    Returns:
        The part ``(h', w')``, and its row and column.
    """
    chosen, starts = [], []
    for start, count, old, pixels in zip((top, left), part.shape, size, new, strict=True):
        nearest = (2 * np.arange(pixels) + 1) * old // (2 * pixels)
        first, last = np.searchsorted(nearest, [start, start + count])
        chosen.append(nearest[first:last] - start)
        starts.append(int(first))
    return part[np.ix_(*chosen)], starts[0], starts[1]


def rles_from_masks(masks: np.ndarray) -> list[RLE]:
    """``(N, H, W)`` of 0 and 1 (or bool) -> their plain RLE."""
    return [plain_rle(to_rle_mask(mask)) for mask in masks]


def decode_rle(rle: RLE) -> np.ndarray:
    """RLE -> uint8 ``(H, W)`` of 0 and 1, in column-major memory."""
    mask: np.ndarray = coco.decode(rle)
    return mask


def rle_areas(rles: list[RLE]) -> np.ndarray:
    """float64 ``(N,)``: the pixels of each mask."""
    # One at a time: of more than 255 at once pycocotools raises OverflowError.
    return np.array([coco.area(rle) for rle in rles], np.float64)


def rle_ious(rles: list[RLE], others: list[RLE], crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of masks, float64 ``(N, M)``; 0 where both are empty.

    Args:
        rles: N masks.
        others: M masks of the same size.
        crowd: bool ``(M,)``: for these the intersection is divided by the area of ``rles`` alone,
            as COCO does for crowd regions.
    """
    if not rles or not others:
        return np.zeros((len(rles), len(others)))
    void = [0] * len(others) if crowd is None else [int(c) for c in crowd]
    return np.asarray(coco.iou(rles, others, void), np.float64)


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tight xyxy box around the non-zero pixels of ``(H, W)``; all zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def semantic_mask(table: Table, i: int) -> np.ndarray:
    """The semantic mask of image i from its segments: uint8 ``(H, W)``.

    Where no object is, it holds the class ``background`` (see ``semantic_table``); of two objects
    at one pixel the smaller is on top; crowd regions are void.
    """
    height, width = (int(v) for v in table.sizes[i])
    mask = np.full((height, width), table.classes.names.index(BACKGROUND), np.uint8)
    rows = table.rows(i)
    if table.segments is None or rows.start == rows.stop:
        return mask
    rles = [to_rle(table.segments[i], height, width) for i in range(rows.start, rows.stop)]
    for k in np.argsort(-rle_areas(rles), kind="stable").tolist():
        row = rows.start + k
        value = VOID if table.flags[row] & CROWD else int(table.labels[row])
        mask[coco.decode(rles[k]).astype(bool)] = value  # one at a time: there may be hundreds
    return mask


def labeled_boxes(table: Table, i: int) -> np.ndarray:
    """Boxes and classes of the objects of image i, crowd regions dropped: float64 ``(N, 5)``."""
    rows = table.rows(i)
    counts = (table.flags[rows] & CROWD) == 0
    boxes, labels = table.boxes[rows][counts], table.labels[rows][counts]
    return np.concatenate([boxes, labels[:, None]], axis=1)  # (N, 4) -> (N, 5)


def semantic_table(table: Table) -> Table:
    """A table of segments for semantic segmentation: ``background`` becomes class 0.

    One that has such a class is left alone. Names and ids move up by one where the ids are the
    indices; ids of the data set's own stay, and the background gets the number below the smallest
    (COCO: 0).
    """
    names, ids = table.classes.names, table.classes.ids
    if BACKGROUND in names:
        return table
    if ids == tuple(range(len(ids))):
        ids = tuple(range(len(ids) + 1))
    else:
        ids = (min(ids) - 1, *ids)
    return replace(table, classes=Classes((BACKGROUND, *names), ids), labels=table.labels + 1)
