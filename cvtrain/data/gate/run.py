"""The check that every data set passes, by ``cvtrain check`` and before each train and eval.

Reader -> tables as written -> this -> tables that hold: boxes in pixels of the upright image,
finite, inside it; sizes of the files; labels of the class table; every file opened and decoded
once. Each finding is an error (stops, unless ``data.on_bad`` says fix or drop) or a note (loses
nothing). No image is lost without being counted: images = used + rejected. Nothing is written to
the data set.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.files import walk
from cvtrain.data.formats.unread import unread_images
from cvtrain.data.gate import boxes as objects
from cvtrain.data.gate import images as images
from cvtrain.data.gate.cache import cached_probe
from cvtrain.data.gate.classes import check_classes, unite_classes
from cvtrain.data.gate.copies import check_copies_of_objects
from cvtrain.data.gate.decode_check import Probes
from cvtrain.data.gate.losses import check_losses, without_objects
from cvtrain.data.gate.report import SplitState, cure, drop_doubtful_notes, stops
from cvtrain.data.gate.segments import check_segments
from cvtrain.data.gate.splits import draw_val
from cvtrain.data.gate.units import check_units
from cvtrain.data.image_labels import for_task
from cvtrain.data.progress import file_bar
from cvtrain.data.subset import Selection, select
from cvtrain.data.table import Classes, Problem, Table
from cvtrain.errors import DataError, UsageError
from cvtrain.text import printable

ON_BAD = ("error", "fix", "drop")

OBJECT = ("largest", "only")
"""What localization makes of an image with several objects: takes the largest, or drops it."""

NEEDS: dict[str, tuple[str, ...]] = {
    "classification": ("label",),
    "multilabel_classification": ("tags", "label", "boxes"),
    "localization": ("boxes",),
    "detection": ("boxes",),
    "semantic_segmentation": ("mask", "segments"),
    "instance_segmentation": ("segments",),
}
"""Task -> what a reader must annotate, any of them."""

_DOUBTS = ("keypoints-unsaid",)
"""What readers say of how boxes are written: nothing, where ``check_boxes`` is False."""

_MOST_WORKERS = 16
_SHOWN = 5
_SPELLED_OUT = frozenset(
    {
        *("file-not-read", "classes-absent", "folders-inside", "separator-doubtful"),
        *("masks-of-one-value", "background-numbered", "void-numbered", "float-range"),
    }
)
"""Notes, one a split at most, that the summary gives in full: what is read as what."""


@dataclass
class SplitCount:
    """Numbers of one split: images = used + rejected, the same of annotations."""

    images: int = 0
    used: int = 0
    rejected: int = 0
    annotations: int = 0
    annotations_used: int = 0


@dataclass
class GateReport:
    """What the gate found and what it let through.

    Attributes:
        tables: split -> table, clean.
        problems: errors first.
        images, used, rejected: of all splits that were read; images = used + rejected.
        unlisted: image files that no split names.
        counts: split -> numbers.
        root, reader, kinds, classes: of the data set.
        task, on_bad: as asked for.
        warnings: lines about the check itself (a cache that cannot be written).
        seconds: what it took; ``cached`` of ``files`` files had not changed since the last time.
        selection: what ``select`` left of the data set; None: all of it.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    images: int = 0
    used: int = 0
    rejected: int = 0
    unlisted: list[str] = field(default_factory=list)
    counts: dict[str, SplitCount] = field(default_factory=dict)
    root: str = ""
    reader: str = ""
    kinds: tuple[str, ...] = ()
    classes: Classes = field(default_factory=lambda: Classes((), ()))
    task: str | None = None
    on_bad: str = "error"
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    files: int = 0
    cached: int = 0
    selection: Selection | None = None

    @property
    def errors(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "error"]

    @property
    def notes(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "note"]

    @property
    def stopping(self) -> list[Problem]:
        """Errors that train and eval stop for, given ``on_bad``."""
        return [p for p in self.problems if stops(p, self.on_bad)]

    def to_json(self) -> dict[str, Any]:
        """Plain data for check.json; ``unlisted`` is a number, the files themselves are notes."""
        keys = ["file", "where", "code", "severity", "message", "fix", "split", "action"]
        return {
            "images": self.images,
            "used": self.used,
            "rejected": self.rejected,
            "unlisted": len(self.unlisted),
            "problems": [{key: getattr(p, key) for key in keys} for p in self.problems],
            "codes": dict(Counter(p.code for p in self.problems)),
            "splits": {name: vars(count) for name, count in self.counts.items()},
            "root": self.root,
            "reader": self.reader,
            "kinds": list(self.kinds),
            "classes": list(self.classes.names),
            "selection": None if self.selection is None else self.selection.to_json(),
            "task": self.task,
            "on_bad": self.on_bad,
            "seconds": round(self.seconds, 3),
        }

    def summary_lines(self) -> list[str]:
        """A few lines for people: counts, then errors and notes by code."""
        splits = ", ".join(f"{name} {count.used:,}" for name, count in self.counts.items())
        boxes = sum(count.annotations_used for count in self.counts.values())
        line = f"{self.used:,} of {self.images:,} images ({splits})"
        if boxes:
            line += f", {boxes:,} objects"
        count = len(self.classes)
        lines = [f"{line}, {count} class{'' if count == 1 else 'es'}"]
        for name, found in (("errors", self.errors), ("notes", self.notes)):
            if found:
                lines.append(f"{name}: {_by_code(found)}")
        lines += [printable(p.message) for p in self.notes if p.code in _SPELLED_OUT]
        if self.errors and self.on_bad != "error":
            actions = Counter(p.action or "taken as written" for p in self.errors)
            done = ", ".join(f"{what} {n:,}" for what, n in actions.items())
            lines.append(f"data.on_bad={self.on_bad}: {done}")
        return lines + ([] if self.selection is None else self.selection.lines) + self.warnings

    def select(self, data: Mapping[str, Any], seed: int) -> None:
        """Keep the part of the tables that ``data.classes`` and ``data.train_per_class`` name.

        Raises:
            UsageError, DataError: see ``cvtrain.data.subset.select``.
        """
        self.selection = select(
            self.tables,
            self.task,
            classes=data.get("classes"),
            train_per_class=data.get("train_per_class"),
            seed=seed,
        )
        if self.selection is not None:
            self.tables = self.selection.tables


def run_gate(
    reader: Any,
    task: str | None,
    *,
    on_bad: str = "error",
    val_fraction: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    workers: int | None = None,
    progress: bool = True,
    strict: bool = True,
    splits: Sequence[str] | None = None,
    object_choice: str | None = None,
    classes: Sequence[str | int] | None = None,
    allow_empty: bool = False,
    check_boxes: bool = True,
) -> GateReport:
    """Reads a data set and checks all of it.

    Args:
        reader: a ``cvtrain.data.formats.base.Reader``.
        task: what it is for; None checks what there is.
        on_bad: ``error`` stops; ``fix`` repairs what can be and leaves out the rest; ``drop``
            leaves out the annotation or the image that is wrong.
        val_fraction: part of train that becomes val where there is no val split.
        seed: of that choice.
        channels: of the images the loader will make.
        workers: threads that open files; None: one a core, at most 16.
        progress: a bar on stderr, if that is a terminal.
        strict: raises for errors; otherwise the report holds them (``stopping``), and its tables
            are those without what is wrong.
        splits: the only ones wanted; None: all.
        object_choice: for localization, one of ``OBJECT``; None: ``largest``.
        classes: those that will be kept (``data.classes``): their labels alone are counted. None:
            all.
        allow_empty: a split may be without labels, or lose most of them.
        check_boxes: look for boxes that are written in another way than they are read.

    Raises:
        DataError: the data set has errors, or does not serve the task, or has no such split.
        UsageError: ``on_bad``, ``object_choice`` or ``val_fraction`` is out of range.
    """
    if on_bad not in ON_BAD:
        raise UsageError(f"data.on_bad={on_bad}: choose one of {', '.join(ON_BAD)}")
    if object_choice is not None and object_choice not in OBJECT:
        raise UsageError(f"data.object={object_choice}: choose one of {', '.join(OBJECT)}")
    begun = time.perf_counter()
    kinds = frozenset(reader.kinds)
    if task is not None:
        _check_task(task, kinds)
    report = GateReport(task=task, on_bad=on_bad, kinds=tuple(sorted(kinds)))
    report.root, report.reader = str(reader.root), type(_inner(reader)).__name__
    names, drawn = _splits_to_read(reader, splits)
    states = _read(reader, names, report, check_boxes)
    _open_files(states, report, channels, workers or _cores(), progress)
    unite_classes(states)
    layout = getattr(_inner(reader), "box_layout", "") if check_boxes else ""
    _check_states(states, channels, layout, object_choice == "only")
    from_files = [s for s in states if s.table.generator is None]
    check_classes(from_files, task, classes)
    if task in (None, "semantic_segmentation") and not getattr(_inner(reader), "by_value", False):
        images.check_palettes(states)
        images.check_void_masks(states)
    _check_emptiness(states, names, splits is None)
    if not allow_empty:
        check_losses(from_files, classes, wanted=splits)
    drop_doubtful_notes(states)
    _collect(states, report)
    if drawn and len(report.tables.get("train", ())):
        _draw_val(states, report, val_fraction, seed)
        if not allow_empty and not report.errors:
            _check_drawn(states, report, classes)
    if splits is not None:
        report.tables = {name: t for name, t in report.tables.items() if name in splits}
    report.problems.sort(key=lambda p: p.severity != "error")
    report.seconds = time.perf_counter() - begun
    if strict and report.stopping:
        raise DataError(_refusal(report))
    return report


def label_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run_gate`` is told of labels, from the config's ``data``; runs of before have less."""
    return {
        "classes": data.get("classes"),
        "allow_empty": bool(data.get("allow_empty", False)),
        "check_boxes": bool(data.get("check_boxes", True)),
    }


def _inner(reader: Any) -> Any:
    """The reader itself, where one that recognizes formats has chosen it."""
    return getattr(reader, "reader", reader)


def _check_task(task: str, kinds: frozenset[str]) -> None:
    if task not in NEEDS:
        raise UsageError(f"task={task}: choose one of {', '.join(NEEDS)}")
    if not kinds & set(NEEDS[task]):
        serves = [name for name, needs in NEEDS.items() if kinds & set(needs)]
        held = ", ".join(sorted(kinds)) or "nothing"
        raise DataError(
            f"task={task} needs {' or '.join(NEEDS[task])}, this data set has {held}: "
            f"use task={'|'.join(serves)}"
        )


def _cores() -> int:
    counted = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(len(counted), _MOST_WORKERS)


def _splits_to_read(reader: Any, wanted: Sequence[str] | None) -> tuple[list[str], bool]:
    """The splits to read, and whether val is drawn from train."""
    there = list(reader.splits())
    drawn = "train" in there and "val" not in there
    if wanted is None:
        return there, drawn
    can = there + ["val"] * drawn
    for name in wanted:
        if name not in can:
            have = f"it has {', '.join(can)}" if can else "it has no splits"
            raise DataError(f"there is no {name} split in {reader.root}; {have}")
    drawn = drawn and bool({"train", "val"} & set(wanted))
    return [name for name in there if name in wanted or (drawn and name == "train")], drawn


def _read(
    reader: Any, names: Sequence[str], report: GateReport, check_boxes: bool
) -> list[SplitState]:
    states = []
    one_file = getattr(_inner(reader), "json_file", None)
    for name in names:
        split = reader.read(name)
        states.append(
            SplitState(
                name,
                split.table,
                report.on_bad,
                report.task,
                split.lost,
                annotation_file=one_file(name) if one_file is not None else "",
                known=split.known,
                problems=[p for p in split.problems if check_boxes or p.code not in _DOUBTS],
            )
        )
        report.unlisted += split.unlisted
    if states:
        for file in report.unlisted:
            states[0].split_problem("file-unlisted", "no split names this image", file=file)
        if states[0].table.generator is None:
            root = Path(report.root)
            for file, line in unread_images(root, walk(root)):
                states[0].split_problem("file-not-read", line, file=file)
    for state in states:
        if state.table.generator is None:
            images.check_paths(state)
    return states


def _open_files(
    states: Sequence[SplitState], report: GateReport, channels: int, workers: int, progress: bool
) -> None:
    """Decodes every image and mask that can be named, those of all splits together."""
    states = [s for s in states if s.table.generator is None]
    jobs: list[tuple[bool, list[str]]] = []
    for masks in (False, True):
        column = [(s, s.table.masks if masks else s.table.files) for s in states]
        names = [
            "" if images.leaves_root(strings[i]) else strings[i]
            for _, strings in column
            if strings is not None
            for i in range(len(strings))
        ]
        jobs.append((masks, names))
    total = sum(1 for _, names in jobs for name in names if name)
    with file_bar(total, progress) as tick:
        for masks, names in jobs:
            colors = masks and any(s.table.mask_colors for s in states)
            probes = _probe_named(report, names, masks, channels, workers, tick, colors)
            start = 0
            for state in states:
                if masks and state.table.masks is None:
                    continue
                part = _part(probes, start, len(state.table))
                start += len(state.table)
                if masks:
                    state.masks = part
                else:
                    state.files = part
    report.files = total


def _probe_named(
    report: GateReport,
    names: Sequence[str],
    masks: bool,
    channels: int,
    workers: int,
    tick: Callable[[int], None],
    colors: bool,
) -> Probes:
    """Probes of N names; those that are "" count as missing."""
    rows = [i for i, name in enumerate(names) if name]
    found = cached_probe(
        report.root,
        [names[i] for i in rows],
        masks=masks,
        channels=channels,
        workers=workers,
        tick=tick,
        warn=report.warnings.append,
        colors=colors,
    )
    probes = Probes.blank(len(names))
    probes.records["status"] = 1  # missing
    probes.records[rows] = found.records
    probes.details = {rows[i]: text for i, text in found.details.items()}
    probes.values = {rows[i]: pair for i, pair in found.values.items()}
    probes.palettes = {rows[i]: colors for i, colors in found.palettes.items()}
    report.cached += found.cached
    return probes


def _part(probes: Probes, start: int, count: int) -> Probes:
    """Rows ``start`` to ``start + count``."""
    rows = range(start, start + count)
    return Probes(
        probes.records[start : start + count],
        {i - start: text for i, text in probes.details.items() if i in rows},
        {i - start: pair for i, pair in probes.values.items() if i in rows},
        {i - start: colors for i, colors in probes.palettes.items() if i in rows},
    )


def _check_states(states: Sequence[SplitState], channels: int, layout: str, only: bool) -> None:
    """All that is looked at in each split, and then in all of them together."""
    from_files = [s for s in states if s.table.generator is None]
    for state in from_files:
        _check_images(state, channels)
        if layout and state.reads("box"):
            check_units(state, layout)
        _check_annotations(state, bool(layout))
    for state in states:
        if state.task == "localization":
            objects.check_localization(state, only)
    images.check_copies(states)


def _check_images(state: SplitState, channels: int) -> None:
    images.check_images(state, channels)
    if state.table.masks is not None and state.task in (None, "semantic_segmentation"):
        images.check_masks(state)


def _check_annotations(state: SplitState, check_outlines: bool) -> None:
    objects.check_labels(state)
    if state.reads("segment"):
        check_segments(state, required=state.task == "instance_segmentation")
    objects.check_boxes(state)
    if state.reads("box", "segment") and check_outlines:
        objects.check_outlines(state)
    if state.reads("box"):
        check_copies_of_objects(state)
    if not state.reads("segment"):
        state.set_table(segments=None)
    state.set_table(relative=False)
    if state.task == "classification":
        objects.check_one_label(state)
    objects.note_images_without_objects(state)


def _check_emptiness(states: Sequence[SplitState], names: Sequence[str], all_wanted: bool) -> None:
    for state in states:
        if not state.images.any() and not any(p.code == "empty-split" for p in state.problems):
            of = f" of {len(state.images):,}" if len(state.images) else ""
            state.split_problem("empty-split", f"{state.name} has no image{of} that can be used")
    if all_wanted and "train" not in names and states:
        states[0].split_problem("no-train-split", f"the data set has only {', '.join(names)}")


def _collect(states: Sequence[SplitState], report: GateReport) -> None:
    """Tables without what is left out, and the counts."""
    message: set[tuple[str, ...] | None] = set()
    for state in states:
        if state.files is not None:
            state.set_table(digests=state.files.records["digest"])
        if state.masks is not None:
            state.set_table(mask_digests=state.masks.records["digest"])
        kept = np.flatnonzero(state.images)
        whole = len(kept) == len(state.images) and bool(state.annotations.all())
        table = state.table if whole else state.table.take(kept, state.annotations)
        table = for_task(table, report.task)
        rowless = {
            (p.file, p.where)
            for p in state.problems
            if p.severity == "error" and p.rejects == "image" and p.image < 0
        }
        total = len(state.images) + len(rowless)
        report.tables[state.name] = table
        report.counts[state.name] = SplitCount(
            total, len(table), total - len(table), len(state.annotations), table.num_annotations
        )
        report.problems += [p for p in state.problems if _of_the_whole(p) not in message]
        message |= {_of_the_whole(p) for p in state.problems} - {None}
        report.images += total
        report.used += len(table)
    report.rejected = report.images - report.used
    if states:
        report.classes = states[0].table.classes


def _of_the_whole(problem: Problem) -> tuple[str, ...] | None:
    """What tells a fault of the whole data set (its YAML), which each split meets, from others."""
    if problem.severity != "error" or problem.rejects != "nothing":
        return None
    return problem.code, problem.file, problem.where, problem.message


def _draw_val(states: Sequence[SplitState], report: GateReport, fraction: float, seed: int) -> None:
    """Splits train; says so. Where that fails beside other errors, it is one of them.

    Raises:
        DataError: there are too few images, and nothing else is wrong.
    """
    state = next(s for s in states if s.name == "train")
    table = report.tables["train"]
    digests = None if state.files is None else state.files.records["digest"][state.images]
    try:
        train, val = draw_val(table, digests, fraction, seed)
    except DataError as error:
        if not report.errors:
            raise
        left = (
            f" ({report.rejected:,} of {report.images:,} images dropped)" if report.rejected else ""
        )
        state.split_problem("val-not-drawn", f"{error}{left}")
        report.problems.append(state.problems[-1])
        return
    everywhere = report.counts["train"]
    tables = {"train": table.take(train), "val": table.take(val)}
    before = list(report.tables)
    report.tables = {**tables, **{n: report.tables[n] for n in before if n != "train"}}
    drawn = SplitCount(
        len(val), len(val), 0, tables["val"].num_annotations, tables["val"].num_annotations
    )
    everywhere.images -= drawn.images
    everywhere.used -= drawn.used
    everywhere.annotations -= drawn.annotations
    everywhere.annotations_used -= drawn.annotations_used
    rest = {name: count for name, count in report.counts.items() if name != "train"}
    report.counts = {"train": everywhere, "val": drawn, **rest}
    state.split_problem(
        "no-val-split",
        f"no val split: {len(val):,} of {len(table):,} training images are kept for validation "
        f"(data.val_fraction={fraction:g}, data.split_seed={seed})",
    )
    report.problems.append(state.problems[-1])


def _check_drawn(
    states: Sequence[SplitState], report: GateReport, classes: Sequence[str | int] | None
) -> None:
    """An error where train or the val drawn from it has no object, as one image alone has any."""
    state = next(s for s in states if s.name == "train")
    parts = {name: t for name, t in report.tables.items() if name in ("train", "val")}
    for name in without_objects(parts, classes):
        state.split_problem("labels-none", f"{name} has no object: val is drawn from train")
        report.problems.append(state.problems[-1])


def _by_code(problems: Sequence[Problem]) -> str:
    counted = Counter(p.code for p in problems).most_common()
    return ", ".join(f"{code} {count:,}" for code, count in counted)


def _refusal(report: GateReport) -> str:
    """One line that says all, then the first few problems."""
    found = report.stopping
    hint = cure(found, report.on_bad, "data.on_bad=fix|drop continues without what is wrong")
    lines = [
        f"{report.root}: {len(found):,} error{'' if len(found) == 1 else 's'} in the data "
        f"({_by_code(found)}); `cvtrain check` with the same data keys lists all; {hint}"
    ]
    for p in found[:_SHOWN]:
        place = f"{p.file} {p.where}".strip()
        lines.append(printable(f"  {place}: {p.message} [{p.code}] -> {p.fix}"))
    if len(found) > _SHOWN:
        lines.append(f"  ... and {len(found) - _SHOWN:,} more")
    return "\n".join([printable(lines[0]), *lines[1:]])
