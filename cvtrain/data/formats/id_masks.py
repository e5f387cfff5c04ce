"""Masks whose pixels number objects: instance ids, as PNG of 8 or 16 bits or in colors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.base import Reader, problem
from cvtrain.data.formats.classes import given_names
from cvtrain.data.formats.files import MalformedError, below, shorten, stem
from cvtrain.data.formats.id_doubts import MaskLook, doubts, look
from cvtrain.data.formats.mask_objects import MaskObject, in_threads, objects_of, read_pixels
from cvtrain.data.formats.packing import Packer
from cvtrain.data.formats.pairs import Pairs, describe, known_pairs, say_to
from cvtrain.data.mask_file import VOID
from cvtrain.data.table import CROWD, Classes, Problem, Split, Strings
from cvtrain.errors import DataError


@dataclass(frozen=True)
class _Numbered:
    """A mask's objects, the class value of each, and what the mask as a whole looks like."""

    items: list[MaskObject]
    classes: list[int]
    look: MaskLook


class IdMasksReader(Reader):
    """Reads id-coded masks: all pixels of one value are one object.

    Args:
        root: folder of the data set, with ``images/train`` and ``instances/train`` (or without
            splits, see ``MasksReader``).
        names: class names by value, ``{24: person, 26: car}``, or a list: then the first is class 1
            of ``divisor`` and class 0 of ``classes``. None: one class, ``object``; with
            ``divisor`` or ``classes`` each value found is a class.
        images: name of the folder of images, ``.``: the root.
        masks: name of the folder of masks.
        lists: folder of ``train.txt``, ``val.txt``; None: folders are the splits.
        image_suffix, mask_suffix: as in ``MasksReader``.
        divisor: a value is ``class * divisor + number`` (Cityscapes instanceIds: 1000). A value
            below it is a class without numbers: of a named one a crowd region, else background.
        classes: folder of semantic masks of the same names (VOC: SegmentationClass), whose most
            frequent value below an object is its class.
        background: values that are no object.

    Masks in colors are objects by color, black is background. All masks are read at every start.
    """

    layout = "id_masks: images/{train,val}/* + instances/{train,val}/*.png, a number each object"

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str] | Mapping[Any, str] | None = None,
        images: str = "images",
        masks: str = "instances",
        lists: str | None = None,
        image_suffix: str = "",
        mask_suffix: str | None = None,
        divisor: int | None = None,
        classes: str | None = None,
        background: Sequence[int] = (0,),
    ) -> None:
        super().__init__(root)
        if divisor is not None and (type(divisor) is not int or divisor < 2):
            raise DataError(f"data.reader.divisor={divisor}: give a whole number from 2, as 1000")
        if divisor is not None and classes is not None:
            raise DataError("data.reader.divisor and data.reader.classes: give one of them")
        if any(type(value) is not int for value in background):
            raise DataError(f"data.reader.background={shorten(list(background))}: give numbers")
        self._divisor, self._background = divisor, [int(v) for v in background]
        self._pairs = Pairs(self.root, images, masks, lists, image_suffix, mask_suffix)
        if not self._pairs.places:
            raise self._not_this(f"no folders {images!r} and {masks!r} found")
        self._semantic: str | None = None
        if classes is not None:
            self._semantic = below(self.root, "", classes)
            if self._semantic is None or not (self.root / self._semantic).is_dir():
                raise DataError(f"data.reader.classes={classes}: no such folder in {self.root}")
        self._masks_folder = str(below(self.root, "", masks))
        self._names = self._given(names)
        self._objects: dict[str, list[_Numbered | MalformedError]] = {}

    def _given(self, names: Any) -> dict[int, str] | None:
        """Class value -> name."""
        if isinstance(names, Mapping):
            if not all(str(key).isdecimal() for key in names):
                raise DataError(f"data.reader.names={shorten(dict(names))}: give VALUE: NAME")
            given_names([str(name) for name in names.values()])
            return {int(key): str(name) for key, name in names.items()}
        try:
            given = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        first = 1 if self._divisor is not None else 0
        return None if given is None else dict(enumerate(given.names, first))

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"boxes", "segments"})

    def splits(self) -> list[str]:
        return list(self._pairs.places)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        known = known_pairs(Pairs(root, "images", "instances"))
        return f"images and masks of numbered objects ({describe(known)})" if known else None

    def _read(self, split: str) -> Split:
        problems: list[Problem] = []
        say = say_to(problems, problem, split)
        packer = Packer()
        listed = list(self._pairs.pack(split, Packer(), say))
        values = self._class_values()
        label_of = {value: k for k, value in enumerate(values)}
        found = iter(self._parsed(split, [mask for _, _, mask in listed if mask]))
        files: list[str] = []
        looks: list[MaskLook] = []
        for _, image, mask in listed:
            row = packer.image(image)
            if not mask:
                continue
            objects = next(found)
            if isinstance(objects, MalformedError):
                say("mask-unreadable", mask, objects.message, image=row)
                continue
            looks.append(objects.look)
            for item, value in zip(objects.items, objects.classes, strict=True):
                crowd = self._divisor is not None and item.value < self._divisor
                if crowd and value not in label_of:
                    continue  # a class that is not counted in objects: sky, road
                label = label_of.get(value, -1)
                flags = CROWD if crowd else 0
                at = packer.add(item.box, label, item.value, flags, item.segment)
                files.append(mask)
                if label < 0:
                    message = f"class {value} is not among {shorten(list(label_of))}"
                    where = f"object {item.value}"
                    say("class-unknown", mask, message, where=where, image=row, annotation=at)
        if self._divisor is None:
            for code, message in doubts(looks, split, self._background):
                say(code, self._masks_folder, message)
        names = [(self._names or {}).get(value, str(value)) for value in values]
        if self._names is None and self._divisor is None and self._semantic is None:
            names = ["object"]
        ids = tuple(values) if names != ["object"] else (0,)
        table = packer.table(self.root, Classes(tuple(names), ids), object_files=Strings(files))
        known = frozenset[str]() if self._names is None else None
        return Split(split, table, problems, known=known)

    def _class_values(self) -> list[int]:
        """The value of each class, of the names or of all splits together."""
        if self._names is not None:
            values = list(self._names)
            return [v for v in values if v not in self._background] if self._semantic else values
        if self._divisor is None and self._semantic is None:
            return [0]
        seen: set[int] = set()
        for split in self.splits():
            masks = [mask for _, _, mask in self._pairs.pack(split, Packer(), _silent) if mask]
            for found in self._parsed(split, masks):
                if not isinstance(found, MalformedError):
                    numbered = zip(found.items, found.classes, strict=True)
                    seen |= {v for o, v in numbered if o.value >= (self._divisor or 0)}
        return sorted(seen)

    def _parsed(self, split: str, masks: list[str]) -> list[Any]:
        if split not in self._objects:
            paths = [self.root / mask for mask in masks]
            self._objects[split] = list(in_threads(self._parse, paths))
        return self._objects[split]

    def _parse(self, path: Path) -> _Numbered:
        pixels = read_pixels(path)
        objects = objects_of(pixels, self._background)
        seen = look(pixels, objects)
        if self._divisor is not None:
            by = self._divisor
            classes = [o.value // by if o.value >= by else o.value for o in objects]
            return _Numbered(objects, classes, seen)
        if self._semantic is None:
            return _Numbered(objects, [0] * len(objects), seen)
        name = path.relative_to(self.root / self._masks_folder).as_posix()
        semantic = read_pixels(_beside(self.root / self._semantic, name))
        if semantic.shape != pixels.shape:
            size, own = (f"{a.shape[1]} x {a.shape[0]}" for a in (semantic, pixels))
            raise MalformedError(f"its mask of classes is {size}, it is {own} pixels")
        classes = _majorities(pixels, semantic, [o.value for o in objects])
        return _Numbered(objects, classes, seen)

    def _unlisted(self, used: set[str]) -> list[str]:
        return self._pairs.unlisted(used)


def _silent(*args: Any, **more: Any) -> None:
    """Problems are told when the split itself is read."""


def _beside(folder: Path, name: str) -> Path:
    """The file of that name in another folder, whatever its extension."""
    path = folder / name
    if path.is_file():
        return path
    return next(iter(sorted(path.parent.glob(f"{Path(stem(name)).name}.*"))), path)


def _majorities(pixels: np.ndarray, semantic: np.ndarray, values: list[int]) -> list[int]:
    """For each object the class value that most of its pixels have, void and 0 only if all do."""
    order = np.array(values, np.int64)
    at = np.minimum(np.searchsorted(order, pixels), max(0, len(order) - 1))
    hit = order[at] == pixels if len(order) else np.zeros(pixels.shape, bool)
    keys, inverse = np.unique(semantic[hit], return_inverse=True)
    table = np.zeros((len(order), len(keys)), np.int64)
    np.add.at(table, (at[hit], inverse.ravel()), 1)
    table = table * np.where(np.isin(keys, (0, VOID)), 1, pixels.size)
    return [int(keys[k]) for k in table.argmax(1)] if len(keys) else []
