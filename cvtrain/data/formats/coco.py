"""COCO JSON: images, annotations (boxes, polygons, RLE, crowds) and categories of any ids.

Format: Lin et al. 2014, arXiv 1405.0312; https://cocodataset.org/#format-data
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.base import Reader, problem
from cvtrain.data.formats.classes import MergedClasses, merge_classes
from cvtrain.data.formats.coco_layout import (
    Source,
    find_sources,
    has_segments,
    image_folder,
    looks_like_coco,
    scan_categories,
)
from cvtrain.data.formats.coco_objects import ObjectPacker, Quoted, integer, unquoted
from cvtrain.data.formats.elsewhere import Images
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    images_of,
    is_there,
    read_text,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.packing import empty_table
from cvtrain.data.table import Problem, Split, Strings, Table

_GONE = -2  # row of an image that was rejected without a row; its annotations go with it


class COCOReader(Reader):
    """Reads COCO instance annotations.

    Args:
        root: folder of the data set.
        train_json: annotation file of a split, below the root; also ``val_json``, ``test_json``.
            None: looked for as ``annotations/instances_train2017.json``,
            ``annotations/train.json``, ``train.json``, ``train/_annotations.coco.json`` and the
            like (``valid`` is val); one COCO file alone is ``train``.
        train_images: folder of a split's images, below the root; also ``val_images``,
            ``test_images``. None: the one of ``train2017``, ``images/train2017``, ``train``,
            ``images/train``, ``images``, the JSON's own folder, the root ... that holds them.

    Labels are category ids mapped to 0..K-1 in file order; ``lines`` are annotation ids (int64).
    """

    layout = (
        "COCO: annotations/instances_train*.json + train*/, or train.json + train/, "
        "or train/_annotations.coco.json (the same for val)"
    )
    box_layout = "xywh"

    def __init__(
        self,
        root: str | Path,
        train_json: str | None = None,
        val_json: str | None = None,
        test_json: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
    ) -> None:
        super().__init__(root)
        jsons = {"train": train_json, "val": val_json, "test": test_json}
        images = {"train": train_images, "val": val_images, "test": test_images}
        self._sources: dict[str, Source] = find_sources(self.root, jsons, images)
        if not self._sources:
            raise self._not_this("no COCO JSON found")
        self._merged: MergedClasses | None = None
        self._raw: dict[str, Any] = {}
        self._walked: list[str] | None = None
        self._folders: dict[str, str] = {}

    @property
    def kinds(self) -> frozenset[str]:
        """``boxes``, and ``segments`` where any annotation has one."""
        segments = any(has_segments(self.root / s.json) for s in self._sources.values())
        return frozenset({"boxes", "segments"} if segments else {"boxes"})

    def splits(self) -> list[str]:
        return list(self._sources)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        none = dict.fromkeys(("train", "val", "test"))
        sources = find_sources(root, none, none)
        if not any(looks_like_coco(root / s.json) for s in sources.values()):
            return None
        return f"COCO JSON ({', '.join(s.json for s in sources.values())})"

    def _read(self, split: str) -> Split:
        file = self._sources[split].json
        try:
            document = _load(self.root / file)
            classes = self._classes(split, document)
            images, annotations = _lists(document, split)
        except MalformedError as error:
            table = empty_table(self.root, self._merge().classes)
            found = problem("json-malformed", file, error.message, where=error.where, split=split)
            return Split(split, table, [found])
        problems = classes.problems[split] + _quoted_ids(document.get("categories"), file, split)
        rows = _Images(self, split, problems)
        rows.add_all(images)
        if not rows.files:
            none = f"none of {len(images):,} images is found" if images else "no images"
            problems.append(problem("empty-split", file, none, split=split))
        objects = ObjectPacker(file, split, classes.index[split], rows.row_of, rows.sizes, problems)
        objects.add_all(annotations)
        table = self._table(classes, rows, objects)
        lost = np.array(objects.lost, np.int64)
        return Split(split, table, problems, lost=lost, known=classes.known)

    def _table(self, classes: MergedClasses, rows: _Images, objects: ObjectPacker) -> Table:
        return Table(
            root=str(self.root),
            classes=classes.classes,
            files=Strings(rows.files),
            sizes=np.array(rows.sizes, np.int32).reshape(-1, 2),
            ids=np.array(rows.ids, np.int64),
            **objects.columns(len(rows.files)),
        )

    def _classes(self, split: str, document: Any) -> MergedClasses:
        """The class table of all splits; the other splits' files are only searched for theirs."""
        if not isinstance(document, dict):
            raise MalformedError(f"a JSON object is expected, this is a {_kind(document)}")
        merged = self._merge()
        raw = document.get("categories")
        if raw != self._raw.get(split):
            self._raw[split] = raw
            self._merged = None
            merged = self._merge()
        if split not in merged.index:
            _pairs(raw)  # raises where the table is malformed
            if split != "test" or document.get("annotations"):
                raise MalformedError("no 'categories'")
            merged.index[split] = {}
            merged.problems[split] = []
        return merged

    def _merge(self) -> MergedClasses:
        if self._merged is None:
            tables: dict[str, list[tuple[int, str]]] = {}
            for split, source in self._sources.items():
                if split not in self._raw:
                    self._raw[split] = _categories(self.root / source.json)
                try:
                    pairs = _pairs(self._raw[split])
                except MalformedError:
                    continue  # the split's own reading says so
                if pairs:
                    tables[split] = pairs
            files = {split: self._sources[split].json for split in tables}
            self._merged = merge_classes(tables, files)
        return self._merged

    def files(self) -> list[str]:
        """All files of the data set, walked once."""
        if self._walked is None:
            self._walked = walk(self.root)
        return self._walked

    def folder(self, split: str, names: list[str]) -> str:
        """Where the images of a split lie; kept, so that unlisted ones are looked for there."""
        self._folders[split] = image_folder(self.root, self._sources[split], names)
        return self._folders[split]

    def json_file(self, split: str) -> str:
        """The annotation file of a split, below the root."""
        return self._sources[split].json

    def _unlisted(self, used: set[str]) -> list[str]:
        places = tuple(f"{f}/" if f else "" for f in self._folders.values())
        return unlisted_of((f for f in self.files() if f.startswith(places)), used)


class _Images:
    """The image records of one split: rows, and what their ids lead to."""

    def __init__(self, reader: COCOReader, split: str, problems: list[Problem]) -> None:
        self.files: list[str] = []
        self.sizes: list[int] = []  # height, width, height, width ...
        self.ids: list[int] = []
        self.row_of: dict[int, int] = {}
        self._row_of_file: dict[str, int] = {}
        self._shared: set[int] = set()
        self._reader = reader
        self._split = split
        self._problems = problems
        self._there = set(images_of(reader.files()))
        self._elsewhere = Images(reader.root, self._there)
        self._file = reader.json_file(split)
        self._quoted = Quoted(self._file, split)

    def add_all(self, records: list[Any]) -> None:
        """Adds the ``images`` list of the JSON."""
        names = [r["file_name"] for r in records if isinstance(r, dict) and _is_name(r)]
        folder = self._reader.folder(self._split, names)
        for n, record in enumerate(records):
            self._add(n, record, folder)
        self._problems += self._quoted.problems()

    def _say(self, code: str, message: str, where: str, image: int = -1, **more: Any) -> None:
        self._problems.append(
            problem(code, self._file, message, where=where, split=self._split, image=image, **more)
        )

    def _add(self, n: int, record: Any, folder: str) -> None:
        where = f"images[{n}]"
        if not isinstance(record, dict):
            self._say("record-malformed", f"an object is expected, not a {_kind(record)}", where)
            return
        ident = integer(self._quoted.read(record, "id", where, "an image's `id`"))
        if ident is not None:
            where = f"image id {ident}"
        if not _is_name(record):
            self._say("record-malformed", f"file_name is {record.get('file_name')!r}", where)
            self._gone(ident)
            return
        name = record["file_name"]
        path = self._resolve(folder, name)
        if path is None:
            message = self._elsewhere.outside(name, list(dict.fromkeys((folder, ""))))
            self._say("path-outside-root", f"file_name {message}", where)
            self._gone(ident)
            return
        if path in self._row_of_file:
            self._again(path, ident, where)
            return
        row = self._append(path, record, where)
        self._identify(row, record, ident, where)
        if 0 in self.sizes[-2:]:
            height, width = self.sizes[-2:]
            self._say("size-missing", f"the size is {width} x {height}", where, row)
            self.sizes[-2:] = (-1, -1)
        if path not in self._there and not is_there(self._reader.root / path):
            self._say("image-missing", f"there is no image {path!r}", where, row)

    def _append(self, path: str, record: dict, where: str) -> int:
        row = len(self.files)
        self._row_of_file[path] = row
        self.files.append(path)
        for key in ("height", "width"):
            value = self._quoted.read(record, key, where)
            size = -1 if value is None else integer(value)
            if size is None or not -(2**31) <= size < 2**31:
                self._say("record-malformed", f"{key} is {value!r}", where, row)
                size = -1
            self.sizes.append(size)
        return row

    def _identify(self, row: int, record: dict, ident: int | None, where: str) -> None:
        self.ids.append(-1 if ident is None else ident)
        if ident is None:
            self._say("record-malformed", f"id is {record.get('id')!r}", where, row)
        elif self.row_of.setdefault(ident, row) != row:
            first = self.row_of[ident]
            text = {first, row} - self._shared
            self._shared |= text
            for other in sorted(text - {_GONE}):
                message = f"id {ident} is that of several images, {self.files[other]!r} one of them"
                self._say("duplicate-image-id", message, where, other)

    def _again(self, path: str, ident: int | None, where: str) -> None:
        """A second record of a file: its annotations join those of the first."""
        row = self._row_of_file[path]
        first = self.ids[row]
        if ident == first:
            message = f"{path!r} is given twice with the id {ident}"
            self._say("duplicate-image-id", message, where, row, rejects="nothing")
            return
        if ident is not None:
            self.row_of.setdefault(ident, row)
        self._say("duplicate-file", f"{path!r} has the ids {first} and {ident}", where, row)

    def _gone(self, ident: int | None) -> None:
        if ident is not None:
            self.row_of.setdefault(ident, _GONE)

    def _resolve(self, folder: str, name: str) -> str | None:
        """The image of a file name: in the split's folder, else below the root."""
        first = below(self._reader.root, folder, name)
        if first is None or first in self._there:
            return first
        for base, spelling in ((".", name), (folder, name.replace("\\", "/"))):
            path = below(self._reader.root, base, spelling)
            if path is not None and path in self._there:
                return path
        return storable(first)


def _is_name(record: dict) -> bool:
    name = record.get("file_name")
    return isinstance(name, str) and name != ""


def _kind(value: Any) -> str:
    names = {list: "list", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _load(path: Path) -> Any:
    text = read_text(path)
    collecting = gc.isenabled()
    gc.disable()  # nothing of a parse can be garbage, and looking for it takes longer than parsing
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedError(
            f"{error.msg} (column {error.colno})", f"line {error.lineno}"
        ) from error
    except RecursionError as error:
        raise MalformedError("nested too deeply") from error
    except ValueError as error:
        raise MalformedError(str(error)) from error
    finally:
        if collecting:
            gc.enable()


def _lists(document: Any, split: str) -> tuple[list, list]:
    images = document.get("images")
    if not isinstance(images, list):
        raise MalformedError("no 'images' list")
    annotations = document.get("annotations", [] if split == "test" else None)
    if not isinstance(annotations, list):
        raise MalformedError("no 'annotations' list")
    return images, annotations


def _categories(path: Path) -> Any:
    """The raw categories, from a search where that suffices, otherwise from a parse."""
    raw = scan_categories(path)
    if raw is not None:
        return raw
    try:
        document = _load(path)
    except MalformedError:
        return None  # reading the split says so
    return document.get("categories") if isinstance(document, dict) else None


def _quoted_ids(raw: Any, file: str, split: str) -> list[Problem]:
    """An error where category ids are text."""
    quoted = Quoted(file, split)
    for n, record in enumerate(raw if isinstance(raw, list) else ()):
        if isinstance(record, dict):
            quoted.read(record, "id", f"categories[{n}]", "a category's `id`")
    return quoted.problems()


def _pairs(raw: Any) -> list[tuple[int, str]]:
    """(id, name) of each category, in file order; none where there is no table."""
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise MalformedError("'categories' is not a list")
    pairs = []
    for n, record in enumerate(raw):
        ident = integer(unquoted(record.get("id"))) if isinstance(record, dict) else None
        name = record.get("name") if isinstance(record, dict) else None
        if ident is None or not isinstance(name, str) or not name:
            raise MalformedError(f"categories[{n}] needs a whole number `id` and a `name`")
        pairs.append((ident, storable(name)))
    return pairs
