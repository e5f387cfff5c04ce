"""The gate's checks of segments: polygons and run-length encodings against the images' true sizes.

Blobs are parsed a few thousand at a time and their numbers looked at together; nothing of it stays.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as coco

from cvtrain.data.formats import rle
from cvtrain.data.formats.packing import blobs
from cvtrain.data.gate.report import SplitState
from cvtrain.data.table import CROWD, Blobs

_CHUNK = 4096  # annotations parsed at a time
_TOLERANCE = 1.0  # pixels that a polygon may stick out without a note


def check_segments(state: SplitState, required: bool) -> None:
    """Errors and notes on segments; the table's become pixels.

    Args:
        state: sizes are those of the files, boxes are not yet pixels.
        required: the task needs a segment for each object that is not a crowd.
    """
    table = state.table
    segments = table.segments
    if segments is None:
        lengths = np.zeros(table.num_annotations, np.int64)
    else:
        lengths = np.diff(segments.offsets)
    _check_missing(state, (lengths == 0) & (table.flags & CROWD == 0), required)
    if segments is None:
        return
    state.outlines = np.full((table.num_annotations, 4), np.nan)
    image_of = state.image_of
    known = (table.sizes > 0).all(1) & state.images
    changed: dict[int, bytes] = {}
    rows = np.flatnonzero((lengths > 0) & known[image_of])
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        parsed = [_parse(segments[int(row)]) for row in chunk]
        sizes = table.sizes[image_of[chunk]]
        if table.relative:
            _to_pixels(parsed, sizes)
            changed.update({int(r): _pack(v) for r, v in zip(chunk, parsed)})
        _check_polygons(state, chunk, image_of[chunk], parsed, sizes, changed)
        _check_encodings(state, chunk, image_of[chunk], parsed, sizes)
    if changed:
        state.set_table(segments=_replaced(segments, changed))


def _check_missing(state: SplitState, missing: np.ndarray, required: bool) -> None:
    rows = np.flatnonzero(missing & state.annotations)
    if not len(rows):
        return
    if required:
        image_of = state.image_of
        for row in rows:
            message = "the object has a box, but no segment"
            state.annotation_problem(int(row), int(image_of[row]), "segment-missing", message)
    elif state.table.segments is not None:
        count = f"{len(rows):,} of {len(missing):,} objects have a box, but no segment"
        state.split_problem("segments-partial", count)


def _parse(blob: bytes) -> Any:
    """Polygons, an RLE, or None for anything else."""
    try:
        value = json.loads(blob)
    except ValueError:
        return None
    return value if isinstance(value, (list, dict)) and value else None


def _pack(value: Any) -> bytes:
    return b"" if value is None else json.dumps(value, separators=(",", ":")).encode()


def _replaced(segments: Blobs, changed: dict[int, bytes]) -> Blobs:
    parts = [changed.get(i) for i in range(len(segments))]
    whole = [segments[i] if part is None else part for i, part in enumerate(parts)]
    offsets = np.zeros(len(whole) + 1, np.int64)
    np.cumsum([len(part) for part in whole], out=offsets[1:])
    return blobs(b"".join(whole), offsets)


def _to_pixels(parsed: Sequence[Any], sizes: np.ndarray) -> None:
    """Fractions of the image become pixels, in place; an RLE has pixels always."""
    for value, (height, width) in zip(parsed, sizes.tolist()):
        if isinstance(value, list):
            for k, ring in enumerate(value):
                if _is_ring(ring):
                    points = np.asarray(ring, np.float64).reshape(-1, 2) * (width, height)
                    value[k] = points.ravel().round(4).tolist()  # (P, 2) -> (2P,)


def _is_ring(ring: Any) -> bool:
    return (
        isinstance(ring, list)
        and len(ring) % 2 == 0
        and all(type(v) in (int, float) for v in ring)
        and all(abs(v) < 1e9 for v in ring)  # False for NaN and infinity
    )


def _check_polygons(
    state: SplitState,
    rows: np.ndarray,
    images: np.ndarray,
    parsed: Sequence[Any],
    sizes: np.ndarray,
    changed: dict[int, bytes],
) -> None:
    """Rings of numbers, three points or more, a pixel covered, inside the image."""
    good: list[int] = []
    for k, value in enumerate(parsed):
        if isinstance(value, dict):
            continue
        row, image = int(rows[k]), int(images[k])
        if value is None or not all(_is_ring(ring) for ring in value):
            message = "neither polygons of x, y pairs nor an RLE"
            state.annotation_problem(row, image, "segment-malformed", message)
            continue
        short = [len(ring) // 2 for ring in value if len(ring) < 6]
        if short:
            kept = [ring for ring in value if len(ring) >= 6]
            message = f"a ring of {short[0]} points ({len(short)} of {len(value)} rings)"
            repaired = state.fixing and bool(kept)
            state.annotation_problem(row, image, "segment-short", message, repaired=repaired)
            if not repaired:
                continue
            value[:] = kept
            changed[row] = _pack(kept)
        good.append(k)
    if good:
        _measure(state, rows[good], images[good], [parsed[k] for k in good], sizes[good])


def _measure(
    state: SplitState,
    rows: np.ndarray,
    images: np.ndarray,
    polygons: Sequence[list[list[float]]],
    sizes: np.ndarray,
) -> None:
    """Notes on polygons that stick out; errors on those without a pixel, rasterised if in doubt."""
    rings = [ring for polygon in polygons for ring in polygon]
    lengths = np.array([len(ring) // 2 for ring in rings])
    flat = np.fromiter(itertools.chain.from_iterable(rings), np.float64, int(2 * lengths.sum()))
    points = flat.reshape(-1, 2)
    starts = np.cumsum(lengths) - lengths  # of each ring, in points
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    step = points[following] - points
    cross = points[:, 0] * points[following, 1] - points[following, 0] * points[:, 1]
    area = np.abs(np.add.reduceat(cross, starts)) / 2
    perimeter = np.add.reduceat(np.hypot(step[:, 0], step[:, 1]), starts)
    owner = np.repeat(np.arange(len(polygons)), [len(p) for p in polygons])
    limits = sizes[owner][:, ::-1]  # (R, 2) width, height
    low = np.minimum.reduceat(points, starts)
    high = np.maximum.reduceat(points, starts)
    excess = np.maximum(-low, high - limits).max(1)
    # A ring thicker than 2 pixels on the average and inside the image surely covers one.
    sure = (area > perimeter) & (excess <= 0)
    covered = np.zeros(len(polygons), bool)
    covered[owner[sure]] = True
    for k in np.flatnonzero(~covered).tolist():
        height, width = (int(v) for v in sizes[k])
        encoded = coco.merge(coco.frPyObjects(polygons[k], height, width))
        if not coco.area(encoded):
            message = "the polygon covers no pixel of the image"
            state.annotation_problem(int(rows[k]), int(images[k]), "segment-empty", message)
    assert state.outlines is not None
    boxes = np.concatenate(
        [np.full((len(polygons), 2), np.inf), np.full((len(polygons), 2), -np.inf)], 1
    )
    np.minimum.at(boxes[:, :2], owner, low)
    np.maximum.at(boxes[:, 2:], owner, high)
    state.outlines[rows] = boxes
    furthest = np.zeros(len(polygons))
    np.maximum.at(furthest, owner, excess)
    for k in np.flatnonzero(furthest > _TOLERANCE).tolist():
        message = f"the polygon leaves the image by {furthest[k]:.4g} pixels"
        state.annotation_problem(int(rows[k]), int(images[k]), "segment-outside", message)


def _check_encodings(
    state: SplitState,
    rows: np.ndarray,
    images: np.ndarray,
    parsed: Sequence[Any],
    sizes: np.ndarray,
) -> None:
    """RLEs: well-formed, of the image's size, with a pixel in them."""
    which, counts, pixels = [], [], []
    for k, value in enumerate(parsed):
        if not isinstance(value, dict):
            continue
        size, text = value.get("size"), value.get("counts")
        if not isinstance(text, str) or not _is_size(size):
            message = f"an RLE needs size [h, w] and counts; its size is {size}"
            state.annotation_problem(int(rows[k]), int(images[k]), "segment-malformed", message)
        elif size != sizes[k].tolist():
            message = f"the mask is {size[1]} x {size[0]}, its image {sizes[k, 1]} x {sizes[k, 0]}"
            state.annotation_problem(int(rows[k]), int(images[k]), "segment-size", message)
        else:
            which.append(k)
            counts.append(text)
            pixels.append(size[0] * size[1])
    if not which:
        return
    assert state.outlines is not None
    broken = rle.broken(counts, pixels)
    for j, k in enumerate(which):
        row, image = int(rows[k]), int(images[k])
        if broken[j]:
            message = f"the RLE's runs do not add up to {pixels[j]:,} pixels"
            state.annotation_problem(row, image, "segment-malformed", message)
            continue
        x, y, w, h = coco.toBbox({"size": parsed[k]["size"], "counts": counts[j].encode()})
        if w and h:
            state.outlines[row] = (x, y, x + w, y + h)
        else:
            state.annotation_problem(row, image, "segment-empty", "the mask has no pixel set")


def _is_size(size: Any) -> TypeGuard[list[int]]:
    return isinstance(size, list) and len(size) == 2 and all(type(v) is int for v in size)


def turn_annotations(
    state: SplitState, images: np.ndarray, orientations: np.ndarray, stored: np.ndarray
) -> None:
    """Turns boxes and segments of these images as EXIF turns their pixels.

    Args:
        state: boxes and segments are in the frame of the stored image.
        images: rows of the images.
        orientations: ``(N,)`` EXIF, of all images.
        stored: ``(N, 2)`` height, width before EXIF, of all images.
    """
    table = state.table
    boxes = table.boxes.copy()
    changed: dict[int, bytes] = {}
    for i in images.tolist():
        orientation = int(orientations[i])
        height, width = (1, 1) if table.relative else (int(v) for v in stored[i])
        rows = table.rows(i)
        points = boxes[rows].reshape(-1, 2)  # (n, 4) -> (2n, 2)
        corners = turn_points(points, orientation, height, width).reshape(-1, 2, 2)
        low, high = np.min(corners, 1), np.max(corners, 1)
        inverted = np.any(boxes[rows][:, 2:] < boxes[rows][:, :2], axis=1)
        turned = np.concatenate([low, high], 1)
        boxes[rows] = np.where(inverted[:, None], turned[:, [2, 3, 0, 1]], turned)
        if table.segments is None:
            continue
        for row, value in _segments_of(table.segments, rows):
            changed[row] = _pack(_turn(value, orientation, height, width, stored[i].tolist()))
    state.set_table(boxes=boxes)
    if changed and table.segments is not None:
        state.set_table(segments=_replaced(table.segments, changed))


def _segments_of(segments: Blobs, rows: slice) -> Iterator[tuple[int, Any]]:
    for row in range(rows.start, rows.stop):
        value = _parse(segments[row])
        if value is not None:
            yield row, value


def _turn(value: Any, orientation: int, height: int, width: int, stored: list[int]) -> Any:
    if isinstance(value, list):
        return [
            turn_points(np.asarray(r, np.float64).reshape(-1, 2), orientation, height, width)
            .ravel()  # (P, 2) -> (2P,)
            .tolist()
            if _is_ring(r)
            else r
            for r in value
        ]
    text, size = value.get("counts"), value.get("size")
    if not isinstance(text, str) or size != stored or rle.broken([text], [size[0] * size[1]])[0]:
        return value  # check_segments says what is wrong with it
    mask = coco.decode({"size": size, "counts": text.encode()})
    turned = coco.encode(np.asfortranarray(turn_pixels(mask, orientation)))
    return {"size": [int(v) for v in turned["size"]], "counts": turned["counts"].decode("ascii")}


def turn_points(points: np.ndarray, orientation: int, height: int, width: int) -> np.ndarray:
    """``(P, 2)`` x, y in a stored image of that size -> the upright image, by EXIF orientation."""
    x, y = points[:, 0], points[:, 1]
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return np.stack([y, x] if orientation >= 5 else [x, y], 1)


def turn_pixels(image: np.ndarray, orientation: int) -> np.ndarray:
    """``(H, W)`` as stored -> upright, by EXIF orientation."""
    if orientation in (2, 3, 7, 8):
        image = image[:, ::-1]
    if orientation in (3, 4, 6, 7):
        image = image[::-1]
    return image.T if orientation >= 5 else image  # (H, W) -> (W, H)
