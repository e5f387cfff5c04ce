"""The gate's checks of boxes and labels, on whole columns at once."""

from __future__ import annotations

import numpy as np

from cvtrain.data.gate.images import mask_values
from cvtrain.data.gate.report import SplitState
from cvtrain.data.gate.units import lie_apart, outline_boxes
from cvtrain.data.image_labels import tag_images
from cvtrain.data.table import CROWD, DIFFICULT

ROUNDING = 1.0
"""A box may stick out of its image by so many pixels: tools round, and count from 0 or from 1."""

_NOISE = 0.01  # pixels, cut without a word: relative coordinates have about six digits

NAN, INVERTED, ZERO, OUTSIDE, ROUNDED = range(1, 6)
_CODES = {NAN: "box-nan", INVERTED: "box-inverted", ZERO: "box-zero-area", OUTSIDE: "box-outside"}


def judge_boxes(
    boxes: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What is wrong with each box, and what it is when repaired.

    Args:
        boxes: float64 ``(M, 4)`` xyxy pixels, as written.
        limits: float64 ``(M, 2)`` width, height of its image; infinite where unknown.

    Returns:
        verdict uint8 ``(M,)`` (0: fine), repaired boxes ``(M, 4)``, bool ``(M,)`` whether the
        repaired box is one, and float64 ``(M,)`` by how many pixels it sticks out (0: it doesn't).
    """
    finite = np.isfinite(boxes).all(1)
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    inverted = finite & (boxes[:, 2:] < boxes[:, :2]).any(1)
    zero = finite & ~_has_area(low, high)
    with np.errstate(invalid="ignore"):  # infinity minus infinity, in boxes that are not finite
        excess = np.maximum(np.maximum(-low, high - limits).max(1), 0)
    excess[~finite] = 0
    repaired = np.concatenate([np.clip(low, 0, limits), np.clip(high, 0, limits)], 1)
    left = finite & _has_area(repaired[:, :2], repaired[:, 2:])
    outside = finite & ((excess > ROUNDING + 1e-6) | ~left)
    verdict = np.zeros(len(boxes), np.uint8)
    verdict[excess > _NOISE] = ROUNDED
    verdict[outside] = OUTSIDE
    verdict[zero] = ZERO
    verdict[inverted] = INVERTED
    verdict[~finite] = NAN
    return verdict, repaired, left, excess


def _has_area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Bool ``(M,)``; in float32, which is what models are given."""
    return np.all(high.astype(np.float32) > low.astype(np.float32), axis=1)


def check_boxes(state: SplitState) -> None:
    """Boxes to pixels, finite, ordered, inside the upright image; areas that are areas.

    ``on_bad=fix`` takes the box around the object's segment for one that is none, as do tasks that
    don't read boxes. A task that reads neither boxes nor segments loses no object here.
    """
    table, image_of = state.table, state.image_of
    usable = (table.sizes > 0).all(1) & state.images
    limits = np.where(usable[:, None], table.sizes[:, ::-1], np.inf)[image_of].astype(np.float64)
    boxes = table.boxes
    if table.relative:
        scale = np.where(usable[:, None], table.sizes[:, ::-1], 1)[image_of]
        boxes = boxes * np.concatenate([scale, scale], 1)
    verdict, repaired, left, excess = judge_boxes(boxes, limits)
    wrong = np.flatnonzero((verdict > 0) & (verdict < ROUNDED))
    outlined = np.zeros(len(boxes), bool)
    if len(wrong) and (state.fixing or not state.reads("box")):
        around = np.clip(_outlines(state, wrong), 0, np.tile(limits[wrong], 2))  # (W, 4)
        there = _has_area(around[:, :2], around[:, 2:])  # not of NaN
        outlined[wrong] = there
        repaired[wrong[there]] = around[there]
        left[wrong] |= there
    for row in wrong.tolist():
        image, kind = int(image_of[row]), int(verdict[row])
        if kind == ZERO and state.reported("segment-empty", image, row):
            continue  # a mask without a pixel has no box either
        if kind == NAN and state.reported("box-malformed", image, row):
            continue  # the reader has said what it is
        fixed = bool(left[row]) and (kind in (INVERTED, OUTSIDE) or bool(outlined[row]))
        fixed &= state.fixing
        message = _message(kind, boxes[row], limits[row], float(excess[row]), bool(left[row]))
        state.annotation_problem(row, image, _CODES[kind], message, repaired=fixed)
    rounded = verdict == ROUNDED
    count = np.bincount(image_of[rounded], minlength=len(table))
    furthest = np.zeros(len(table))
    np.maximum.at(furthest, image_of[rounded], excess[rounded])
    for i in np.flatnonzero(count).tolist():
        boxes_say = "a box leaves" if count[i] == 1 else f"{count[i]} boxes leave"
        message = f"{boxes_say} the image by {furthest[i]:.2g} of a pixel at most"
        state.image_problem(i, "box-rounding", message)
    if state.reads("box") or state.reads("segment"):
        state.annotations &= left | (verdict == 0)
    state.set_table(boxes=repaired, areas=_areas(state, image_of))


def _outlines(state: SplitState, rows: np.ndarray) -> np.ndarray:
    """float64 ``(R, 4)`` the boxes around the segments of these rows; NaN where there are none."""
    if state.outlines is not None:
        return state.outlines[rows]
    segments = state.table.segments
    if segments is None or state.table.relative:
        return np.full((len(rows), 4), np.nan)
    return outline_boxes(segments, rows)


def check_outlines(state: SplitState) -> None:
    """Boxes that are not those of their own segments."""
    if state.outlines is None:
        return
    image_of = state.image_of
    counted = state.annotations & (state.table.flags & CROWD == 0)
    for row in np.flatnonzero(counted & lie_apart(state.table.boxes, state.outlines)).tolist():
        box, around = (_few_numbers(a[row]) for a in (state.table.boxes, state.outlines))
        message = f"box {box} is not that of its segmentation, {around}"
        state.annotation_problem(row, int(image_of[row]), "box-outline", message)


def _few_numbers(box: np.ndarray) -> str:
    return f"[{', '.join(f'{v:.6g}' for v in box)}]"


def _message(
    kind: int, box: np.ndarray, limits: np.ndarray, excess: float, something_left: bool
) -> str:
    message = f"box {_few_numbers(box)}"
    if kind == NAN:
        return f"{message} is not finite"
    if kind == INVERTED:
        axis = "xmax < xmin" if box[2] < box[0] else "ymax < ymin"
        return f"{message} is inverted: {axis}"
    if kind == ZERO:
        return f"{message} has no area: {box[2] - box[0]:.6g} x {box[3] - box[1]:.6g} pixels"
    image = f"the image of {limits[0]:.6g} x {limits[1]:.6g}"
    if not something_left:
        return f"{message} lies outside {image} altogether"
    return f"{message} leaves {image} by {excess:.6g} pixels"


def _areas(state: SplitState, image_of: np.ndarray) -> np.ndarray:
    """The annotated areas, NaN (the box's) for those that are none."""
    areas = state.table.areas
    wrong = np.isinf(areas) | (areas < 0)
    for i, n in zip(*np.unique(image_of[wrong], return_counts=True)):
        first = areas[wrong & (image_of == i)][0]
        message = f"area {first:.6g} of {n} objects" if n > 1 else f"area {first:.6g} of an object"
        state.image_problem(int(i), "area-invalid", message)
    return np.where(wrong, np.nan, areas)


def check_labels(state: SplitState) -> None:
    """Class indices that are none, of objects and of images."""
    table, classes = state.table, len(state.table.classes)
    image_of = state.image_of
    for row in np.flatnonzero((table.labels < 0) | (table.labels >= classes)).tolist():
        message = f"class {int(table.labels[row])} is not one of the {classes} classes"
        state.annotation_problem(row, int(image_of[row]), "class-unknown", message)
    if table.image_labels is not None:
        wrong = (table.image_labels < 0) | (table.image_labels >= classes)
        state.each_image(
            wrong & state.images,
            "image-class-unknown",
            lambda i: f"class {int(table.image_labels[i])} is not one of the {classes} classes",  # type: ignore[index]
        )

    if table.tags is not None:
        wrong = (table.tags < 0) | (table.tags >= classes)
        for i in np.unique(tag_images(table)[wrong]).tolist():
            bad = next(int(t) for t in table.tags_of(i) if not 0 <= t < classes)
            message = f"class {bad} is not one of the {classes} classes"
            state.image_problem(i, "image-class-unknown", message)


def check_one_label(state: SplitState) -> None:
    """Classification wants one class per image, where the data set could name several."""
    table = state.table
    if table.tag_starts is None:
        return
    counts = np.diff(table.tag_starts)
    for i in np.flatnonzero((counts != 1) & state.images).tolist():
        file = table.files[i] if table.annotation_files is None else table.annotation_files[i]
        where = "" if table.image_lines is None else f"line {int(table.image_lines[i])}"
        names = ", ".join(repr(table.classes.names[t]) for t in table.tags_of(i)[:4])
        more = ", ..." if counts[i] > 4 else ""
        if counts[i]:
            message = f"{table.files[i]!r} has {counts[i]} classes: {names}{more}"
            state.image_problem(i, "labels-several", message, file=file, where=where)
        else:
            message = f"{table.files[i]!r} has no class"
            state.image_problem(i, "label-missing", message, file=file, where=where)


def note_images_without_objects(state: SplitState) -> None:
    """Images that are kept as background, and masks that are void throughout."""
    table = state.table
    if state.masks is not None:
        _note_void_masks(state)
    elif table.tag_starts is not None:
        none = (np.diff(table.tag_starts) == 0) & state.images
        state.each_image(none, "image-without-annotation", lambda i: "no class is named for it")
    elif table.image_labels is None:
        none = (np.diff(table.starts) == 0) & state.images
        state.each_image(none, "image-without-annotation", lambda i: "no object is annotated on it")


def _note_void_masks(state: SplitState) -> None:
    """Masks without a class; an error where train or val has no others."""
    assert state.masks is not None
    assert state.table.masks is not None
    classes, there = mask_values(state), np.flatnonzero(state.images).tolist()
    void = 0
    for i in there:
        values, _ = state.masks.values.get(i, (np.zeros(0, np.int64), None))
        if len(values) and len(classes) and not np.isin(values, classes).any():
            void += 1
            message = f"its mask {state.table.masks[i]!r} is void throughout"
            state.image_problem(i, "mask-void", message)
    if void and void == len(there) and state.name in ("train", "val"):
        use = "learned" if state.name == "train" else "scored"
        state.split_problem(
            "split-void", f"every mask of {state.name} is void throughout: nothing can be {use}"
        )


def check_localization(state: SplitState, only: bool = False) -> None:
    """Localization wants an object on every image; ``only``: one that counts, or one in all."""
    keep = state.annotations
    objects = np.bincount(state.image_of[keep], minlength=len(state.table))
    state.each_image(
        (objects == 0) & state.images,
        "image-without-object",
        lambda i: "there is no object on it to localize",
    )
    if not only:
        return
    counting = keep & (state.table.flags & (CROWD | DIFFICULT) == 0)
    count = np.bincount(state.image_of[counting], minlength=len(state.table))
    count = np.where(count > 0, count, objects)
    state.each_image(
        (count > 1) & state.images,
        "image-several-objects",
        lambda i: f"{count[i]} objects are on it, and data.object=only",
    )
