"""Part of a checked data set: some of its classes, some training images of each.

Runs after the gate, on its tables; what is left out is counted and said. numpy alone.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cvtrain.data.image_labels import map_tags
from cvtrain.data.table import Classes, Table
from cvtrain.errors import DataError, UsageError

_STREAM = 5  # which draw this is: no loader's stream is (seed, class, 0, 0, 5)


@dataclass
class Selection:
    """What ``data.classes`` and ``data.train_per_class`` left of a data set.

    Attributes:
        tables: split -> what is left of its table.
        classes: the class table that is left.
        lines: what was left out, for people.
        counts: split -> images and annotations, now and ``of`` before.
    """

    tables: dict[str, Table]
    classes: Classes
    lines: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for check.json."""
        return {"classes": list(self.classes.names), "said": self.lines, "splits": self.counts}


def select(
    tables: dict[str, Table],
    task: str | None,
    *,
    classes: Sequence[str | int] | None = None,
    train_per_class: int | None = None,
    seed: int = 0,
) -> Selection | None:
    """The part of a data set that the two keys ask for.

    With ``classes`` the class table is these names in this order. Images of another class are left
    out (where an image has one class), objects and tags of another class are (their images stay,
    but for localization, which needs an object), pixels of another class become void (masks).
    With ``train_per_class`` training keeps so many images per class, drawn by ``seed``: a smaller
    number of the same seed is a part of a larger one's, whatever the other classes are.

    Args:
        tables: split -> table, as the gate left it.
        task: what it is for; None: what the tables hold.
        classes: names; None: all.
        train_per_class: None: all images.
        seed: of the run.

    Returns:
        None where both are None.

    Raises:
        UsageError: a name that is no class of the data, or images that are not counted by class.
        DataError: nothing is left of train or val.
    """
    if not tables or (classes is None and train_per_class is None):
        return None
    known = next(iter(tables.values())).classes
    whole = dict(tables)
    chosen = Selection(dict(tables), known)
    if classes is not None:
        _keep_classes(chosen, task, _indices(classes, known.names))
    if train_per_class is not None and "train" in tables:
        _keep_images(chosen, task, train_per_class, seed)
    for name, before in whole.items():
        now = chosen.tables.get(name)
        chosen.counts[name] = {
            "images": 0 if now is None else len(now),
            "of_images": len(before),
            "annotations": 0 if now is None else now.num_annotations,
            "of_annotations": before.num_annotations,
        }
    return chosen


def _indices(wanted: Sequence[str | int], names: Sequence[str]) -> list[int]:
    """The class index of each name typed.

    Raises:
        UsageError: there is no such class.
    """
    indices = []
    for name in map(str, wanted):
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            more = ", ..." if len(names) > 12 else ""
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names[:12])}{more}"
            raise UsageError(f"data.classes: the data set has no class {name}; {hint}")
        indices.append(names.index(name))
    return indices


def _keep_classes(chosen: Selection, task: str | None, indices: list[int]) -> None:
    known = chosen.classes
    new = np.full(len(known) + 1, -1, np.int64)  # the last: of label -1
    new[indices] = np.arange(len(indices))
    chosen.classes = Classes(
        tuple(known.names[i] for i in indices), tuple(known.ids[i] for i in indices)
    )
    before = chosen.tables
    chosen.tables = {}
    for name, table in before.items():
        chosen.tables[name] = _part(table, task, new, indices, chosen.classes)
    first = next(iter(before.values()))
    chosen.lines.append(
        f"data.classes: {_what_was_kept(before, chosen.tables, task)}, "
        f"{len(indices)} of {len(known)} classes"
    )
    if _has_masks(first, task) and len(indices) < len(known):
        chosen.lines.append("data.classes: pixels of the other classes are void")
    for name in [n for n, table in chosen.tables.items() if not len(table)]:
        names = ", ".join(chosen.classes.names[:5]) + (", ..." if len(indices) > 5 else "")
        if name in ("train", "val"):
            raise DataError(f"data.classes: {name} has no image of {names}; choose others")
        chosen.lines.append(f"data.classes: {name} has no image of {names}; it is dropped")
        del chosen.tables[name]


def _part(
    table: Table, task: str | None, new: np.ndarray, indices: list[int], classes: Classes
) -> Table:
    """The table with these classes alone; ``new`` maps the old index to the new, -1: left out."""
    images = np.arange(len(table))
    keep = new[table.labels] >= 0
    of_image_class = _has_image_class(table, task)
    if of_image_class:
        assert table.image_labels is not None
        images = np.flatnonzero(new[table.image_labels] >= 0)
    elif task == "localization":
        of_image = np.repeat(images, np.diff(table.starts))
        images = np.unique(of_image[keep])
    part = table.take(images, keep)
    values = table.mask_values
    void = table.mask_void
    if table.masks is not None:
        values = table.class_values[indices]
        void = np.union1d(table.void_values, np.delete(table.class_values, indices))
    labels = part.image_labels
    if part.tags is not None:
        part = map_tags(part, new)
    return replace(
        part,
        classes=classes,
        labels=new[part.labels],
        image_labels=None if labels is None or not of_image_class else new[labels],
        mask_values=values,
        mask_void=void,
    )


def _has_image_class(table: Table, task: str | None) -> bool:
    return table.image_labels is not None and task in (None, "classification")


def _has_masks(table: Table, task: str | None) -> bool:
    return table.masks is not None and task in (None, "semantic_segmentation")


def _what_was_kept(before: dict[str, Table], now: dict[str, Table], task: str | None) -> str:
    """``1,500 of 3,000 images kept (train 1,000, val 500)``, of objects too where there are."""
    splits = ", ".join(f"{name} {len(table):,}" for name, table in now.items())
    images, of_images = (sum(map(len, tables.values())) for tables in (now, before))
    message = f"{images:,} of {of_images:,} images kept ({splits})"
    objects, of_objects = (
        sum(t.num_annotations for t in tables.values()) for tables in (now, before)
    )
    counted = of_objects and task != "classification"
    return f"{message}, {objects:,} of {of_objects:,} objects" if counted else message


def _keep_images(chosen: Selection, task: str | None, number: int, seed: int) -> None:
    table = chosen.tables["train"]
    if not _has_image_class(table, task):
        raise UsageError(
            f"data.train_per_class={number} counts images by their class: it is for "
            "task=classification"
        )
    assert table.image_labels is not None
    rows = []
    for k, name in enumerate(chosen.classes.names):
        members = np.flatnonzero(table.image_labels == k)
        stream = zlib.crc32(name.encode("utf-8", "surrogateescape"))
        order = np.random.default_rng([seed, stream, 0, 0, _STREAM]).permutation(members)
        rows.append(order[:number])
        if len(members) < number:
            chosen.lines.append(
                f"data.train_per_class={number}: {name} has {len(members):,} training "
                f"image{'' if len(members) == 1 else 's'}; all are used"
            )
    kept = np.sort(np.concatenate(rows))
    chosen.tables["train"] = table.take(kept)
    chosen.lines.append(
        f"data.train_per_class={number}: {len(kept):,} of {len(table):,} training images, "
        f"drawn by seed={seed}"
    )
