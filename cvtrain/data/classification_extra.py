"""Training on images with boxes and on images that have a class alone, as one set.

Redmon & Farhadi 2016 (arXiv 1612.08242), section 4.3: mixed in every batch. The latter lie in class
folders (``data.classification_root``); their targets have a ``label`` and no ``boxes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from cvtrain.data.collate import Sample
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.source import split_seed
from cvtrain.data.table import Classes, Table

if TYPE_CHECKING:
    from cvtrain.data.gate.run import GateReport


class Joint(Dataset[Sample]):
    """The samples of several data sets, one after the other; keys as ``VisionDataset``'s."""

    def __init__(self, parts: Sequence[VisionDataset]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        epoch, row, *again = key if isinstance(key, tuple) else (0, key)
        if not 0 <= row < len(self):
            raise IndexError(row)
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part][(epoch, row - int(self.starts[part]), *again)]


def join_labeled(
    boxed: Mapping[str, Table], data: Mapping[str, Any], *, seed: int = 0, progress: bool = False
) -> tuple[dict[str, Table], list[Table], list[str]]:
    """The images of ``data["classification_root"]`` beside those with boxes.

    Args:
        boxed: split -> table.
        data: the config's node.
        seed: of the run.
        progress: shows a bar.

    Returns:
        The tables with boxes, those without, both with the classes of both; and a line on what was
        read.

    Raises:
        DataError: see ``read_labeled``.
    """
    labeled, report = read_labeled(data, seed=seed, progress=progress)
    count, classes = sum(map(len, labeled)), len(labeled[0].classes)
    message = (
        f"{data['classification_root']}: {count:,} images with only a class, {classes} classes"
    )
    if report.rejected:
        message += f", {report.rejected:,} images dropped"
    return (*unite(boxed, labeled), [message])


def read_labeled(
    data: Mapping[str, Any], *, seed: int = 0, progress: bool = False
) -> tuple[list[Table], GateReport]:
    """The images of ``data["classification_root"]``, checked as any data set's are.

    Args:
        data: the config's node; ``on_bad``, ``val_fraction``, ``split_seed`` and ``channels`` are
            read too.
        seed: of the run.
        progress: shows a bar.

    Returns:
        The tables of its training images. Without a validation split of its own all are; its
        validation and test images are not used.

    Raises:
        DataError: no class folders, or errors in them.
    """
    from cvtrain.data.gate.run import run_gate

    reader = FolderReader(data["classification_root"])
    whole = "val" not in reader.splits()
    report = run_gate(
        reader,
        "classification",
        on_bad=data["on_bad"],
        val_fraction=data["val_fraction"],
        seed=split_seed(data, seed),
        channels=data["channels"],
        progress=progress,
        allow_empty=bool(data.get("allow_empty", False)),
    )
    names = ("train", "val") if whole else ("train",)
    return [report.tables[name] for name in names if name in report.tables], report


def unite(
    boxed: Mapping[str, Table], labeled: Sequence[Table]
) -> tuple[dict[str, Table], list[Table]]:
    """Both with the classes of both: those with boxes first, then the others."""
    first = next(iter(boxed.values())).classes
    new = [name for name in labeled[0].classes.names if name not in first.names]
    begin = max(first.ids, default=-1) + 1
    classes = Classes((*first.names, *new), (*first.ids, *range(begin, begin + len(new))))
    place = {name: k for k, name in enumerate(classes.names)}
    moved = []
    for table in labeled:
        assert table.image_labels is not None
        of = np.array([place[name] for name in table.classes.names], np.int64)
        moved.append(replace(table, classes=classes, image_labels=of[table.image_labels]))
    return {split: replace(t, classes=classes) for split, t in boxed.items()}, moved
