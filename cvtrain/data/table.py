"""One packed table per split: what every reader fills, the gate checks and the loader reads.

Nothing in it is a Python object per image or per box: names are one byte buffer with offsets, boxes
one array, segments one byte buffer. A million annotations are shared by forked workers as they are.
numpy alone; no torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cvtrain.data.mask_file import VOID

CROWD = 1
"""Bit of ``Table.flags``: a COCO crowd region."""
DIFFICULT = 2
"""Bit of ``Table.flags``: a VOC object marked difficult."""


@dataclass(frozen=True)
class Classes:
    """Class names with the data set's own category ids (the class index where it has none)."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Classes:
        names = tuple(names)
        return cls(names, tuple(range(len(names))))

    def __len__(self) -> int:
        return len(self.names)


class Strings:
    """A read-only list of strings in two arrays."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        encoded = [v.encode("utf-8", "surrogateescape") for v in values]
        self.offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=self.offsets[1:])
        self.buffer = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        raw = self.buffer[self.offsets[i] : self.offsets[i + 1]].tobytes()
        return raw.decode("utf-8", "surrogateescape")

    def take(self, rows: Sequence[int] | np.ndarray) -> Strings:
        return Strings(self[int(i)] for i in rows)


class Blobs:
    """A read-only list of byte strings in two arrays (segments; ``b""`` where there is none)."""

    def __init__(self, values: Iterable[bytes] = ()) -> None:
        values = list(values)
        self.offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum([len(v) for v in values], out=self.offsets[1:])
        self.buffer = np.frombuffer(b"".join(values), np.uint8)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> bytes:
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def take(self, rows: Sequence[int] | np.ndarray) -> Blobs:
        return Blobs(self[int(i)] for i in rows)


@dataclass(frozen=True)
class Table:
    """The images of one split and what is annotated on them.

    With N images and M annotations:

    Attributes:
        root: absolute path of the data set; every name is a POSIX path below it.
        classes: names and ids, the same in every split of a data set.
        files: N image files.
        ids: int64 ``(N,)`` image ids of the data set's own (COCO), or None: the file name serves.
        sizes: int32 ``(N, 2)`` height, width as annotated; -1 where the annotation does not say.
            After the gate: those of the upright file.
        starts: int64 ``(N + 1,)``; annotations of image i are rows ``starts[i]:starts[i + 1]``.
        boxes: float64 ``(M, 4)`` xyxy pixels of the upright image, as written (NaN and all, until
            the gate). Formats with relative coordinates (YOLO) fill ``relative`` and boxes in 0..1.
        labels: int64 ``(M,)`` class index; -1 an unknown class (until the gate).
        flags: uint8 ``(M,)`` bits CROWD, DIFFICULT.
        areas: float64 ``(M,)`` square pixels; NaN: that of the box.
        segments: M blobs, JSON: ``[[x, y, ...], ...]`` polygons in pixels (0..1 where
            ``relative``), or ``{"size": [h, w], "counts": "..."}`` compressed COCO RLE;
            None where the split has no segments at all.
        lines: int64 ``(M,)`` line (or record number) in the annotation file, 0 unknown.
        image_labels: int64 ``(N,)`` class of the image (folder), or None.
        tags: int64 ``(T,)`` classes of images that may have any number of them, or None; those of
            image i are ``tags[tag_starts[i]:tag_starts[i + 1]]``, each once, rising.
        tag_starts: int64 ``(N + 1,)``, there where ``tags`` is.
        image_lines: int64 ``(N,)`` line of the annotation file that names the image, or None.
        masks: N mask files (semantic), "" where missing; or None.
        annotation_files: N files that hold the image's annotations (XML, txt), or None where one
            file holds all.
        object_files: M files that hold one object each, or the objects of their image, or None.
        relative: boxes and segments are fractions of the image size; the gate makes them pixels.
        mask_values: int64 ``(K,)`` pixel value of each class in the masks, or None: value = class.
            (Binary masks of {0, 255}: ``[0, 255]``.)
        mask_void: int64 ``(V,)`` pixel values that are void beside 255, or None: none.
        mask_colors: the values of masks are their colors, ``R << 16 | G << 8 | B``; then 255 is
            a color like others.
        digests: uint64 ``(N, 2)`` of the upright pixels, of files that the gate opened; or None.
        mask_digests: the same of the mask files.
        generator: for data made on the fly (``shapes``): draws image i; None where files are read.
    """

    root: str
    classes: Classes
    files: Strings
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    flags: np.ndarray
    areas: np.ndarray
    lines: np.ndarray
    ids: np.ndarray | None = None
    segments: Blobs | None = None
    image_labels: np.ndarray | None = None
    tags: np.ndarray | None = None
    tag_starts: np.ndarray | None = None
    image_lines: np.ndarray | None = None
    masks: Strings | None = None
    annotation_files: Strings | None = None
    object_files: Strings | None = None
    relative: bool = False
    mask_values: np.ndarray | None = None
    mask_void: np.ndarray | None = None
    mask_colors: bool = False
    digests: np.ndarray | None = None
    mask_digests: np.ndarray | None = None
    generator: object | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_annotations(self) -> int:
        return len(self.boxes)

    @property
    def class_values(self) -> np.ndarray:
        """int64 ``(K,)``: the pixel value of each class in the masks."""
        given = self.mask_values
        return np.arange(len(self.classes)) if given is None else np.asarray(given, np.int64)

    @property
    def void_values(self) -> np.ndarray:
        """int64 ``(V,)``: the pixel values that are void, 255 too where they are no colors."""
        given = self.mask_void
        more = np.zeros(0, np.int64) if given is None else np.asarray(given, np.int64)
        return more if self.mask_colors else np.union1d([VOID], more)

    def image_id(self, i: int) -> int | str:
        """The data set's own id of image i, or its file name."""
        return int(self.ids[i]) if self.ids is not None else self.files[i]

    def rows(self, i: int) -> slice:
        """The annotation rows of image i."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def tags_of(self, i: int) -> np.ndarray:
        """The classes of image i, of a table with ``tags``."""
        assert self.tags is not None
        assert self.tag_starts is not None
        return self.tags[int(self.tag_starts[i]) : int(self.tag_starts[i + 1])]

    def take(self, images: Sequence[int] | np.ndarray, keep: np.ndarray | None = None) -> Table:
        """The table of these images, in this order, with the annotations that ``keep`` allows."""
        images = np.asarray(images, np.int64)
        tags = [] if self.tags is None else [self.tags_of(int(i)) for i in images]
        keep = np.ones(self.num_annotations, bool) if keep is None else keep
        kept = [np.flatnonzero(keep[self.rows(int(i))]) + self.starts[i] for i in images]
        rows = np.concatenate(kept) if kept else np.zeros(0, np.int64)
        starts = np.zeros(len(images) + 1, np.int64)
        np.cumsum([len(k) for k in kept], out=starts[1:])
        return replace(
            self,
            files=self.files.take(images),
            sizes=self.sizes[images],
            starts=starts,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            flags=self.flags[rows],
            areas=self.areas[rows],
            lines=self.lines[rows],
            ids=None if self.ids is None else self.ids[images],
            segments=None if self.segments is None else self.segments.take(rows),
            image_labels=None if self.image_labels is None else self.image_labels[images],
            tags=None if self.tags is None else np.concatenate([self.tags[:0], *tags]),
            tag_starts=None
            if self.tags is None
            else np.cumsum([0, *(len(t) for t in tags)], dtype=np.int64),
            image_lines=None if self.image_lines is None else self.image_lines[images],
            masks=None if self.masks is None else self.masks.take(images),
            digests=None if self.digests is None else self.digests[images],
            mask_digests=None if self.mask_digests is None else self.mask_digests[images],
            annotation_files=None
            if self.annotation_files is None
            else self.annotation_files.take(images),
            object_files=None if self.object_files is None else self.object_files.take(rows),
        )


@dataclass(frozen=True)
class Problem:
    """One finding about a data set.

    Attributes:
        file: POSIX path below the root (the annotation file where that is at fault).
        where: place inside the file: ``line 12``, ``object 3``, ``annotation id 77``, or "".
        code: kebab-case name of the kind, e.g. ``box-outside``, ``image-truncated``.
        severity: ``error`` or ``note``.
        message: one line, with the bad value.
        fix: one line: what to do, and what ``on_bad=fix`` would do.
        split: the split it was found in.
        image: row of the image in the split's table, -1: none.
        annotation: row of the annotation in the split's table, -1: none (a line that could not
            become a row belongs to no table).
        rejects: what dropping removes: ``image``, ``annotation`` or ``nothing``.
        action: what ``on_bad=fix|drop`` did about an error: ``fixed``, ``image dropped``,
            ``annotation dropped``; "" where nothing was done.
    """

    file: str
    where: str
    code: str
    severity: str
    message: str
    fix: str
    split: str = ""
    image: int = -1
    annotation: int = -1
    rejects: str = "nothing"
    action: str = ""


@dataclass(frozen=True)
class Split:
    """What a reader made of one split: the table as written, and what it could not read.

    ``unlisted``: image files below the root (POSIX paths) that this reader's layout covers but no
    split names; the reader reports them once, with the first split. ``lost``: int64 ``(L,)`` class
    index of each object that could not become a row of the table, -1 where it is not known.
    ``known``: class names that train has whether or not a label of its names them (its folders, its
    categories); None: all of the table, which somebody wrote down for all splits.
    """

    name: str
    table: Table
    problems: list[Problem] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    lost: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    known: frozenset[str] | None = None
