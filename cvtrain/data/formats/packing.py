"""Builds a packed table row by row: 8-byte slots, no Python object is kept per annotation."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.table import Blobs, Classes, Strings, Table

NAN = float("nan")


class Packer:
    """Takes images and their annotations in order, gives the table.

    Call ``image`` for each image, then ``add`` for each of its annotations.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self._sizes = array("i")
        self._starts = array("q")
        self._boxes = array("d")
        self._labels = array("q")
        self._flags = array("B")
        self._lines = array("q")
        self._segments = bytearray()
        self._offsets = array("q", [0])

    def __len__(self) -> int:
        """How many annotations were added."""
        return len(self._labels)

    def image(self, file: str, height: int = -1, width: int = -1) -> int:
        """Starts an image of that annotated size (-1 unknown); gives its row."""
        self.files.append(file)
        self._sizes.extend((height, width))
        self._starts.append(len(self._labels))
        return len(self.files) - 1

    def add(
        self,
        box: Sequence[float],
        label: int,
        line: int,
        flags: int = 0,
        segment: bytes = b"",
    ) -> int:
        """Adds an annotation (xyxy box) to the image begun last; gives its row."""
        self._boxes.extend(box)
        self._labels.append(label)
        self._lines.append(line)
        self._flags.append(flags)
        self._segments += segment
        self._offsets.append(len(self._segments))
        return len(self._labels) - 1

    def table(self, root: Path, classes: Classes, **fields: Any) -> Table:
        """The table; ``fields`` are further fields of ``Table``."""
        rows = len(self._labels)
        starts = np.empty(len(self.files) + 1, np.int64)
        starts[:-1] = np.frombuffer(self._starts, np.int64)
        starts[-1] = rows
        if self._segments:
            fields["segments"] = blobs(bytes(self._segments), np.array(self._offsets, np.int64))
        return Table(
            root=str(root),
            classes=classes,
            files=Strings(self.files),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            starts=starts,
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4),
            labels=np.array(self._labels, np.int64),
            flags=np.array(self._flags, np.uint8),
            areas=np.full(rows, NAN),
            lines=np.array(self._lines, np.int64),
            **fields,
        )


def blobs(buffer: bytes, offsets: np.ndarray) -> Blobs:
    """``Blobs`` of one buffer and int64 ``(M + 1,)`` offsets, without a list in between."""
    packed = Blobs()
    packed.buffer = np.frombuffer(buffer, np.uint8)
    packed.offsets = offsets
    return packed


def empty_table(root: Path, classes: Classes) -> Table:
    """The table of a split of which nothing could be read."""
    return Packer().table(root, classes)
