"""CSV files that name images and their classes: a column of labels, or a 0/1 column per class."""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.base import SPLITS, Reader, problem
from cvtrain.data.formats.classes import given_names
from cvtrain.data.formats.csv_file import CSVFile, named, read_csv
from cvtrain.data.formats.elsewhere import Images
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    images_of,
    is_image,
    is_there,
    shorten,
    stem,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.joined import joined_labels
from cvtrain.data.formats.packing import Packer
from cvtrain.data.table import Classes, Problem, Split, Strings
from cvtrain.errors import DataError

IMAGE_COLUMNS = (
    *("image", "images", "file", "filename", "file_name", "path", "filepath", "image_path"),
    *("image_file", "image_name", "image_id", "img", "id"),
)
LABELS_COLUMNS = (
    *("labels", "label", "classes", "class", "tags", "tag", "categories", "category"),
    *("class_name", "label_name", "target", "targets"),
)
"""Names, lower case, that columns go by where none is given; the first that is there."""

_BOXES = frozenset({"xmin", "ymin", "xmax", "ymax", "x1", "y1", "bbox", "box", "encodedpixels"})
"""Columns of files that ``data=auto`` leaves alone: they annotate objects."""

_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false", "")


@dataclass
class _Columns:
    """Which column is what, by place; ``classes`` where each class has a column of its own."""

    image: int
    labels: int | None
    classes: list[int]
    split: int | None


@dataclass
class _Record:
    """One line: its image as written, its labels by name, and what is wrong with it.

    ``split``: as the file spells it, a folder its images may lie in.
    """

    file: str
    split: str
    line: int
    image: str
    labels: list[str]
    fault: str = ""


class CSVReader(Reader):
    """Reads labels of whole images from CSV files.

    Args:
        root: folder of the data set.
        file: the CSV below the root. None: train.csv, val.csv and test.csv, or the only CSV.
        images: folder below the root that the names are relative to. None: the CSV's own folder,
            the root, ``images``, or in either the split's folder, wherever the image is. Names may
            lack their extension.
        image_column: None: the first of ``IMAGE_COLUMNS`` that is there.
        labels_column: its cells hold any number of labels. None: the first of ``LABELS_COLUMNS``;
            without one, all columns that are not spoken for are classes, of 0 and 1.
        class_columns: names of the 0/1 columns.
        split_column: holds train, val or test. None: ``split``, where that is there and the file
            is the only one; without one every image is of ``train``.
        label_separator: between the labels of a cell; None: a cell is one label.
        delimiter: between cells; ``tab`` for a tab.
        names: classes in the order wanted; other labels are errors. None: those there are, sorted
            (0/1 columns: in their order).

    Fills ``tags``, so that it serves several classes an image and, where most images have exactly
    one, classification.
    """

    layout = "CSV: image and labels columns, or one 0/1 column per class (train.csv, val.csv)"

    def __init__(
        self,
        root: str | Path,
        file: str | None = None,
        images: str | None = None,
        image_column: str | None = None,
        labels_column: str | None = None,
        class_columns: Sequence[str] | None = None,
        split_column: str | None = None,
        label_separator: str | None = ";",
        delimiter: str = ",",
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(root)
        self._delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter
        if len(self._delimiter) != 1:
            raise DataError(f"data.reader.delimiter={delimiter!r}: give one character, or tab")
        if label_separator == "":
            raise DataError("data.reader.label_separator is empty; null: a cell is one label")
        self._separator = label_separator
        try:
            self._given = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        self._folder = None if images is None else below(self.root, "", images)
        if images is not None and (self._folder is None or not (self.root / images).is_dir()):
            raise DataError(f"data.reader.images={images} is no folder below data.root={root}")
        self._asked = {
            "image_column": image_column,
            "labels_column": labels_column,
            "split_column": split_column,
        }
        self._class_columns = None if class_columns is None else list(class_columns)
        if labels_column is not None and class_columns is not None:
            raise DataError(
                f"data.reader.labels_column={labels_column} and data.reader.class_columns: give one"
            )
        places = self._places(file)
        self._files = walk(self.root)
        self._images = set(images_of(self._files))
        self._elsewhere = Images(self.root, self._images)
        self._stems: dict[str, list[str]] = {}
        for image in sorted(self._images):
            self._stems.setdefault(stem(image), []).append(image)
        self._records, self._faults = self._parse(places)
        self._classes = self._all_classes()

    # The files ---------------------------------------------------------------------------------

    def _places(self, file: str | None) -> dict[str | None, str]:
        """Split -> its CSV; None: one file of all splits."""
        if file is not None:
            place = below(self.root, "", file)
            if place is None or not (self.root / place).is_file():
                raise DataError(
                    f"data.reader.file={file} is not a file below data.root={self.root}"
                )
            return {None: place}
        there = csv_files(self.root)
        found: dict[str | None, str] = {}
        for split, aliases in SPLITS.items():
            mine = [f for alias in aliases for f in there if stem(f).lower() == alias]
            if mine:
                found[split] = mine[0]
        if "train" in found or (found and len(there) == len(found)):
            return found
        if len(there) == 1:
            return {None: there[0]}
        if not there:
            raise self._not_this("no CSV file there")
        raise DataError(
            f"{self.root}: {len(there)} CSV files, {named(there, 6)}; say data.reader.file=NAME"
        )

    def _parse(
        self, places: dict[str | None, str]
    ) -> tuple[dict[str, list[_Record]], dict[str, list[tuple[str, int, str]]]]:
        """Split -> its records, and (file, line, message) of lines that are none."""
        records: dict[str, list[_Record]] = {}
        faults: dict[str, list[tuple[str, int, str]]] = {}
        self._columns_of: dict[str, list[str]] = {}
        for split, place in places.items():
            try:
                content = read_csv(self.root, place, self._delimiter)
                columns = self._columns(content, split is None)
            except MalformedError as error:
                at = f"{place} {error.where}".strip()
                raise DataError(f"{self.root}: {at}: {error.message}") from error
            self._columns_of[place] = [content.header[i] for i in columns.classes]
            if split is not None:
                records[split] = []
            for record, own in _records(content, columns, split, self._separator):
                records.setdefault(own, []).append(record)
            first = split or next((s for s in SPLITS if s in records), "train")
            records.setdefault(first, [])
            faults.setdefault(first, []).extend((place, *fault) for fault in content.faults)
        return {s: records[s] for s in SPLITS if s in records}, faults

    def _columns(self, content: CSVFile, alone: bool) -> _Columns:
        """Which column is what.

        Raises:
            MalformedError: a column is missing.
        """
        given = {k: None if v is None else content.column(v) for k, v in self._asked.items()}
        image = given["image_column"]
        if image is None:
            image = content.find(IMAGE_COLUMNS)
        if image is None:
            raise MalformedError(
                f"no column of images; there are: {named(content.header)}; "
                "say data.reader.image_column=NAME"
            )
        split = given["split_column"]
        if split is None and alone:
            split = content.find(("split",))
        if self._class_columns is not None:
            own = [content.column(name) for name in self._class_columns]
            return _Columns(image, None, own, split)
        labels = given["labels_column"]
        if labels is None:
            labels = content.find(LABELS_COLUMNS)
        if labels is not None:
            return _Columns(image, labels, [], split)
        rest = [i for i, name in enumerate(content.header) if i not in (image, split) and name]
        cells = [cells[i].strip().lower() for _, cells in content.records[:20] for i in rest]
        if not cells or not all(cell in (*_YES, *_NO) for cell in cells):
            raise MalformedError(
                f"no column of labels; there are: {named(content.header)}; "
                "say data.reader.labels_column=NAME, or class_columns=[...] for 0/1 columns"
            )
        return _Columns(image, None, rest, split)

    def _all_classes(self) -> Classes:
        if self._given is not None:
            return self._given
        own = [name for columns in self._columns_of.values() for name in columns]
        if own:
            return Classes.from_names(dict.fromkeys(own))
        records = (r for split in self._records.values() for r in split)
        return Classes.from_names(sorted({name for r in records for name in r.labels}))

    def _known(self) -> frozenset[str] | None:
        """The classes that train names in columns of their own; None: all of the table."""
        if self._given is not None or "train" not in self._records:
            return None
        places = {record.file for record in self._records["train"]}
        return frozenset(name for place in places for name in self._columns_of.get(place, ()))

    # What a reader says of itself --------------------------------------------------------------

    @property
    def kinds(self) -> frozenset[str]:
        """``tags``, and ``label`` where at least four of five images have exactly one.

        The others are mistakes then, which the gate names; else they are what the set is about.
        """
        sizes = [len(r.labels) for split in self._records.values() for r in split]
        single = sum(size == 1 for size in sizes) * 5 >= max(1, len(sizes)) * 4
        return frozenset({"tags", "label"} if single else {"tags"})

    def splits(self) -> list[str]:
        return list(self._records)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        try:
            reader = cls(root)
        except DataError:
            return None
        files = sorted({r.file for split in reader._records.values() for r in split})
        for file in files:
            header = {name.lower() for name in read_csv(root, file, reader._delimiter, 1).header}
            if header & _BOXES:
                return None
        firsts = [split[0] for split in reader._records.values() if split]
        if not firsts or not all(reader._there(r) for r in firsts):
            return None
        return f"labels in {', '.join(files)} ({len(reader._classes)} classes)"

    def _there(self, record: _Record) -> bool:
        path = self._path(record)
        return path is not None and path in self._images

    def _unlisted(self, used: set[str]) -> list[str]:
        return unlisted_of(self._files, used)

    # One split ---------------------------------------------------------------------------------

    def _folders(self, record: _Record) -> list[str]:
        """The folders that a record's image may lie in."""
        if self._folder is not None:
            return [self._folder]
        own = posixpath.dirname(record.file)
        return [own, "", "images", record.split, f"images/{record.split}"]

    def _outside(self, record: _Record) -> str:
        """What to say of an image outside the root."""
        there = [f for f in dict.fromkeys(self._folders(record)) if (self.root / f).is_dir()]
        return self._elsewhere.outside(record.image, there)

    def _path(self, record: _Record) -> str | None:
        """The image a record names, below the root; None where the name leaves it."""
        folders = self._folders(record)
        spellings = dict.fromkeys((record.image, record.image.replace("\\", "/")))
        tried = [below(self.root, f, name) for name in spellings for f in folders]
        inside = [path for path in tried if path]
        for path in inside:
            if path in self._images:
                return path
        for path in inside:
            alike = self._stems.get(path, [])
            if len(alike) == 1 and not is_image(path):
                return alike[0]
        return tried[0] or None

    def _read(self, split: str) -> Split:
        packing = _Packing(self, split)
        for file, line, message in self._faults.get(split, ()):
            packing.say("record-malformed", file, message, where=f"line {line}", rejects="image")
        for record in self._records[split]:
            packing.add(record)
        return packing.split()


class _Packing:
    """One split's table in the making."""

    def __init__(self, reader: CSVReader, split: str) -> None:
        self._reader, self._split = reader, split
        self._index = {name: i for i, name in enumerate(reader._classes.names)}
        self._packer = Packer()
        self._problems: list[Problem] = []
        self._lines = array("q")
        self._files: list[str] = []
        self._tags: list[set[int]] = []
        self._row_of: dict[str, int] = {}

    def say(self, code: str, file: str, message: str, **more: Any) -> None:
        self._problems.append(problem(code, file, message, split=self._split, **more))

    def add(self, record: _Record) -> None:
        """Takes in one line."""
        where = f"line {record.line}"
        path = self._reader._path(record)
        if record.fault or path is None:
            message = record.fault or self._reader._outside(record)
            code = "record-malformed" if record.fault else "path-outside-root"
            self.say(code, record.file, message, where=where, rejects="image")
            return
        path = storable(path)
        if path in self._row_of:
            first = self._lines[self._row_of[path]]
            message = f"{path!r} is named in line {first} already"
            self.say("duplicate-file", record.file, message, where=where)
        else:
            self._row_of[path] = self._packer.image(path)
            self._lines.append(record.line)
            self._files.append(record.file)
            self._tags.append(set())
        row = self._row_of[path]
        if path not in self._reader._images and not is_there(self._reader.root / path):
            message = f"there is no image {path!r}"
            self.say("image-missing", record.file, message, where=where, image=row)
        for n, name in enumerate(record.labels):
            if name not in self._index:
                known = named(self._reader._classes.names, 6)
                message = f"label {shorten(name)!r} is none of the classes {known}"
                more = {"image": row, "rejects": "image"}
                self.say("class-unknown", record.file, message, where=where, **more)
            elif name in record.labels[:n]:
                self.say("label-repeated", record.file, f"label {name!r} twice", where=where)
            else:
                self._tags[row].add(self._index[name])

    def split(self) -> Split:
        """The table and what was found."""
        if not self._tags:
            files = {r.file for rs in self._reader._records.values() for r in rs}
            lines = len(self._reader._records[self._split])
            none = f"none of {lines:,} images is found" if lines else "no images"
            self.say("empty-split", ", ".join(sorted(files)) or ".", none)
        starts = np.zeros(len(self._tags) + 1, np.int64)
        np.cumsum([len(tags) for tags in self._tags], out=starts[1:])
        table = self._packer.table(
            self._reader.root,
            self._reader._classes,
            tags=np.array([t for tags in self._tags for t in sorted(tags)], np.int64),
            tag_starts=starts,
            image_lines=np.array(self._lines, np.int64),
            annotation_files=Strings(self._files),
        )
        self._doubt_separator()
        return Split(self._split, table, self._problems, known=self._reader._known())

    def _doubt_separator(self) -> None:
        """An error or a note where labels look like several, parted by something else."""
        reader = self._reader
        given = reader._separator
        if reader._given is not None or self._split != reader.splits()[0] or given is None:
            return
        every = [record for records in reader._records.values() for record in records]
        if any(reader._columns_of.values()) or any(len(r.labels) > 1 for r in every) or not every:
            return
        names = reader._classes.names
        found = joined_labels(names, given)
        key = "data.reader.label_separator"
        if found is not None:
            count = len(found.names)
            more = f" (and {count - 1:,} like it)" if count > 1 else ""
            message = (
                f"label {shorten(found.names[0])!r}{more} is a class of its own, and joins others "
                f"by {found.separator!r}: {named(found.parts, 6)}; no cell holds a {given!r}; say "
                f"{key}='{found.separator}' if it parts labels, {key}=null if not"
            )
            self.say(
                "labels-joined" if found.sure else "separator-doubtful", every[0].file, message
            )
            return
        for other in (",", ";", "|"):
            holding = [n for n in names if other in n]
            if other != given and holding:
                message = (
                    f"label {shorten(holding[0])!r} holds {other!r}, and no cell a {given!r}; say "
                    f"{key}='{other}' if it parts labels"
                )
                self.say("separator-doubtful", every[0].file, message)
                return


def _records(
    content: CSVFile, columns: _Columns, split: str | None, separator: str | None
) -> Iterator[tuple[_Record, str]]:
    """The records of a file, each with its split."""
    aliases = {alias: name for name, known in SPLITS.items() for alias in known}
    for line, cells in content.records:
        own = split or "train"
        spelled = posixpath.basename(stem(content.name)) if split else own
        record = _Record(content.name, spelled, line, cells[columns.image].strip(), [])
        if split is None and columns.split is not None:
            message = cells[columns.split].strip()
            if message.lower() in aliases:
                own, record.split = aliases[message.lower()], message
            else:
                record.fault = f"split {shorten(message)!r} is none of {', '.join(SPLITS)}"
        if not record.image:
            record.fault = "no image is named"
        if columns.labels is None:
            _take_flags(record, content.header, cells, columns.classes)
        else:
            record.labels = _labels(cells[columns.labels], separator)
        yield record, own


def _labels(cell: str, separator: str | None) -> list[str]:
    parts = [cell] if separator is None else cell.split(separator)
    return [" ".join(part.split()) for part in parts if part.strip()]


def _take_flags(
    record: _Record, header: Sequence[str], cells: Sequence[str], classes: Sequence[int]
) -> None:
    for i in classes:
        flag = cells[i].strip().lower()
        if flag in _YES:
            record.labels.append(header[i])
        elif flag not in _NO and not record.fault:
            record.fault = f"{shorten(cells[i])!r} in column {header[i]!r} is neither 0 nor 1"


def csv_files(root: Path) -> list[str]:
    """The CSV files directly in the root, sorted."""
    found = (p.name for p in root.iterdir() if p.suffix.lower() == ".csv" and p.is_file())
    return sorted(name for name in found if not name.startswith("."))
