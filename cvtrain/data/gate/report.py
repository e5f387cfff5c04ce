"""What the gate's checks share: the codes of what they find, and the verdict on one split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cvtrain.data.formats.base import CODES as READER_CODES
from cvtrain.data.formats.base import Code
from cvtrain.data.formats.base import problem as make_problem
from cvtrain.data.formats.files import MAX_PIXELS
from cvtrain.data.formats.unread import CONVERT
from cvtrain.data.gate.decode_check import Probes
from cvtrain.data.mask_file import VOID
from cvtrain.data.table import Problem, Table

_NUMBERED = {"txt": "line", "xml": "object"}
"""What ``Table.lines`` counts, by the annotation file's extension; otherwise COCO's ids."""

_OUT = "on_bad=fix|drop drops the image"
_BOX_OUT = "on_bad=fix|drop drops the object"
_BOX, _SEGMENT = ("box",), ("segment",)

PARTS: dict[str | None, frozenset[str]] = {
    None: frozenset({"box", "segment"}),
    "classification": frozenset(),
    "multilabel_classification": frozenset(),
    "localization": frozenset({"box"}),
    "detection": frozenset({"box"}),
    "semantic_segmentation": frozenset({"segment"}),
    "instance_segmentation": frozenset({"box", "segment"}),
}
"""Task -> what it reads of an annotation beside its class; what it doesn't read costs nothing."""

GATE_CODES: dict[str, Code] = {
    # Image files.
    "image-missing": Code("error", "image", f"restore the file; {_OUT}"),
    "image-empty": Code("error", "image", f"copy the file again; {_OUT}"),
    "image-unreadable": Code("error", "image", f"save it again as PNG or JPEG; {_OUT}"),
    "image-truncated": Code("error", "image", f"copy or download the file again; {_OUT}"),
    "image-bomb": Code(
        "error", "image", f"cut it into tiles of at most {MAX_PIXELS:,} pixels; {_OUT}"
    ),
    "image-channels": Code("error", "image", f"set data.channels to what the files hold; {_OUT}"),
    "image-not-finite": Code("error", "image", f"write finite numbers; {_OUT}"),
    "path-outside-root": Code(
        "error", "image", f"use paths below data.root; {_OUT}", hides="images"
    ),
    "duplicate-image-id": Code(
        "error", "image", f"renumber the images; {_OUT}, but the first", hides="labels"
    ),
    "duplicate-file": Code("error", "image", f"name each image once; {_OUT}, but the first"),
    "size-mismatch": Code(
        "error",
        "image",
        "correct size or image; on_bad=fix believes the file, but drops an image that was resized "
        "(boxes in which pixels?), on_bad=drop drops the image",
    ),
    "size-mismatch-exif": Code(
        "error",
        "image",
        "annotate the upright image; on_bad=fix turns the boxes as EXIF turns the image, "
        "on_bad=drop drops the image",
    ),
    "exif-rotation": Code("note", "nothing", "none needed: it is read upright, as viewers show it"),
    "color-mode": Code("note", "nothing", "none needed: it is converted when it is read"),
    "bit-depth": Code("note", "nothing", "none needed: the values keep their depth"),
    "value-range": Code(
        "note",
        "nothing",
        "none needed; 65535, or 1.0 of floats, is white: where the values end far below it, images "
        "are dark; multiply 12-bit values by 16",
    ),
    "float-range": Code("note", "nothing", "scale them to 0 to 1, or save them as 16-bit files"),
    "extension-lies": Code("note", "nothing", "none needed: the content decides; rename the file"),
    "image-frames": Code("note", "nothing", "none needed; save other frames as files of their own"),
    "duplicate-image": Code("note", "nothing", "delete one of them"),
    "leak": Code("note", "nothing", "keep it in one split: the score counts what was trained on"),
    "image-without-annotation": Code(
        "note", "nothing", "none needed: it is kept as background", rests_on="labels"
    ),
    "image-without-object": Code("error", "image", f"annotate it, or use task=detection; {_OUT}"),
    "image-several-objects": Code(
        "note", "image", "none needed: it is dropped, as asked; data.object=largest keeps it"
    ),
    # Boxes and classes.
    "box-nan": Code("error", "annotation", f"write numbers; {_BOX_OUT}", parts=_BOX),
    "box-inverted": Code(
        *("error", "annotation"),
        "write the smaller corner first; on_bad=fix swaps them, on_bad=drop drops the object",
        parts=_BOX,
    ),
    "box-zero-area": Code("error", "annotation", f"draw the box again; {_BOX_OUT}", parts=_BOX),
    "box-outside": Code(
        *("error", "annotation"),
        "draw the box again; on_bad=fix cuts it to the image (out, where nothing is left), "
        "on_bad=drop drops the object",
        parts=_BOX,
    ),
    "box-rounding": Code("note", "nothing", "none needed: it is cut to the image"),
    "box-outline": Code(
        *("error", "annotation"),
        f"correct the box or the outline; {_BOX_OUT}",
        parts=("box", "segment"),
    ),
    "box-units": Code(
        *("error", "nothing"),
        "write the boxes in the format's own way; data.check_boxes=false takes them as they stand",
        False,
        parts=_BOX,
    ),
    "duplicate-object": Code(
        *("error", "annotation"),
        "delete the copy; on_bad=fix|drop drops it, the first one stays",
        parts=_BOX,
    ),
    "box-of-two-classes": Code(
        "note", "nothing", "none needed, if it is both; else delete the wrong one"
    ),
    "area-invalid": READER_CODES["area-invalid"],
    "classes-alike": Code("note", "nothing", "none needed, if they are two; else give one name"),
    "class-unknown": Code("error", "annotation", f"add the class to the table; {_BOX_OUT}"),
    "label-missing": Code("error", "image", f"name its class; {_OUT}"),
    "labels-several": Code(
        "error", "image", f"name one class, or use task=multilabel_classification; {_OUT}"
    ),
    "image-class-unknown": Code("error", "image", f"add the class to the table; {_OUT}"),
    "class-unused": Code(
        "note", "nothing", "none needed; it cannot be learned or scored", rests_on="classes"
    ),
    "classes-absent": Code(
        *("note", "nothing"),
        "none needed; metrics per class have no number for these there",
        rests_on="classes",
    ),
    "class-dropped": Code(
        "note", "nothing", "none needed, if that is meant; else correct what is wrong with it"
    ),
    "class-imbalance": Code(
        *("note", "nothing"),
        "none needed; data.sampler=balanced or loss.class_weights=auto help",
        rests_on="classes",
    ),
    # Segments.
    "segment-malformed": Code(
        "error", "annotation", f"write the segment again; {_BOX_OUT}", parts=_SEGMENT
    ),
    "segment-short": Code(
        *("error", "annotation"),
        "give 3 points or more; on_bad=fix drops the ring (the object, if it is its last), "
        "on_bad=drop the object",
        parts=_SEGMENT,
    ),
    "segment-size": Code(
        "error", "annotation", f"draw the mask at its image's size; {_BOX_OUT}", parts=_SEGMENT
    ),
    "segment-empty": Code("error", "annotation", f"draw the object again; {_BOX_OUT}"),
    "segment-missing": Code("error", "annotation", f"draw the object's outline; {_BOX_OUT}"),
    "segments-partial": Code(
        *("note", "nothing"),
        "draw the outlines: task=instance_segmentation needs them, "
        "task=semantic_segmentation takes these objects for background",
    ),
    "segment-outside": Code("note", "nothing", "none needed: it is cut to the image"),
    # Masks.
    "mask-missing": Code("error", "image", f"add the mask; {_OUT}", hides="labels"),
    "mask-empty": Code("error", "image", f"copy the mask again; {_OUT}", hides="labels"),
    "mask-unreadable": Code(
        "error", "image", f"save the mask again as PNG; {_OUT}", hides="labels"
    ),
    "mask-truncated": Code("error", "image", f"copy the mask again; {_OUT}", hides="labels"),
    "mask-bomb": Code("error", "image", f"cut image and mask into tiles; {_OUT}", hides="labels"),
    "mask-mode": Code(
        "error",
        "image",
        f"set data.palette=FILE (NAME R G B per line), or save class indices as PNG; {_OUT}",
        hides="labels",
    ),
    "mask-size": Code("error", "image", f"save the mask at the image's size; {_OUT}"),
    "mask-value": Code(
        "error",
        "image",
        f"use class indices and {VOID} for void; on_bad=fix takes these pixels for void, "
        "on_bad=drop drops the image",
    ),
    "mask-color": Code(
        "error",
        "image",
        "add it to the palette (as `void R G B`, if it is no class); on_bad=fix takes these "
        "pixels for void, on_bad=drop drops the image",
    ),
    "mask-lossy": Code("note", "nothing", "save masks as PNG: JPEG changes values near outlines"),
    "mask-jpeg": Code(
        "error", "image", f"save masks as PNG: JPEG changes values; {_OUT}", hides="labels"
    ),
    "mask-palette": Code(
        "error",
        "image",
        "set data.palette=FILE (NAME R G B per line) to go by colors, or "
        f"data.reader.mask_values=[0, 1, ...] to go by indices; {_OUT}",
        hides="labels",
    ),
    "palette-order": Code(
        "note",
        "nothing",
        "none needed if indices are classes; if colors: data.palette=FILE (NAME R G B per line)",
    ),
    "mask-void-only": Code(
        "note",
        "nothing",
        f"none needed if {VOID} is void there; if it is the object: save it as 1 in all masks",
    ),
    "mask-void": Code("note", "nothing", "none needed: no pixel of it is learned or scored"),
    # The data set.
    "labels-none": Code(
        "error", "nothing", "label its images; data.allow_empty=true continues without", False
    ),
    "labels-lost": Code(
        *("error", "nothing"),
        "correct them in the data; data.allow_empty=true continues with what is left",
        False,
    ),
    "split-void": Code(
        "error", "nothing", f"label pixels with their classes; {VOID} means none of them", False
    ),
    "classes-differ": READER_CODES["classes-differ"],
    "empty-split": Code(
        "error", "nothing", "add images, or remove the split", False, hides="labels"
    ),
    "no-train-split": Code("error", "nothing", "add images to train on", False),
    "val-not-drawn": Code("error", "nothing", "correct what is wrong, or add images", False),
    "no-val-split": Code("note", "nothing", "none needed; a val split of your own is never mixed"),
    "file-not-read": Code("note", "nothing", CONVERT),
    "file-unlisted": Code(
        "note", "nothing", "none needed; add it to a split to use it", rests_on="images"
    ),
}
"""What the gate itself finds; the readers' codes are in ``cvtrain.data.formats.base``."""


def stops(problem: Problem, on_bad: str) -> bool:
    """Whether train and eval stop for it."""
    if problem.severity != "error":
        return False
    if on_bad == "error":
        return True
    return not problem.action and not is_curable(problem)


def is_curable(problem: Problem) -> bool:
    """Whether ``on_bad=fix`` and ``on_bad=drop`` go on without what is wrong."""
    code = READER_CODES.get(problem.code) or GATE_CODES.get(problem.code)
    return code is not None and code.curable  # None: a code of a user's own reader


def hides_classes(state: SplitState) -> bool:
    """Whether an error keeps labels of unknown classes from being read."""
    return bool((state.lost < 0).any()) or any(
        _kind(p).hides in ("labels", "images") for p in state.problems if p.severity == "error"
    )


def drop_doubtful_notes(states: Sequence[SplitState]) -> None:
    """Takes back notes that are true only of what errors left (``Code.rests_on``, ``hides``)."""
    classes = any(hides_classes(state) for state in states)
    images, missing = False, set()
    for state in states:
        for p in state.problems:
            images |= p.severity == "error" and _kind(p).hides == "images"
            if p.code == "image-missing" and p.image >= 0:
                missing.add(_last_part(state.table.files[p.image]))
    for state in states:
        hiding = [p for p in state.problems if p.severity == "error" and _kind(p).hides]
        every = any(p.image < 0 for p in hiding)
        rows = {p.image for p in hiding}

        def holds(p: Problem, every: bool = every, rows: set[int] = rows) -> bool:
            rests_on = _kind(p).rests_on
            if rests_on == "classes":
                return not classes
            if rests_on == "images":
                return not images and _last_part(p.file) not in missing
            return rests_on != "labels" or not (every or p.image in rows)

        state.problems = [p for p in state.problems if holds(p)]


def _kind(problem: Problem) -> Code:
    """What its code says; nothing for a code of a user's own reader."""
    none = Code(problem.severity, problem.rejects, problem.fix)
    return GATE_CODES.get(problem.code) or READER_CODES.get(problem.code) or none


def _last_part(path: str) -> str:
    """The file's own name, whichever system's separators the path has."""
    return path.replace("\\", "/").rpartition("/")[2]


def cure(stopping: Sequence[Problem], on_bad: str, said: str) -> str:
    """What ``on_bad`` can do about errors that stop: ``said``, but for those it cannot fix."""
    if on_bad != "error":
        return f"data.on_bad={on_bad} cannot fix that"
    incurable = [p for p in stopping if not is_curable(p)]
    if not incurable:
        return said
    codes = ", ".join(sorted({p.code for p in incurable}))
    if len(incurable) == len(stopping):
        return f"data.on_bad=fix|drop cannot fix that ({codes}): correct the data"
    return f"{said}, except for {codes}, which only you can fix"


@dataclass
class SplitState:
    """One split on its way through the gate.

    Attributes:
        name: train, val or test.
        table: as read; the checks put repaired arrays in.
        on_bad: error, fix or drop.
        task: what the data set is for; None: all that it can be for.
        lost: int64 ``(L,)`` class of each object that could not become a row, -1 not known.
        problems: found so far, the reader's first.
        images: bool ``(N,)``, False: left out.
        annotations: bool ``(M,)``, False: left out.
        annotation_file: where one file holds all annotations of the split, its name; or "".
        files, masks: what opening the files gave; None for generated data, or data without masks.
        known: class names that train has without a label of its too; None: all of the table.
        outlines: float64 ``(M, 4)`` xyxy pixels around the segments that were checked, NaN for
            others; None where none were.
    """

    name: str
    table: Table
    on_bad: str
    task: str | None = None
    lost: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    annotation_file: str = ""
    problems: list[Problem] = field(default_factory=list)
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    annotations: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    files: Probes | None = None
    masks: Probes | None = None
    outlines: np.ndarray | None = None
    known: frozenset[str] | None = None
    _reported: set[tuple[str, int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.images = np.ones(len(self.table), bool)
        self.annotations = np.ones(self.table.num_annotations, bool)
        given, self.problems = self.problems, []
        for problem in given:
            kind = READER_CODES.get(problem.code)
            repaired = self.fixing and kind is not None and kind.read_fixed
            if self.fixing and problem.code == "box-malformed":
                repaired = self._has_segment(problem.annotation)
            self._take(replace(problem, split=self.name), repaired=repaired)

    @property
    def fixing(self) -> bool:
        return self.on_bad == "fix"

    def _has_segment(self, row: int) -> bool:
        """Whether an annotation has a segment, whose box can be taken."""
        segments = self.table.segments
        return segments is not None and row >= 0 and bool(segments[row])

    def reads(self, *parts: str) -> bool:
        """Whether the task reads all these parts of an annotation."""
        return PARTS[self.task].issuperset(parts)

    @property
    def image_of(self) -> np.ndarray:
        """int64 ``(M,)`` image of each annotation."""
        return np.repeat(np.arange(len(self.table)), np.diff(self.table.starts))

    def set_table(self, **columns: Any) -> None:
        """Puts repaired columns in the table."""
        self.table = replace(self.table, **columns)

    def reported(self, code: str, image: int, annotation: int = -1) -> bool:
        """Whether that has been said already, by the reader or here."""
        return (code, image, annotation) in self._reported

    def image_problem(
        self,
        i: int,
        code: str,
        message: str,
        *,
        file: str = "",
        where: str = "",
        repaired: bool = False,
    ) -> None:
        """Something about image i; an error that is not repaired drops the image."""
        if not self.reported(code, i):
            name = file or self.table.files[i]
            self._take(self._problem(code, name, where, message, image=i), repaired)

    def annotation_problem(
        self, row: int, image: int, code: str, message: str, *, repaired: bool = False
    ) -> None:
        """Something about annotation ``row``; an error that is not repaired drops it."""
        if not self.reported(code, image, row):
            file, where = self.place(row, image)
            self._take(self._problem(code, file, where, message, image, row), repaired)

    def split_problem(
        self,
        code: str,
        message: str,
        *,
        file: str = ".",
        where: str = "",
        repaired: bool = False,
    ) -> None:
        """Something about the split or the data set."""
        self._take(self._problem(code, file, where, message), repaired)

    def each_image(
        self, rows: np.ndarray, code: str, message: Callable[[int], str], repaired: bool = False
    ) -> None:
        """``image_problem`` for rows given as indices or as a bool mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        for i in rows:
            self.image_problem(int(i), code, message(int(i)), repaired=repaired)

    def place(self, row: int, image: int) -> tuple[str, str]:
        """The file that holds an annotation, and the place in it."""
        table, number = self.table, int(self.table.lines[row])
        if table.object_files is not None:
            return table.object_files[row], f"object {number}"
        if table.annotation_files is not None:
            file = table.annotation_files[image]
        else:
            file = self.annotation_file or table.files[image]
        if number <= 0:
            return file, f"object {row - int(table.starts[image]) + 1}"
        ending = file.rpartition(".")[2].lower()
        return file, f"{_NUMBERED.get(ending, 'annotation id')} {number}"

    def _problem(
        self, code: str, file: str, where: str, message: str, image: int = -1, annotation: int = -1
    ) -> Problem:
        return make_problem(
            code,
            file,
            message,
            where=where,
            split=self.name,
            image=image,
            annotation=annotation,
            codes=GATE_CODES,
        )

    def _take(self, problem: Problem, repaired: bool) -> None:
        kind = READER_CODES.get(problem.code) or GATE_CODES.get(problem.code)
        if kind is not None and problem.severity == "error" and not self.reads(*kind.parts):
            parts = " and ".join(kind.parts)
            unread = f"none needed: task={self.task} does not read its {parts}"
            problem = replace(problem, severity="note", rejects="nothing", fix=unread)
        if problem.severity == "error":
            if not repaired and problem.rejects == "image" and problem.image >= 0:
                self.images[problem.image] = False
            if not repaired and problem.rejects == "annotation" and problem.annotation >= 0:
                self.annotations[problem.annotation] = False
            if self.on_bad != "error":
                problem = replace(problem, action=_action(problem, repaired))
        elif problem.rejects == "image" and problem.image >= 0:  # a note: the user asked for it
            self.images[problem.image] = False
            problem = replace(problem, action="image dropped")
        self._reported.add((problem.code, problem.image, problem.annotation))
        self.problems.append(problem)


def _action(problem: Problem, repaired: bool) -> str:
    if repaired:
        return "fixed"
    if problem.rejects == "nothing":
        code = READER_CODES.get(problem.code) or GATE_CODES.get(problem.code)
        return "taken as written" if code is not None and code.curable else ""
    return {"image": "image dropped", "annotation": "annotation dropped"}.get(problem.rejects, "")
