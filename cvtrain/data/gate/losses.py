"""The gate's count of labels: no split goes on without any, or with less than half of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cvtrain.data.gate.classes import class_counts
from cvtrain.data.gate.images import mask_values
from cvtrain.data.gate.report import SplitState
from cvtrain.data.image_labels import tag_images
from cvtrain.data.mask_file import VOID
from cvtrain.data.table import CROWD, DIFFICULT, Problem, Table

_BY_TASK = frozenset({"image-without-object", "image-several-objects"})
"""Codes that leave out images for what the task is, not for what is wrong with them."""

_COPIES = frozenset({"duplicate-object", "duplicate-annotation"})
"""Codes of what is there another time: that is not lost."""


@dataclass
class _Count:
    """Labels of a split: how many there were, how many are left, and what they are called."""

    total: int
    left: int
    what: str


def check_losses(
    states: Sequence[SplitState], classes: Sequence[str | int] | None, wanted: Sequence[str] | None
) -> None:
    """Errors for splits without labels, and for those that lost more than half of them.

    Args:
        states: after all other checks.
        classes: the only ones that count; None: all.
        wanted: the splits that were asked for by name; None: all there are, of which ``test`` may
            be without labels.
    """
    for state in states:
        names = state.table.classes.names
        if not state.images.any() or not set(map(str, classes or ())) <= set(names):
            continue  # empty-split; a class that there is not, which `select` names
        if state.on_bad == "error" and any(p.severity == "error" for p in state.problems):
            continue  # what is left depends on what will be done about these
        chosen = _chosen(names, classes)
        count = _count(state, chosen)
        images = _images_lost(state)
        if not count.total:
            if state.name != "test" or wanted is not None:
                of = "" if classes is None else " of the classes in data.classes"
                state.split_problem("labels-none", f"{state.name} has no {count.what}{of}")
        elif not count.left or 2 * (count.total - count.left) > count.total:
            lost = f"{count.total - count.left:,} of {count.total:,} {count.what}s"
            state.split_problem("labels-lost", f"{state.name} lost {lost}: {_reasons(state)}")
        elif 2 * images > len(state.images):
            lost = f"{images:,} of {len(state.images):,} images"
            state.split_problem("labels-lost", f"{state.name} lost {lost}: {_reasons(state)}")
        elif (state.name != "test" or wanted is not None) and (message := _one_class(state)):
            state.split_problem("labels-none", message)


def without_objects(tables: Mapping[str, Table], classes: Sequence[str | int] | None) -> list[str]:
    """The parts of a drawn split that have no object of ``classes``, where others have some."""
    counts = {}
    for name, table in tables.items():
        chosen = _chosen(table.classes.names, classes)[_known(table.labels, len(table.classes))]
        counts[name] = np.count_nonzero(chosen & (table.flags & (CROWD | DIFFICULT) == 0))
    return [name for name, count in counts.items() if not count and any(counts.values())]


def _chosen(names: Sequence[str], classes: Sequence[str | int] | None) -> np.ndarray:
    """Bool ``(K + 1,)``: the classes that count; the last is of labels that are no class."""
    wanted = None if classes is None else set(map(str, classes))
    return np.array([wanted is None or name in wanted for name in names] + [wanted is None])


def _count(state: SplitState, chosen: np.ndarray) -> _Count:
    table, images = state.table, state.images
    if state.masks is not None:
        return _count_masks(state, chosen)
    if table.tags is not None:
        counted = chosen[_known(table.tags, len(chosen) - 1)]
        kept = counted & images[tag_images(table)] & (table.tags >= 0)
        return _Count(int(counted.sum()), int(kept.sum()), "label")
    if table.num_annotations or len(state.lost) or table.image_labels is None:
        return _count_objects(state, chosen)
    counted = chosen[_known(table.image_labels, len(chosen) - 1)]
    return _Count(int(counted.sum()), int((counted & images).sum()), "image")


def _count_objects(state: SplitState, chosen: np.ndarray) -> _Count:
    table = state.table
    wanted = chosen[_known(table.labels, len(chosen) - 1)]
    counted = wanted & (table.flags & (CROWD | DIFFICULT) == 0)
    asked = [p.image for p in state.problems if p.code in _BY_TASK and p.image >= 0]
    counted &= ~np.isin(state.image_of, asked)
    counted[[p.annotation for p in state.problems if p.code in _COPIES and p.annotation >= 0]] = (
        False
    )
    kept = counted & state.annotations & state.images[state.image_of]
    if state.task == "semantic_segmentation" and table.segments is not None:
        kept &= np.diff(table.segments.offsets) > 0
    lost = int(chosen[_known(state.lost, len(chosen) - 1)].sum())
    total = int(counted.sum()) + lost
    ignored = "" if total or not wanted.any() else " but crowds and difficult ones"
    return _Count(total, int(kept.sum()), f"object{ignored}")


def _count_masks(state: SplitState, chosen: np.ndarray) -> _Count:
    """Masks; those in which none of the chosen classes has a pixel do not count."""
    assert state.masks is not None
    values = mask_values(state)[chosen[:-1]]
    held = np.ones(len(state.images), bool)
    if not chosen[-1]:
        for i in np.flatnonzero(state.images).tolist():
            there, _ = state.masks.values.get(i, (np.zeros(0, np.int64), None))
            held[i] = bool(np.isin(there, values).any())
    return _Count(int(held.sum()), int((held & state.images).sum()), "mask")


def _one_class(state: SplitState) -> str:
    """What is wrong with masks all of whose pixels are one class of several, or void; or ""."""
    if state.masks is None or len(state.table.classes) < 2:
        return ""
    counts = class_counts(state, written=True)
    if np.count_nonzero(counts) > 1:
        return ""
    of_classes, only, void = mask_values(state), int(counts.argmax()), 0
    if VOID not in of_classes:
        void = sum(int(n[values == VOID].sum()) for values, n in state.masks.values.values())
    if state.name != "train" and not (void and of_classes[only] == 0):
        return ""  # classes-absent says what the split does not have
    also = ""
    if void:
        also = f", the other {void:,} are {VOID}, void: masks of 0 and {VOID} have two classes"
    name = state.table.classes.names[only]
    masks = f"all {len(state.images):,} masks of {state.name}"
    return f"in {masks} every pixel that has a class is {name!r}{also}"


def _known(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels; those that are no class are ``classes``."""
    return np.where((labels >= 0) & (labels < classes), labels, classes)


def _images_lost(state: SplitState) -> int:
    """Images that are left out for something that is wrong with them."""
    return len({p.image for p in _left_out(state) if p.rejects == "image" and p.image >= 0})


def _left_out(state: SplitState) -> list[Problem]:
    return [
        p
        for p in state.problems
        if p.severity == "error" and p.rejects != "nothing" and p.action != "fixed"
        if p.code not in _BY_TASK
    ]


def _reasons(state: SplitState) -> str:
    """The codes of what was left out, the most frequent first."""
    counted = Counter(p.code for p in _left_out(state)).most_common(4)
    return ", ".join(f"{code} {number:,}" for code, number in counted) or "none has what is needed"
