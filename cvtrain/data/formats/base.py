"""What every reader of an on-disk format is, and the problems readers report.

A reader judges annotation *text*: is it well-formed, does it name classes and images that exist.
What needs an image opened or a box measured is the gate's (``cvtrain/data/gate/run.py``): boxes
leave a reader exactly as written.

``CODES`` says of each code: its severity, what dropping it removes, and what to do. With
``on_bad=fix`` and ``on_bad=drop`` alike, what ``rejects`` names is removed, and a problem that
rejects nothing is taken as its ``fix`` says; a problem whose code is not ``curable`` stops the run
whatever ``on_bad`` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cvtrain.data.formats.files import data_root, shorten, walk
from cvtrain.data.formats.unread import said_of_unread
from cvtrain.data.table import Problem, Split
from cvtrain.errors import DataError

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split -> the folder and file names it goes by; the first that is there is read."""


@dataclass(frozen=True)
class Code:
    """The kind of a problem.

    Attributes:
        severity: ``error`` or ``note``.
        rejects: what dropping removes: ``image``, ``annotation`` or ``nothing``.
        fix: one line: what the user does, and what ``on_bad=fix`` does.
        curable: False: no ``on_bad`` helps, there is nothing to go on with.
        parts: what of an annotation it is about, of ``box`` and ``segment``; a task that does not
            read all of these loses nothing by it. Empty: the annotation as a whole.
        read_fixed: the reader's table holds the one meaning it can have: ``on_bad=fix`` keeps it.
        hides: what an error keeps from being read: ``rows`` (some annotations of its image, of
            known classes or counted in ``Split.lost``), ``labels`` (of its image, of any classes)
            or ``images`` (which there are, and their labels). Without an image: of the split.
        rests_on: what a note is untrue without: ``images``, ``labels`` of its image, or
            ``classes`` (the labels of all splits). It is not given where an error hides that.
    """

    severity: str
    rejects: str
    fix: str
    curable: bool = True
    parts: tuple[str, ...] = ()
    read_fixed: bool = False
    hides: str = ""
    rests_on: str = ""


CODES: dict[str, Code] = {
    # Files that cannot be read as what they are.
    "json-malformed": Code(
        "error", "nothing", "write the file again as COCO JSON", False, hides="images"
    ),
    "yaml-malformed": Code("error", "nothing", "correct the YAML file", False, hides="images"),
    "list-malformed": Code(
        "error", "nothing", "write the file again as UTF-8 text", False, hides="images"
    ),
    "xml-malformed": Code(
        "error", "image", "correct the XML; on_bad=fix|drop drops the image", hides="labels"
    ),
    "xml-entities": Code(
        "error", "image", "remove DTD and entities; on_bad=fix|drop drops the image", hides="labels"
    ),
    "label-malformed": Code(
        "error",
        "image",
        "write the label file again; on_bad=fix|drop drops the image",
        hides="labels",
    ),
    # Records inside them.
    "line-malformed": Code(
        "error", "annotation", "correct the line; on_bad=fix|drop drops it", hides="rows"
    ),
    "record-malformed": Code(
        "error",
        "image",
        "correct the image's record; on_bad=fix|drop drops the image",
        hides="images",
    ),
    "annotation-malformed": Code(
        "error", "annotation", "correct the annotation; on_bad=fix|drop drops it", hides="rows"
    ),
    "box-malformed": Code(
        *("error", "annotation"),
        "correct the box; on_bad=fix takes the outline's, where there is one; else, as with "
        "on_bad=drop, the object is dropped",
        parts=("box",),
    ),
    "area-invalid": Code("note", "nothing", "none needed: the box's area is used"),
    "box-as-text": Code(
        *("error", "annotation"),
        "write numbers without quotes; on_bad=fix reads them as numbers, on_bad=drop leaves the "
        "object out",
        parts=("box",),
        read_fixed=True,
    ),
    "number-as-text": Code(
        "error", "nothing", "write numbers without quotes; on_bad=fix|drop reads them as numbers"
    ),
    "segment-malformed": Code(
        *("error", "annotation"),
        "correct the segmentation; on_bad=fix|drop drops the annotation",
        parts=("segment",),
    ),
    "segment-form": Code(
        *("error", "annotation"),
        "write [[x, y, ...]] of numbers; on_bad=fix reads it so, on_bad=drop drops the object",
        parts=("segment",),
        read_fixed=True,
    ),
    "segment-degenerate": Code(
        "note", "nothing", "a ring of fewer than 3 points covers no pixel and is dropped"
    ),
    "size-missing": Code("note", "nothing", "none needed: the file's own size is used"),
    "masks-of-one-value": Code("note", "nothing", "none needed, if each image has one object"),
    "background-numbered": Code("note", "nothing", "none needed, if it is an object"),
    "void-numbered": Code("note", "nothing", "none needed, if it is an object"),
    "keypoints-ignored": Code("note", "nothing", "none needed: the boxes are read"),
    "keypoints-unsaid": Code(
        *("error", "nothing"),
        "add that `kpt_shape` to data.yaml, and the boxes are read; if they are polygons: "
        "data.check_boxes=false",
        False,
    ),
    "boxes-oriented": Code(
        "note", "nothing", "none needed: the upright box around the corners is read, without angle"
    ),
    # Classes.
    "class-unknown": Code(
        "error", "annotation", "add the class to the table; on_bad=fix|drop drops these"
    ),
    "class-duplicate": Code(
        "error", "nothing", "name each class once; on_bad=fix|drop takes them as one class"
    ),
    "classes-missing": Code(
        "error", "nothing", "name them, or say data.reader.names=[...]", False, hides="labels"
    ),
    "folders-nested": Code(
        *("error", "nothing"),
        "name the folder above the classes, data.root=FOLDER, or move the class folders up; "
        "if the folders are classes as they stand: data.reader.names=[...]",
        False,
    ),
    "folders-inside": Code(
        "note", "nothing", "none needed, if an image's class is the first folder it lies in"
    ),
    "classes-differ": Code(
        *("error", "nothing"),
        "give train images of it, or correct its name or id; on_bad=fix|drop takes the classes of "
        "all splits together",
    ),
    # Labels of whole images.
    "label-repeated": Code("note", "nothing", "none needed: it counts once"),
    "separator-doubtful": Code("note", "nothing", "none needed, if every cell is one label"),
    "labels-joined": Code(
        *("error", "nothing"),
        "say which it is: data.reader.label_separator='CHARACTER', or null for one label a cell",
        False,
    ),
    # Things given twice.
    "duplicate-image-id": Code(
        "error",
        "image",
        "renumber the images; on_bad=fix|drop drops all that share the id",
        hides="labels",
    ),
    "duplicate-annotation-id": Code(
        "error", "nothing", "renumber the annotations; on_bad=fix|drop keeps them all"
    ),
    "duplicate-annotation": Code(
        "error", "annotation", "delete the copy; on_bad=fix|drop drops it"
    ),
    "duplicate-file": Code(
        "error",
        "nothing",
        "name each image once; on_bad=fix|drop reads it once, with all that is said",
    ),
    # Halves of pairs.
    "image-missing": Code(
        "error", "image", "restore the image; on_bad=fix|drop drops it with its annotations"
    ),
    "image-ambiguous": Code(
        "error", "image", "keep one image of that name; on_bad=fix|drop leaves this one out"
    ),
    "image-unknown": Code(
        "error",
        "annotation",
        "add the image to the JSON; on_bad=fix|drop drops this",
        hides="labels",
    ),
    "annotation-missing": Code(
        "error",
        "image",
        "add the file or unlist the image; on_bad=fix|drop drops it",
        hides="labels",
    ),
    "label-without-image": Code(
        "error",
        "annotation",
        "restore the image or delete the file; on_bad=fix|drop ignores it",
        hides="labels",
    ),
    "mask-missing": Code(
        "error",
        "image",
        "add the mask or delete the image; on_bad=fix|drop drops the image",
        hides="labels",
    ),
    "mask-unreadable": Code(
        "error",
        "image",
        "save the mask again as PNG; on_bad=fix|drop drops the image",
        hides="labels",
    ),
    "mask-levels": Code(
        "error", "nothing", "save masks as PNG: JPEG changes values", False, hides="labels"
    ),
    "object-unreadable": Code(
        "error",
        "annotation",
        "save the mask again as PNG; on_bad=fix|drop drops the object",
        hides="labels",
    ),
    "mask-without-image": Code(
        "error",
        "annotation",
        "restore the image or delete the mask; on_bad=fix|drop ignores it",
        hides="labels",
    ),
    "image-without-label": Code("note", "nothing", "read as images without objects"),
    "labels-missing": Code(
        "error",
        "nothing",
        "put the label files there; on_bad=fix|drop: images without objects",
        hides="labels",
    ),
    "filename-differs": Code("note", "nothing", "the image of the XML file's own name is read"),
    # Paths and splits.
    "path-outside-root": Code(
        "error",
        "image",
        "use paths below data.root (links are followed); on_bad=fix|drop skips it",
        hides="images",
    ),
    "place-missing": Code(
        "error", "nothing", "correct the path or remove the entry", False, hides="images"
    ),
    "test-missing": Code("note", "nothing", "there is no test split"),
    "path-fixed": Code("note", "nothing", "write the path relative to the data set's folder"),
    "path-separator": Code("note", "nothing", "none needed; `/` is read on every system"),
    "empty-split": Code(
        "error", "nothing", "add images, or remove the split", False, hides="labels"
    ),
}
"""Every code a reader reports; the gate has its own beside them."""


def problem(
    code: str,
    file: str,
    message: str,
    *,
    where: str = "",
    split: str = "",
    image: int = -1,
    annotation: int = -1,
    rejects: str | None = None,
    codes: Mapping[str, Code] = CODES,
) -> Problem:
    """A ``Problem`` with severity, rejection and fix from ``codes``."""
    kind = codes[code]
    return Problem(
        file=file,
        where=where,
        code=code,
        severity=kind.severity,
        message=shorten(message, 300),
        fix=kind.fix,
        split=split,
        image=image,
        annotation=annotation,
        rejects=kind.rejects if rejects is None else rejects,
    )


class Reader(ABC):
    """Reads one on-disk format into packed tables; never writes to the data set.

    The constructor looks at the folder's layout only and raises ``DataError`` where it is missing
    or not of this format. ``read`` never raises for bad content: that becomes a ``Problem``.

    Attributes:
        root: absolute path of the data set, links in it unresolved.
    """

    layout: str = ""
    """What the format looks like on disk, one line, for messages."""

    box_layout: str = ""
    """How the format writes boxes: ``xywh``, ``xyxy``, ``cxcywh``; "": they follow from masks."""

    def __init__(self, root: str | Path) -> None:
        self.root = data_root(root)
        self._done: dict[str, Split] = {}

    @property
    @abstractmethod
    def kinds(self) -> frozenset[str]:
        """What it annotates: of ``label``, ``tags``, ``boxes``, ``segments``, ``mask``."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The splits there are, of train, val, test, in this order."""

    def read(self, split: str) -> Split:
        """The packed table of a split and what could not be read; kept, so a second call is free.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.splits():
            raise DataError(
                f"no split {split!r} in {self.root}; there are: {', '.join(self.splits())}"
            )
        if split not in self._done:
            self._done[split] = self._read(split)
            if split == self.splits()[0]:
                tables = [self.read(name).table for name in self.splits()]
                used = {table.files[i] for table in tables for i in range(len(table))}
                unlisted = self._unlisted(used)
                self._done[split] = replace(self._done[split], unlisted=unlisted)
        return self._done[split]

    @abstractmethod
    def _read(self, split: str) -> Split:
        """Reads a split that ``splits`` lists."""

    def _unlisted(self, used: set[str]) -> list[str]:
        """Image files of the layout's folders that are not among those the splits use."""
        return []

    @classmethod
    def detect(cls, root: Path) -> str | None:
        """One line on what of this format lies in ``root``, or None where it is something else."""
        raise DataError(f"{cls.__name__} cannot recognize a folder; name the format instead")

    def _not_this(self, why: str) -> DataError:
        unread = said_of_unread(self.root, walk(self.root))
        return DataError(f"{self.root}: {why}; expected {self.layout}{unread}")
