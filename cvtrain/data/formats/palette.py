"""Files that say which color, or which pixel value, of a mask is which class.

Text, one class a line, in any of the forms that tools write; ``#`` begins a comment line::

    road 128 64 128            name and R G B, parted by blanks, tabs, commas or semicolons
    128 64 128 road            the same, color first (CamVid's label_colors.txt)
    road,#804080               hexadecimal
    road:128,64,128::          CVAT's labelmap.txt
    road 7  |  7: road         a pixel value instead of a color (COCO-stuff's labels.txt)

The first line may be a header (``name,r,g,b``). JSON: ``{"road": [128, 64, 128]}``, a list of
``{"name": "road", "color": [128, 64, 128]}``, or such a list as ``labels`` or ``categories``; a
number, or ``id`` instead of ``color``, is a pixel value.

Pixels of an entry called void, ignore or unlabeled, and those of value 255, are void.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.files import MalformedError, read_lines, read_text, shorten, storable
from cvtrain.data.table import Classes

FOUND: tuple[str, ...] = (
    "palette.txt",
    "palette.csv",
    "palette.json",
    "class_dict.csv",
    "label_colors.txt",
    "labelmap.txt",
)
"""Names of palettes that are read where none is named, if the masks are in colors."""

VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled"})
"""Entries, in any case, whose pixels belong to no class."""

_VOID = 255
_HIGHEST = 65535
_PART = r"[\s,;:]+"
_NUMBERS = r"(\d+)" + _PART + r"(\d+)" + _PART + r"(\d+)"
_FORMS = (
    re.compile(rf"(?P<name>.*\D){_PART}{_NUMBERS}[\s,;:]*"),
    re.compile(rf"{_NUMBERS}{_PART}(?P<name>.*\D.*)"),
    re.compile(rf"(?P<name>.*\S){_PART}#(?P<hex>[0-9a-fA-F]{{6}})[\s,;:]*"),
    re.compile(rf"#(?P<hex>[0-9a-fA-F]{{6}}){_PART}(?P<name>.*\S)"),
    re.compile(rf"(?P<name>.*\D){_PART}(?P<value>\d+)[\s,;:]*"),
    re.compile(rf"(?P<value>\d+){_PART}(?P<name>.*\D.*)"),
)


@dataclass(frozen=True)
class Palette:
    """The classes of masks by their pixels.

    Attributes:
        classes: names in the order of the file, void left out.
        colors: values are colors, ``R << 16 | G << 8 | B``; False: pixel values.
        values: int64 ``(K,)``, one per class.
        void: int64 ``(V,)`` of entries that are void.
        places: int64 ``(K,)``, the number of each class among the entries, from 0.
        void_places: int64 ``(V,)``, the same of those that are void.
    """

    classes: Classes
    colors: bool
    values: np.ndarray
    void: np.ndarray
    places: np.ndarray
    void_places: np.ndarray


@dataclass(frozen=True)
class _Entry:
    name: str
    color: bool
    value: int
    where: str


def read_palette(path: Path) -> Palette:
    """The palette of a file, by its extension JSON or text.

    Raises:
        MalformedError: it cannot be read, or an entry is none, with its line.
    """
    entries = list(_of_json(path) if path.suffix.lower() == ".json" else _of_lines(path))
    if not entries:
        raise MalformedError("no class in it; write one per line, NAME R G B")
    _check(entries)
    ids = range(len(entries))
    void = [_is_void(entry) for entry in entries]
    values = np.array([entry.value for entry in entries], np.int64)
    empty = np.array(void, bool)
    return Palette(
        classes=Classes.from_names(e.name for e, out in zip(entries, void, strict=True) if not out),
        colors=entries[0].color,
        values=values[~empty],
        void=values[empty],
        places=np.array(ids, np.int64)[~empty],
        void_places=np.array(ids, np.int64)[empty],
    )


def color_name(value: int) -> str:
    """A packed color as a message writes it: ``128 64 128``."""
    return f"{value >> 16 & 255} {value >> 8 & 255} {value & 255}"


def _is_void(entry: _Entry) -> bool:
    return entry.name.lower() in VOID_NAMES or (not entry.color and entry.value == _VOID)


def _of_lines(path: Path) -> Iterable[_Entry]:
    lines = [(n, line) for n, line in read_lines(path) if not line.startswith("# ")]
    lines = [(n, line) for n, line in lines if not re.match(r"#(?![0-9a-fA-F]{6}\b)", line)]
    for k, (number, line) in enumerate(lines):
        entry = _line(line, f"line {number}")
        if entry is None and k == 0 and not re.search(r"\d", line):
            continue  # a header
        if entry is None:
            raise MalformedError(
                f"{shorten(line)!r} is neither NAME R G B nor NAME VALUE", f"line {number}"
            )
        yield entry


def _line(line: str, where: str) -> _Entry | None:
    for form in _FORMS:
        found = form.fullmatch(line)
        if found is None:
            continue
        groups = found.groupdict()
        name = found["name"].strip(" \t,;:\"'")
        if not name:
            return None
        if groups.get("hex"):
            return _Entry(storable(name), True, int(groups["hex"], 16), where)
        if groups.get("value"):
            return _Entry(storable(name), False, _value(int(groups["value"]), where), where)
        numbers = [v for v in found.groups() if v is not None and v.isdigit()][:3]
        return _Entry(storable(name), True, _packed([int(v) for v in numbers], where), where)
    return None


def _of_json(path: Path) -> Iterable[_Entry]:
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise MalformedError(
            f"not JSON: {shorten(error)}", f"line {line}" if line else ""
        ) from error
    if isinstance(document, dict):
        listed = document.get("labels", document.get("categories"))
        if not isinstance(listed, list):
            for name, given in document.items():
                yield _record(name, given, repr(shorten(name)))
            return
        document = listed
    if not isinstance(document, list):
        raise MalformedError("an object or a list of classes is expected")
    for n, record in enumerate(document):
        where = f"entry {n + 1}"
        if not isinstance(record, dict):
            raise MalformedError(f"{shorten(record)} has no name", where)
        keys = ("color", "colour", "rgb", "value", "id")
        given = next((record[key] for key in keys if record.get(key) is not None), None)
        yield _record(record.get("name"), given, where)


def _record(name: Any, given: Any, where: str) -> _Entry:
    if not isinstance(name, str) or not name.strip():
        raise MalformedError(f"the name {shorten(name)!r} is none", where)
    name = storable(name.strip())
    if isinstance(given, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        return _Entry(name, True, int(given[1:], 16), where)
    if type(given) is int:
        return _Entry(name, False, _value(given, where), where)
    if isinstance(given, list) and len(given) >= 3 and all(type(v) is int for v in given):
        return _Entry(name, True, _packed(given[:3], where), where)
    raise MalformedError(f"{shorten(given)} is neither [R, G, B] nor a pixel value", where)


def _packed(color: list[int], where: str) -> int:
    if not all(0 <= v <= 255 for v in color):
        raise MalformedError(f"the color {shorten(color)} is not of numbers 0 to 255", where)
    return color[0] << 16 | color[1] << 8 | color[2]


def _value(value: int, where: str) -> int:
    if not 0 <= value <= _HIGHEST:
        raise MalformedError(f"the value {value} is not in 0..{_HIGHEST}", where)
    return value


def _check(entries: list[_Entry]) -> None:
    """Colors or values throughout, each once, and so is each name of a class."""
    kinds = {entry.color for entry in entries}
    if len(kinds) > 1:
        odd = next(entry for entry in entries if entry.color != entries[0].color)
        raise MalformedError("some entries have colors, others pixel values", odd.where)
    names: dict[str, str] = {}
    values: dict[int, str] = {}
    for entry in entries:
        if entry.value in values:
            text = f"color {color_name(entry.value)}" if entry.color else f"value {entry.value}"
            other = values[entry.value]
            raise MalformedError(f"{entry.name!r} has the {text} of {other!r}", entry.where)
        values[entry.value] = entry.name
        if not _is_void(entry) and names.setdefault(entry.name, entry.where) != entry.where:
            message = f"class {entry.name!r} stands on {names[entry.name]} already"
            raise MalformedError(message, entry.where)
