"""Looks at a folder and reads it with the reader whose layout it has."""

from __future__ import annotations

from pathlib import Path

from cvtrain.data.formats.base import Reader
from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.formats.files import data_root, folders, walk
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.id_masks import IdMasksReader
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.object_masks import ObjectMasksReader
from cvtrain.data.formats.unread import said_of_unread
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.data.table import Split
from cvtrain.errors import DataError

READERS: dict[str, type[Reader]] = {
    "coco": COCOReader,
    "voc": VOCReader,
    "yolo": YOLOReader,
    "masks": MasksReader,
    "object_masks": ObjectMasksReader,
    "id_masks": IdMasksReader,
    "csv": CSVReader,
    "folder": FolderReader,
}
"""What ``data=NAME`` reads, in the order in which a folder is tried; folders fit much, so last."""


class AutoReader(Reader):
    """Reads whatever of the known layouts the folder has.

    Args:
        root: folder of the data set.

    Attributes:
        name: the format, as in ``data=NAME``.
        found: one line saying what was found.
        reader: the reader that reads it.

    Raises:
        DataError: no layout fits, or several do.
    """

    layout = "; ".join(reader.layout for reader in READERS.values())

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.name, line = recognize(self.root)
        self.reader = READERS[self.name](self.root)
        self.found = f"{self.root}: {line}; splits: {', '.join(self.reader.splits())}"
        if self.name == "voc" and (masks := voc_masks(self.root)):
            self.found += f"; its masks: {masks}"

    @property
    def kinds(self) -> frozenset[str]:
        return self.reader.kinds

    def splits(self) -> list[str]:
        return self.reader.splits()

    def read(self, split: str) -> Split:
        return self.reader.read(split)

    def _read(self, split: str) -> Split:
        return self.reader.read(split)


def looks_like(root: Path) -> tuple[str, str] | None:
    """Name and line of the one format beside class folders that a folder has; None: none."""
    found = []
    for name, reader in READERS.items():
        try:
            line = None if name == "folder" else reader.detect(root)
        except DataError:
            line = None
        if line is not None:
            found.append((name, line))
    return found[0] if len(found) == 1 else None


def voc_masks(root: Path) -> str:
    """What to type for Pascal VOC's masks, where a folder holds some; empty: it does not."""
    years = [name for name in folders(root) if name.startswith("VOC")]
    years += [f"VOCdevkit/{name}" for name in folders(root, "VOCdevkit")]
    for parent in ("", *years):
        place = root / parent
        if not all((place / name).is_dir() for name in ("JPEGImages", "SegmentationClass")):
            continue
        inside = f" data.folder={parent}" if parent else ""
        semantic = f"data=voc_segmentation{inside} for task=semantic_segmentation"
        if (place / "SegmentationObject").is_dir():
            return f"{semantic}, data=voc_objects{inside} for task=instance_segmentation"
        return semantic
    return ""


def recognize(root: str | Path) -> tuple[str, str]:
    """Name of the format a folder has and one line on what was found.

    Raises:
        DataError: no layout fits, or several do; the message lists the layouts.
    """
    path = data_root(root)
    found: dict[str, str] = {}
    doubts: list[DataError] = []
    for name, reader in READERS.items():
        if name == "folder" and set(found) - {"csv"}:
            continue
        try:
            line = reader.detect(path)
        except DataError as error:
            doubts.append(error)
            continue
        if line is not None:
            found[name] = line
    boxes_or_labels = set(found) & {"coco", "voc", "yolo", "csv"}
    if not boxes_or_labels and (masks := voc_masks(path)):
        raise DataError(f"{path} holds Pascal VOC's masks without boxes: write {masks}")
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        choices = " or ".join(f"data={name}" for name in found)
        raise DataError(f"{path} may be {' or '.join(found.values())}; say {choices}")
    if doubts:
        raise doubts[0]
    layouts = "; ".join(reader.layout for reader in READERS.values())
    unread = said_of_unread(path, walk(path))
    raise DataError(f"{path}: no known layout found; expected one of: {layouts}{unread}")
