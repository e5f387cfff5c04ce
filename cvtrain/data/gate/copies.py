"""The gate's look for objects that are annotated twice, over a whole split at once."""

from __future__ import annotations

import json

import numpy as np
from pycocotools import mask as coco

from cvtrain.data.gate.report import SplitState
from cvtrain.data.table import CROWD

ASIDE = 1.0
"""Pixels by which a copy may lie aside: exports round, and count from 0 or from 1."""

_SAME = 0.98  # intersection over union from which two boxes are one, whatever their size
_NEAR = 0.7  # the same for boxes whose corners are all within ``ASIDE``
_PART = 0.2  # of the shorter side: a copy lies aside by no more; neighbors in crowds do
_SAME_MASK = 0.7  # of two masks in the same box: crossing strokes share a box, too

# Copies differ little in any sum of their coordinates; sums with these weights differ for objects
# that stand in rows and columns, so that few others lie between two copies in the sorted order.
_WEIGHTS = np.array([1.0, 1.3717421, 0.7320508, 1.9318516])


def check_copies_of_objects(state: SplitState) -> None:
    """Errors on objects annotated twice; notes on boxes that are given two classes.

    Crowd regions are left alone, and so are objects in one box whose masks differ.
    """
    table = state.table
    image_of = state.image_of
    counted = state.annotations & state.images[image_of] & (table.flags & CROWD == 0)
    rows = np.flatnonzero(counted & np.isfinite(table.boxes).all(1))
    first, later = near_pairs(table.boxes[rows], image_of[rows], table.labels[rows])
    first, later = rows[first], rows[later]
    same_class = table.labels[first] == table.labels[later]
    gone: set[int] = set()
    for a, b in zip(first[same_class].tolist(), later[same_class].tolist()):
        image = int(image_of[b])
        if b in gone or not _same_outline(state, image, a, b):
            continue
        gone.add(b)
        name = table.classes.names[int(table.labels[b])]
        exact = np.array_equal(table.boxes[a], table.boxes[b])
        what = "the same box" if exact else "the same box up to rounding"
        message = f"{name!r} twice, {what} as {state.place(a, image)[1]}"
        state.annotation_problem(b, image, "duplicate-object", message)
    for a, b in zip(first[~same_class].tolist(), later[~same_class].tolist()):
        image = int(image_of[b])
        if a in gone or b in gone or not _same_outline(state, image, a, b):
            continue
        names = [table.classes.names[int(table.labels[row])] for row in (a, b)]
        message = f"{names[1]!r} has the box of {state.place(a, image)[1]}, {names[0]!r}"
        state.annotation_problem(b, image, "box-of-two-classes", message)


def near_pairs(
    boxes: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of boxes of one image that are one but for rounding.

    Args:
        boxes: float64 ``(M, 4)`` xyxy pixels, finite.
        images: int64 ``(M,)``.
        labels: int64 ``(M,)`` class indices.

    Returns:
        int64 ``(P,)`` rows, and ``(P,)`` rows behind them, sorted by the latter. Of many equal
        boxes of one class each is paired with the first alone.
    """
    rows, back = _unequal(boxes, images, labels)
    pairs = [(rows[back], np.arange(len(boxes)))]
    pairs[0] = tuple(side[pairs[0][0] != pairs[0][1]] for side in pairs[0])  # type: ignore[assignment]
    boxes, images = boxes[rows], images[rows]
    key = boxes @ _WEIGHTS
    order = np.lexsort((key, images))
    boxes, images, key = boxes[order], images[order], key[order]
    sides = boxes[:, 2:] - boxes[:, :2]
    # Boxes of that IoU differ, all four coordinates together, by so much of the longer side.
    aside = (1 / _SAME - 1) * sides.max(1, initial=0.0)
    reach = np.maximum(ASIDE * _WEIGHTS.sum(), aside * _WEIGHTS.max()) + 1e-3
    active = np.arange(len(boxes) - 1)
    step = 1
    while len(active):
        active = active[active + step < len(boxes)]
        others = active + step
        near = (images[active] == images[others]) & (key[others] - key[active] <= reach[active])
        active, others = active[near], others[near]
        one = _are_one(boxes[active], boxes[others])
        found = rows[order[np.stack([active[one], others[one]])]]  # (2, P)
        pairs.append((found.min(0), found.max(0)))
        step += 1
    first, later = (np.concatenate(side) for side in zip(*pairs))
    by = np.lexsort((first, later))
    return first[by], later[by]


def _unequal(
    boxes: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first of equal boxes, and for each box which of these it equals."""
    order = np.lexsort((*boxes.T, labels, images))  # stable: of equal boxes the first comes first
    new = np.ones(len(boxes), bool)
    if len(boxes):
        same = (boxes[order[1:]] == boxes[order[:-1]]).all(1)
        for key in (images, labels):
            same &= key[order[1:]] == key[order[:-1]]
        new[1:] = ~same
    group = np.cumsum(new) - 1
    back = np.empty(len(boxes), np.int64)
    back[order] = group
    return order[new], back


def _are_one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bool ``(P,)``: pairs of boxes ``(P, 4)`` that are one but for rounding."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = both / (areas[0] + areas[1] - both)
    shorter = np.minimum(a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]).min(1)
    near = np.abs(a - b).max(1, initial=0.0) <= np.minimum(ASIDE, _PART * shorter) + 1e-6
    return (iou >= _SAME) | (near & (iou >= _NEAR))


def _same_outline(state: SplitState, image: int, a: int, b: int) -> bool:
    """Whether two objects in one box may be one: their masks overlap, or one has none."""
    segments = state.table.segments
    if segments is None:
        return True
    one, other = segments[a], segments[b]
    if not one or not other or one == other:
        return True
    height, width = (int(v) for v in state.table.sizes[image])
    masks = [_mask(segment, height, width) for segment in (one, other)]
    return float(coco.iou([masks[0]], [masks[1]], [0])[0, 0]) >= _SAME_MASK


def _mask(segment: bytes, height: int, width: int) -> dict:
    """A segment that the gate has checked, as RLE."""
    value = json.loads(segment)
    if isinstance(value, dict):
        return {"size": value["size"], "counts": value["counts"].encode()}
    return dict(coco.merge(coco.frPyObjects(value, height, width)))
