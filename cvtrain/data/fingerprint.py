"""What a run was trained on, image by image: to be compared when the run is resumed.

The pixels' digests are those of the gate, which looks up a file by its name, size and time and
opens it only where one of them has changed. So a data set that was moved or copied is the same
one, and looking takes no longer than the gate does.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cvtrain.data.table import Table
from cvtrain.text import printable

if TYPE_CHECKING:
    from cvtrain.data.datamodule import DataModule

VERSION = 1
"""Of what the numbers are made from; those of another version are not compared."""

_OF_OUTLINES = ("semantic_segmentation", "instance_segmentation")
_OF_OBJECTS = ("localization", "detection", *_OF_OUTLINES)

_NAMED = 3
"""So many images of each kind of change are named."""


@dataclass(frozen=True)
class SplitPrint:
    """What identifies the N images of a split.

    Attributes:
        names: POSIX paths below the data set's root.
        pixels: uint64 ``(N,)`` of the upright pixels; 0 where scenes are drawn.
        annotations: uint64 ``(N,)`` of all that the task reads of an image: class, tags, boxes,
            outlines, mask.
    """

    names: tuple[str, ...]
    pixels: np.ndarray
    annotations: np.ndarray

    @classmethod
    def of(cls, table: Table, task: str) -> SplitPrint:
        """The fingerprint of a table that the gate let through, as far as ``task`` reads it."""
        count = len(table)
        names = tuple(table.files[i] for i in range(count))
        pixels = np.zeros(count, np.uint64)
        if table.digests is not None:
            pixels = np.ascontiguousarray(table.digests[:, 0], np.uint64)
        return cls(names, pixels, _annotations(table, task))

    def same(self, other: SplitPrint) -> bool:
        """Whether nothing has changed, not even the order."""
        return (
            self.names == other.names
            and np.array_equal(self.pixels, other.pixels)
            and np.array_equal(self.annotations, other.annotations)
        )


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the data of a run, by split."""

    splits: dict[str, SplitPrint]

    @classmethod
    def of(cls, data: DataModule) -> Fingerprint:
        """The fingerprint of all that a run trains on and validates with."""
        splits: dict[str, SplitPrint] = {
            name: SplitPrint.of(data.tables[name], data.task)
            for name in ("train", "val")
            if name in data.tables
        }
        for number, labeled in enumerate(data.labeled):
            part = SplitPrint.of(labeled.table, "classification")
            splits[f"classification_root {number}"] = part
        return cls(splits)

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: plain values and tensors."""
        splits = {}
        for name, split in self.splits.items():
            text = "\0".join(split.names).encode("utf-8", "surrogateescape")
            splits[name] = {
                "names": torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8),
                "pixels": torch.from_numpy(split.pixels.view(np.int64).copy()),
                "annotations": torch.from_numpy(split.annotations.view(np.int64).copy()),
            }
        return {"version": VERSION, "splits": splits}

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Fingerprint | None:
        """What ``to_state`` gave; None where there is none, or one of another version."""
        if not state or state.get("version") != VERSION:
            return None
        splits = {}
        for name, parts in state["splits"].items():
            packed = zlib.decompress(parts["names"].numpy().tobytes())
            names = packed.decode("utf-8", "surrogateescape").split("\0") if packed else []
            arrays = (parts[key].numpy().view(np.uint64) for key in ("pixels", "annotations"))
            splits[str(name)] = SplitPrint(tuple(names), *arrays)
        return cls(splits)

    def changes(self, now: Fingerprint) -> list[str]:
        """What is different ``now``, a kind of change an entry: ``1 image is gone (a.jpg)``."""
        names = {*self.splits, *now.splits}
        if all(
            name in self.splits and name in now.splits and self.splits[name].same(now.splits[name])
            for name in names
        ):
            return []
        old, new = self._by_name(), now._by_name()
        common = [name for name in old if name in new]
        moved = [n for n in common if old[n][0] != new[n][0]]
        found = (
            ("gone", [n for n in old if n not in new]),
            ("new", [n for n in new if n not in old]),
            ("changed in its pixels", [n for n in common if old[n][1] != new[n][1]]),
            ("annotated differently", [n for n in common if old[n][2] != new[n][2]]),
            ("in another split", moved),
        )
        return [_counted(names, how) for how, names in found if names]

    def _by_name(self) -> dict[str, tuple[str, int, int]]:
        """Image -> split, pixels, annotations."""
        return {
            name: (split, pixels, annotations)
            for split, part in self.splits.items()
            for name, pixels, annotations in zip(
                part.names, part.pixels.tolist(), part.annotations.tolist(), strict=True
            )
        }


def _counted(names: list[str], how: str) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMED])
    more = ", ..." if len(names) > _NAMED else ""
    one = len(names) == 1
    how = how if one else how.replace("its", "their")
    return f"{len(names):,} image{' is' if one else 's are'} {how} ({shown}{more})"


def _annotations(table: Table, task: str) -> np.ndarray:
    """uint64 ``(N,)``; the order of an image's annotations does not count."""
    images = np.zeros(len(table), np.uint64)
    if task in _OF_OBJECTS:
        rows = _objects(table, with_outlines=task in _OF_OUTLINES)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(rows, dtype=np.uint64)])
        images = sums[table.starts[1:]] - sums[table.starts[:-1]]  # modulo 2**64
        images = _mixed(images, np.diff(table.starts).astype(np.uint64))
    if task == "classification" and table.image_labels is not None:
        images = _mixed(images, table.image_labels.astype(np.int64).view(np.uint64))
    if table.tags is not None:
        tags = (_digest(table.tags_of(i).tobytes()) for i in range(len(images)))
        images = _mixed(images, np.fromiter(tags, np.uint64, len(images)))
    if task == "semantic_segmentation" and table.mask_digests is not None:
        images = _mixed(images, np.ascontiguousarray(table.mask_digests[:, 0], np.uint64))
    return images


def _objects(table: Table, with_outlines: bool) -> np.ndarray:
    """uint64 ``(M,)`` of each annotation."""
    rows = np.zeros(table.num_annotations, np.uint64)
    for k in range(4):
        rows = _mixed(rows, _bits(table.boxes[:, k]))
    rows = _mixed(rows, table.labels.astype(np.int64).view(np.uint64))
    rows = _mixed(rows, table.flags.astype(np.uint64))
    rows = _mixed(rows, _bits(table.areas))
    if with_outlines and table.segments is not None:
        outlines = (_digest(table.segments[i]) for i in range(len(rows)))
        rows = _mixed(rows, np.fromiter(outlines, np.uint64, len(rows)))
    return rows


def _bits(values: np.ndarray) -> np.ndarray:
    """float64 -> uint64; equal numbers, and all NaN, are equal."""
    values = np.where(np.isnan(values), np.nan, values.astype(np.float64) + 0.0)  # -0 -> 0
    return np.ascontiguousarray(values).view(np.uint64)


def _mixed(state: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint64 of two columns: the finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    mixed = (state ^ values) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
