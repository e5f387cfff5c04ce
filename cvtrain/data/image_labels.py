"""The classes of whole images, whatever a data set tells them by: one each, or any number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cvtrain.data.table import CROWD, DIFFICULT, Table
from cvtrain.errors import DataError, UsageError

BALANCED = ("classification", "multilabel_classification")
"""Tasks that ``data.sampler=balanced`` serves."""


def for_task(table: Table, task: str | None) -> Table:
    """The table with what a task on whole images reads; as it is for any other task."""
    if task == "multilabel_classification":
        return with_tags(table)
    if task == "classification":
        return with_labels(table)
    return table


def with_tags(table: Table) -> Table:
    """The table with ``tags`` in place of ``image_labels``.

    Where objects are annotated, an image has the classes of its objects; those that are to be
    ignored (crowd, difficult) do not count.
    """
    if table.tags is not None:
        return table
    count = len(table.classes)
    if table.num_annotations or table.image_labels is None:
        images = np.repeat(np.arange(len(table)), np.diff(table.starts))
        counted = (table.flags & (CROWD | DIFFICULT)) == 0
        pairs = np.unique(images[counted] * count + table.labels[counted])
    else:
        pairs = np.arange(len(table)) * count + table.image_labels
    starts = np.zeros(len(table) + 1, np.int64)
    np.cumsum(np.bincount(pairs // max(count, 1), minlength=len(table)), out=starts[1:])
    tags = (pairs % max(count, 1)).astype(np.int64)
    return replace(table, tags=tags, tag_starts=starts, image_labels=None)


def with_labels(table: Table) -> Table:
    """The table with ``image_labels`` in place of ``tags``.

    Raises:
        DataError: an image has no class, or several; the gate leaves such images out.
    """
    if table.tags is None or table.tag_starts is None:
        return table
    if not (np.diff(table.tag_starts) == 1).all():
        raise DataError("an image without its one class; use task=multilabel_classification")
    return replace(table, image_labels=table.tags, tags=None, tag_starts=None)


def tag_images(table: Table) -> np.ndarray:
    """int64 ``(T,)``: the image that each of the table's tags belongs to."""
    assert table.tag_starts is not None
    return np.repeat(np.arange(len(table)), np.diff(table.tag_starts))


def map_tags(table: Table, new: np.ndarray) -> Table:
    """The table with class k of its tags now ``new[k]``, or left out where that is negative."""
    assert table.tags is not None
    images, tags = tag_images(table), new[table.tags]
    kept = np.flatnonzero(tags >= 0)
    kept = kept[np.lexsort((tags[kept], images[kept]))]
    starts = np.zeros(len(table) + 1, np.int64)
    np.cumsum(np.bincount(images[kept], minlength=len(table)), out=starts[1:])
    return replace(table, tags=tags[kept], tag_starts=starts)


def images_per_class(table: Table, task: str) -> np.ndarray:
    """int64 ``(K,)``: how many images have each class; for localization, as their main object."""
    count = len(table.classes)
    if task == "localization":
        labels = table.labels[_largest_rows(table)]
    elif table.tags is not None:
        labels = table.tags
    elif table.image_labels is not None:
        labels = table.image_labels
    else:
        raise DataError(f"task={task}: the data set names no class of an image")
    return np.bincount(labels, minlength=count)


def main_objects(table: Table) -> Table:
    """The table with each image's largest object alone, one that counts if there is one."""
    if (np.diff(table.starts) <= 1).all():
        return table
    keep = np.zeros(table.num_annotations, bool)
    keep[_largest_rows(table)] = True
    return table.take(np.arange(len(table)), keep)


def _largest_rows(table: Table) -> np.ndarray:
    """int64 ``(N,)`` row of each image's main object; images without objects have none."""
    images = np.repeat(np.arange(len(table)), np.diff(table.starts))
    ignored = (table.flags & (CROWD | DIFFICULT)) != 0
    areas = np.prod(table.boxes[:, 2:] - table.boxes[:, :2], axis=1)
    order = np.lexsort((np.where(ignored, -1.0, areas), images))  # by image, the largest last
    last = table.starts[1:][np.diff(table.starts) > 0] - 1
    rows: np.ndarray = order[last]
    return rows


def strata(table: Table) -> np.ndarray:
    """int64 ``(N,)``: the class an image is drawn by, -1 for none.

    Its label; of several, the one that the fewest images have; 0 throughout where images have no
    classes.
    """
    if table.image_labels is not None:
        return table.image_labels
    if table.tags is None or table.tag_starts is None:
        return np.zeros(len(table), np.int64)
    counts = np.bincount(table.tags, minlength=len(table.classes))
    order = np.lexsort((table.tags, counts[table.tags], tag_images(table)))
    filled = np.diff(table.tag_starts) > 0
    found = np.full(len(table), -1, np.int64)
    found[filled] = table.tags[order[table.tag_starts[:-1][filled]]]  # the first of each image
    return found


def check_sampler(sampler: str, task: str) -> None:
    """Raise UsageError for a sampler that there is not, or not for this task."""
    if sampler not in ("shuffle", "balanced"):
        raise UsageError(f"data.sampler={sampler}: choose shuffle or balanced")
    if sampler == "balanced" and task not in BALANCED:
        raise UsageError(
            f"data.sampler=balanced serves task={' | '.join(BALANCED)}, whose images have classes; "
            f"for task={task} leave data.sampler=shuffle"
        )
