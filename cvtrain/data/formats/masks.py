"""Pairs of an image and a mask whose pixels are class indices; 255 is void."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvtrain.data.formats.base import SPLITS, Reader, problem
from cvtrain.data.formats.classes import check_names, given_names
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    find_split_folder,
    images_of,
    inside,
    is_image,
    read_lines,
    shorten,
    stem,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.packing import Packer
from cvtrain.data.table import Classes, Problem, Split, Strings
from cvtrain.errors import DataError

VOID = 255
"""The value of pixels that belong to no class."""


@dataclass(frozen=True)
class _Place:
    """Folders of a split's images and masks, and the file that lists it (None: all)."""

    images: str
    masks: str
    list: str | None = None


class MasksReader(Reader):
    """Reads image/mask pairs.

    Args:
        root: folder of the data set, with ``images/train`` and ``masks/train`` (the same for val
            and test), ``train/images`` and ``train/masks``, or ``images`` and ``masks`` alone,
            which is one split, ``train``.
        names: class names, value 0 first. None: the lines of classes.txt, else the values found in
            the masks.
        images: name of the folder of images.
        masks: name of the folder of masks.
        lists: folder of ``train.txt``, ``val.txt``, each with one name without extension a line,
            where images of all splits lie in one folder (VOC: ``images=JPEGImages
            masks=SegmentationClass lists=ImageSets/Segmentation``). None: folders are the splits.
        mask_suffix: what a mask's name has after that of its image (``_mask``).
        mask_values: pixel value of each class. None: the class index; but where there are two
            classes and all masks of all splits together hold exactly 0 and 255, those.

    Masks are only opened where their values are not known otherwise: with two classes until one
    mask tells, without class names all of them.
    """

    layout = "masks: images/{train,val}/* + masks/{train,val}/*.png (+ classes.txt)"

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str] | None = None,
        images: str = "images",
        masks: str = "masks",
        lists: str | None = None,
        mask_suffix: str = "",
        mask_values: Sequence[int] | None = None,
    ) -> None:
        super().__init__(root)
        self._suffix = mask_suffix
        self._values = None if mask_values is None else _values(mask_values)
        self._places = _places(self.root, images, masks, lists)
        if not self._places:
            raise self._not_this(f"no folders {images!r} and {masks!r} found")
        try:
            self._names = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        self._fault: MalformedError | None = None
        if self._names is None and (self.root / "classes.txt").is_file():
            try:
                lines = [storable(line) for _, line in read_lines(self.root / "classes.txt")]
                check_names(lines)
                self._names = Classes.from_names(lines)
            except MalformedError as error:
                self._fault = error
        given, known = self._values, self._names
        if given is not None and known is not None and len(given) != len(known):
            raise DataError(
                f"data.reader.mask_values has {len(given)} values for {len(known)} classes; "
                "give one for each"
            )
        self._files: dict[str, list[str]] = {}
        self._table: tuple[Classes, np.ndarray | None] | None = None

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"mask"})

    def splits(self) -> list[str]:
        return list(self._places)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        places = _places(root, "images", "masks", None)
        pairs = [
            place
            for place in places.values()
            if images_of(walk(root, place.images)) and images_of(walk(root, place.masks))
        ]
        if not pairs:
            return None
        return f"images and masks ({', '.join(f'{p.images}/ + {p.masks}/' for p in pairs)})"

    def _images_in(self, folder: str) -> list[str]:
        if folder not in self._files:
            self._files[folder] = images_of(walk(self.root, folder))
        return self._files[folder]

    def _read(self, split: str) -> Split:
        place = self._places[split]
        problems: list[Problem] = []

        def say(code: str, file: str, message: str, **more: Any) -> None:
            problems.append(problem(code, file, message, split=split, **more))

        packer = Packer()
        masks: list[str] = []
        candidates = self._masks_of(place)
        images = self._images_of(place)
        for key, where in self._keys(place, say):
            image = images.get(key, [])
            name = image[0] if image else storable(f"{posixpath.join(place.images, key)}.jpg")
            row = packer.image(name)
            mask = candidates.get(key, [])
            masks.append(mask[0] if mask else "")
            if not image:
                message = f"there is no image {stem(name)}.*"
                say("image-missing", place.list or name, message, where=where, image=row)
            if not mask:
                wanted = f"{posixpath.join(place.masks, key)}{self._suffix}.png"
                say("mask-missing", name, f"there is no mask {wanted}", image=row)
            if len(image) > 1 or len(mask) > 1:
                message = f"{', '.join([*image, *mask])} go by one name"
                say("image-ambiguous", name, message, image=row)
        if place.list is None:
            for key in sorted(candidates.keys() - images.keys()):
                wanted = posixpath.join(place.images, key)
                say("mask-without-image", candidates[key][0], f"there is no image {wanted}.*")
        classes, values = self._classes()
        if self._fault is not None:
            where, message = self._fault.where, self._fault.message
            say("classes-missing", "classes.txt", message, where=where)
        elif len(classes) < 2:
            message = f"masks need two classes or more (background is one), not {len(classes)}"
            say("classes-missing", "classes.txt", message)
        if not masks:
            say("empty-split", place.list or place.images, "no images")
        table = packer.table(self.root, classes, masks=Strings(masks), mask_values=values)
        return Split(split, table, problems)

    def _keys(self, place: _Place, say: Any) -> list[tuple[str, str]]:
        """Names without extension of a split, below its folder, each with its line in the list."""
        if place.list is None:
            return [(key, "") for key in sorted(self._images_of(place))]
        try:
            lines = read_lines(self.root / place.list)
        except MalformedError as error:
            say("list-malformed", place.list, error.message, where=error.where)
            return []
        keys: dict[str, str] = {}
        for number, line in lines:
            key, where = stem(line) if is_image(line) else line, f"line {number}"
            if None in (below(self.root, folder, key) for folder in (place.images, place.masks)):
                say("path-outside-root", place.list, f"{line!r} leaves data.root", where=where)
            elif key in keys:
                message = f"{line!r} stands on {keys[key]} already"
                say("duplicate-file", place.list, message, where=where)
            else:
                keys[key] = where
        return list(keys.items())

    def _images_of(self, place: _Place) -> dict[str, list[str]]:
        """Name without extension -> images."""
        found: dict[str, list[str]] = {}
        for file in self._images_in(place.images):
            found.setdefault(inside(stem(file), place.images), []).append(file)
        return found

    def _masks_of(self, place: _Place) -> dict[str, list[str]]:
        """Name without extension and suffix -> masks."""
        found: dict[str, list[str]] = {}
        for file in self._images_in(place.masks):
            key = inside(stem(file), place.masks)
            if key.endswith(self._suffix):
                found.setdefault(key[: len(key) - len(self._suffix)], []).append(file)
        return found

    def _classes(self) -> tuple[Classes, np.ndarray | None]:
        """The classes and the values they have, from the names, else from all masks."""
        if self._table is None:
            names = self._names
            if self._fault is not None:
                self._table = (Classes((), ()), self._values)
            elif names is None:
                self._table = self._classes_by_values()
            elif self._values is None and len(names) == 2 and self._binary():
                self._table = (names, np.array([0, VOID], np.int64))
            else:
                self._table = (names, self._values)
        return self._table

    def _all_masks(self) -> list[str]:
        """The masks of all splits, those that have an image."""
        found: dict[str, None] = {}
        for place in self._places.values():
            masks = self._masks_of(place)
            keys = self._keys(place, lambda *args, **more: None)
            found.update(dict.fromkeys(masks[key][0] for key, _ in keys if key in masks))
        return list(found)

    def _binary(self) -> bool:
        """Whether the masks together hold exactly 0 and 255; stops at the first other value."""
        seen: set[int] = set()
        for mask in self._all_masks():
            seen |= mask_values(self.root / mask)
            if not seen <= {0, VOID}:
                return False
        return seen == {0, VOID}

    def _classes_by_values(self) -> tuple[Classes, np.ndarray | None]:
        seen: set[int] = set()
        for mask in self._all_masks():
            seen |= mask_values(self.root / mask)
        if self._values is not None:
            return Classes.from_names(str(v) for v in self._values), self._values
        if seen == {0, VOID}:
            return Classes.from_names(("background", "foreground")), np.array([0, VOID], np.int64)
        top = max((value for value in seen if 0 <= value < VOID), default=-1)
        return Classes.from_names(str(value) for value in range(top + 1)), None

    def _unlisted(self, used: set[str]) -> list[str]:
        tops = {place.images.split("/")[0] for place in self._places.values()}
        masks = tuple(f"{place.masks}/" for place in self._places.values())
        files = [f for top in sorted(tops) for f in walk(self.root, top)]
        return [f for f in unlisted_of(files, used) if not f.startswith(masks)]


def _values(given: Sequence[int]) -> np.ndarray:
    """int64 ``(K,)``: the pixel value of each class, checked.

    Raises:
        DataError: they are not different whole numbers from 0 to 255.
    """
    values = list(given)
    whole = all(type(value) is int and 0 <= value <= VOID for value in values)
    if not values or not whole or len(set(values)) < len(values):
        raise DataError(
            f"data.reader.mask_values={shorten(values)}: give a different whole number from 0 to "
            f"{VOID} for each class"
        )
    return np.array(values, np.int64)


def mask_values(path: Path) -> set[int]:
    """The pixel values of a mask; none where it cannot be read or has several channels.

    Such masks are the gate's to report. Bilevel images hold 0 and 255, palette images the indices.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            if image.mode in ("L", "P", "1"):
                counts = image.histogram()
                return {value for value in range(256) if counts[value]}
            if len(image.getbands()) == 1:
                return {int(v) for v in np.unique(np.asarray(image))}
            return set()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning):
        return set()


def _places(root: Path, images: str, masks: str, lists: str | None) -> dict[str, _Place]:
    """Split -> where it lies; empty where nothing is of this format."""
    for name in (images, masks, lists or ""):
        if below(root, "", name) is None:
            raise DataError(f"data.reader: {name!r} leaves data.root; give a folder in it")
    both = (root / images).is_dir() and (root / masks).is_dir()
    if lists is not None:
        files = {s: f"{lists}/{s}.txt" for s in SPLITS if (root / lists / f"{s}.txt").is_file()}
        return {s: _Place(images, masks, file) for s, file in files.items()} if both else {}
    found = {}
    for split, aliases in SPLITS.items():
        first = find_split_folder(root, images, aliases)
        if first is not None and (root / masks).is_dir():
            found[split] = _Place(first, f"{masks}/{posixpath.basename(first)}")
            continue
        for alias in aliases:
            if (root / alias / images).is_dir() and (root / alias / masks).is_dir():
                found[split] = _Place(f"{alias}/{images}", f"{alias}/{masks}")
                break
    if not found and both:
        found["train"] = _Place(images, masks)
    return found
