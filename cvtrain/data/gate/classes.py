"""The gate's checks of classes: those that a split has beyond train, lacks, or nothing has.

What occurs is counted as it is written in the files, whatever errors take away from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cvtrain.data.gate.images import mask_values
from cvtrain.data.gate.report import SplitState, hides_classes
from cvtrain.data.image_labels import tag_images
from cvtrain.data.table import Classes
from cvtrain.errors import DataError

IMBALANCED = 10
"""So many times more images of one class than of another are worth a note."""

_MOST_NAMED = 12


def check_classes(
    states: Sequence[SplitState], task: str | None, chosen: Sequence[str | int] | None
) -> None:
    """All that is said of the classes of the splits together.

    Args:
        states: after the checks of each split.
        task: what the data set is for.
        chosen: the only classes that will be kept (``data.classes``); None: all.
    """
    if not states:
        return
    _note_alike(states)
    names = states[0].table.classes.names
    wanted = None if chosen is None else set(map(str, chosen))
    counts = {state.name: class_counts(state, written=True) for state in states}
    unknown = _unknown_to_train(states, counts, wanted)
    everywhere = np.sum(list(counts.values()), 0)
    for k, name in enumerate(names):
        if not everywhere[k]:
            where = " or ".join(counts)
            states[0].split_problem("class-unused", f"class {name!r} never occurs in {where}")
        elif "train" in counts and not counts["train"][k] and name not in unknown:
            others = " and ".join(split for split, count in counts.items() if count[k])
            message = f"class {name!r} never occurs in train, but in {others}"
            states[0].split_problem("class-unused", message)
    _note_absent(states, counts, wanted)
    _note_dropped(states, counts, wanted)
    _note_imbalance(states, task)


def class_counts(state: SplitState, written: bool = False) -> np.ndarray:
    """int64 ``(K,)`` of each class: objects, images or pixels of masks, whatever has classes.

    Args:
        state: the split.
        written: count what is left out as well, and what could not become a row of the table.
    """
    table, classes = state.table, len(state.table.classes)
    images = np.ones_like(state.images) if written else state.images
    counts = np.zeros(classes, np.int64)
    if state.masks is not None:
        pixel_values = mask_values(state)
        for i in np.flatnonzero(images).tolist():
            values, pixels = state.masks.values.get(i, (np.zeros(0, int), np.zeros(0, int)))
            for k, value in enumerate(pixel_values):
                counts[k] += pixels[values == value].sum()
        return counts
    if table.tags is not None:
        labels = table.tags[images[tag_images(table)]]
    elif table.num_annotations or table.image_labels is None:
        keep = images[state.image_of] & (written | state.annotations)
        labels = table.labels[keep]
    else:
        labels = table.image_labels[images]
    if written:
        labels = np.concatenate([labels, state.lost])
    labels = labels[(labels >= 0) & (labels < classes)]
    return np.bincount(labels, minlength=classes)


def _unknown_to_train(
    states: Sequence[SplitState], counts: dict[str, np.ndarray], wanted: set[str] | None
) -> set[str]:
    """Errors for classes of val and test that train neither has nor names; gives their names."""
    found: set[str] = set()
    train = next((state for state in states if state.name == "train"), None)
    if train is None or hides_classes(train) or not counts["train"].any():
        return found
    for state in states:
        if state.known is None:
            continue
        only = counts[state.name].astype(bool) & (counts["train"] == 0)
        names = state.table.classes.names
        mine = [k for k in np.flatnonzero(only).tolist() if names[k] not in state.known]
        mine = [k for k in mine if wanted is None or names[k] in wanted]
        if mine:
            which = "a class" if len(mine) == 1 else f"{len(mine)} classes"
            listed = _listed(names[k] for k in mine)
            message = f"{state.name} has {listed}, {which} that train does not have"
            file = _first_file(state, mine[0])
            state.split_problem("classes-differ", message, file=file)
            found.update(names[k] for k in mine)
    return found


def _note_absent(
    states: Sequence[SplitState], counts: dict[str, np.ndarray], wanted: set[str] | None
) -> None:
    """Notes for splits that lack classes of train: nothing can be measured of these."""
    for state in states:
        if state.name == "train" or "train" not in counts or not counts[state.name].any():
            continue
        absent = (counts["train"] > 0) & (counts[state.name] == 0)
        names = [state.table.classes.names[k] for k in np.flatnonzero(absent)]
        names = [name for name in names if wanted is None or name in wanted]
        if names:
            message = f"{state.name} has nothing of {_listed(names)}, which train has"
            state.split_problem("classes-absent", message)


def _note_dropped(
    states: Sequence[SplitState], counts: dict[str, np.ndarray], wanted: set[str] | None
) -> None:
    """Notes for classes of which a split has nothing left."""
    if any(p.severity == "error" and not p.action for state in states for p in state.problems):
        return  # what is dropped depends on what will be done about these
    for state in states:
        gone = (counts[state.name] > 0) & (class_counts(state) == 0)
        names = [state.table.classes.names[k] for k in np.flatnonzero(gone)]
        names = [name for name in names if wanted is None or name in wanted]
        if names:
            message = f"all that {state.name} has of {_listed(names)} is dropped"
            state.split_problem("class-dropped", message)


def _note_imbalance(states: Sequence[SplitState], task: str | None) -> None:
    """Training images of whole-image classes that differ much in number."""
    train = next((state for state in states if state.name == "train"), None)
    whole = (None, "classification", "multilabel_classification")
    if train is None or task not in whole or train.table.num_annotations:
        return
    counts = class_counts(train)
    there = np.flatnonzero(counts)
    if train.masks is not None or len(there) < 2:
        return
    most, least = (int(there[f(counts[there])]) for f in (np.argmax, np.argmin))
    if counts[most] >= IMBALANCED * counts[least]:
        names = train.table.classes.names
        train.split_problem(
            "class-imbalance",
            f"{counts[most]:,} training images of {names[most]!r}, {counts[least]:,} of "
            f"{names[least]!r}",
        )


def _note_alike(states: Sequence[SplitState]) -> None:
    """Class names that differ only by case or spaces: most likely one class, written twice."""
    alike: dict[str, list[str]] = {}
    for name in states[0].table.classes.names:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            message = f"classes {', '.join(map(repr, names))} differ only by case or spaces"
            states[0].split_problem("classes-alike", message)


def unite_classes(states: Sequence[SplitState]) -> None:
    """One class table for all splits, the first one's classes first; labels go by name.

    A name that has another id than in the first table is an error. A table that lacks classes is
    none, and of one that has more, ``check_classes`` looks at what occurs.
    """
    if len({state.table.classes for state in states}) < 2:
        return
    names: dict[str, int] = {}
    for state in states:
        for name, ident in zip(state.table.classes.names, state.table.classes.ids):
            names.setdefault(name, ident)
    ids = tuple(names.values()) if len(set(names.values())) == len(names) else range(len(names))
    union = Classes(tuple(names), tuple(ids))
    index = {name: k for k, name in enumerate(names)}
    first = states[0].table.classes
    values = _united_values(states, list(names))
    for state in states:
        own = state.table.classes
        moved = [n for n, ident in zip(own.names, own.ids) if names[n] != ident]
        if moved:
            state.split_problem(
                "classes-differ",
                f"{state.name} has the classes {_few(own.names)}, "
                f"{states[0].name} has {_few(first.names)}: {moved[0]!r} has another id",
                repaired=state.on_bad != "error",
            )
        state.known = frozenset(first.names)
        to = np.array([*(index[name] for name in own.names), -1])
        columns = {"labels": to[_known(state.table.labels, len(own))]}
        if state.table.image_labels is not None:
            columns["image_labels"] = to[_known(state.table.image_labels, len(own))]
        if state.table.tags is not None:
            columns["tags"] = to[_known(state.table.tags, len(own))]
        if values is not None:
            columns["mask_values"] = values
        state.set_table(classes=union, **columns)
        state.lost = to[_known(state.lost, len(own))]


def _united_values(states: Sequence[SplitState], names: Sequence[str]) -> np.ndarray | None:
    """int64 ``(K,)`` the pixel value of each class; None: there are no masks.

    Raises:
        DataError: a value is two classes, or a class has two values: masks are not written again.
    """
    value_of: dict[str, int] = {}
    name_of: dict[int, str] = {}
    masks = [state for state in states if state.table.masks is not None]
    for state in masks:
        own = state.table.classes.names
        for name, value in zip(own, mask_values(state).tolist()):
            if value_of.setdefault(name, value) != value or name_of.setdefault(value, name) != name:
                first = masks[0]
                raise DataError(
                    f"masks of {state.name} are of {_few(own)}, those of {first.name} of "
                    f"{_few(first.table.classes.names)}; give all splits the same classes"
                )
    return np.array([value_of[name] for name in names], np.int64) if masks else None


def _first_file(state: SplitState, k: int) -> str:
    """The first image of a split that has class k; "." where that takes opening masks."""
    table = state.table
    if table.tags is not None:
        rows = tag_images(table)[table.tags == k]
    elif table.image_labels is not None and not table.num_annotations:
        rows = np.flatnonzero(table.image_labels == k)
    else:
        rows = state.image_of[table.labels == k]
    return table.files[int(rows[0])] if len(rows) else "."


def _known(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.where((labels >= 0) & (labels < classes), labels, -1)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{len(names)}: {shown}{', ...' if len(names) > 6 else ''}"


def _listed(names: Iterable[str]) -> str:
    """Names in quotes, the first of many."""
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED:,} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(map(repr, every[:_MOST_NAMED])) + more
