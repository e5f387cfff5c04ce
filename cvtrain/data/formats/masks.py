"""Pairs of an image and a mask whose pixels are class indices, values or colors."""

from __future__ import annotations

import os.path
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvtrain.data.formats.base import Reader, problem
from cvtrain.data.formats.classes import check_names, given_names
from cvtrain.data.formats.files import MalformedError, read_lines, shorten, storable
from cvtrain.data.formats.packing import Packer
from cvtrain.data.formats.pairs import Pairs, describe, known_pairs, say_to
from cvtrain.data.formats.palette import FOUND, Palette, read_palette
from cvtrain.data.mask_file import VOID, is_lossy, levels_of, mask_pixels
from cvtrain.data.table import Classes, Problem, Split, Strings
from cvtrain.errors import DataError

_HIGHEST = 65535


@dataclass(frozen=True)
class _Pixels:
    """Classes, the pixel value of each (None: its index), void values, whether they are colors."""

    classes: Classes
    values: np.ndarray | None = None
    void: np.ndarray | None = None
    colors: bool = False


class MasksReader(Reader):
    """Reads image/mask pairs.

    Args:
        root: folder of the data set, with ``images/train`` and ``masks/train`` (the same for val
            and test; ``train2017`` is train), ``train/images`` and ``train/masks``, ``images`` and
            ``masks`` alone, which is one split, ``train``, or ``train`` and ``train_masks``. Where
            there are none, ``image``, ``img`` and ``mask`` are looked for.
        names: class names, value 0 first, or names by pixel value. None: those of the palette or
            the lines of classes.txt, else the values found in the masks.
        images: name of the folder of images, ``.``: the root.
        masks: name of the folder of masks.
        lists: folder of ``train.txt``, ``val.txt``, each with one name without extension a line,
            where images of all splits lie in one folder (VOC: ``images=JPEGImages
            masks=SegmentationClass lists=ImageSets/Segmentation``). None: folders are the splits.
        image_suffix: what an image's name has after what it shares with its mask
            (``_leftImg8bit``).
        mask_suffix: what a mask's name has after it (``_mask``). None: what all masks have.
        mask_values: pixel value of each class, 0..65535. None: the class index; but where there are
            two classes and all masks of all splits together hold exactly 0 and 255, those.
        mask_void: pixel values that are void beside 255.
        palette: file, below the root or anywhere, of each class's color or pixel value, see
            ``cvtrain.data.formats.palette``. None: one of ``palette.FOUND`` in the root, which is
            only used where masks are in colors.

    The values of JPEGs are never exactly what was saved: those that crowd around a few levels count
    as these levels; where they do not, that is an error.

    Attributes:
        by_value: pixel values or a palette were given, so that it is settled what counts of a
            palette file: its indices or its colors.

    Masks are only opened where their values are not known otherwise: with two classes until one
    mask tells, with a palette that nobody named until one has colors, without class names all.
    """

    layout = "masks: images/{train,val}/* + masks/{train,val}/*.png (+ classes.txt or palette.txt)"

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str] | Mapping[Any, str] | None = None,
        images: str = "images",
        masks: str = "masks",
        lists: str | None = None,
        image_suffix: str = "",
        mask_suffix: str | None = None,
        mask_values: Sequence[int] | None = None,
        mask_void: Sequence[int] | None = None,
        palette: str | None = None,
    ) -> None:
        super().__init__(root)
        if isinstance(names, Mapping) and mask_values is None and _are_values(names):
            mask_values, names = [int(key) for key in names], list(names.values())
        self._values = None if mask_values is None else _values("mask_values", mask_values)
        self.by_value = mask_values is not None or palette is not None
        self._void = None if mask_void is None else _values("mask_void", mask_void)
        self._pairs = Pairs(self.root, images, masks, lists, image_suffix, mask_suffix)
        if not self._pairs.places:
            raise self._not_this(f"no folders {images!r} and {masks!r} found")
        self._fault: tuple[str, MalformedError] | None = None
        self._fault_code = "classes-missing"
        self._palette: Palette | None = None
        if palette is not None:
            self._read_palette(palette, names)
        self._names = self._given(names)
        given, known = self._values, self._names
        if given is not None and known is not None and len(given) != len(known):
            raise DataError(
                f"data.reader.mask_values has {len(given)} values for {len(known)} classes; "
                "give one for each"
            )
        self._typed = names is not None
        self._table: _Pixels | None = None
        self._by_masks = False  # the classes are the values that masks hold

    def _given(self, names: Any) -> Classes | None:
        """The names that were typed, else those of classes.txt."""
        try:
            given = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        if given is not None or self._palette is not None or self._fault is not None:
            return given
        if not (self.root / "classes.txt").is_file():
            return None
        try:
            lines = [storable(line) for _, line in read_lines(self.root / "classes.txt")]
            check_names(lines)
            return Classes.from_names(lines)
        except MalformedError as error:
            self._fault = ("classes.txt", error)
            return None

    def _read_palette(self, palette: str, names: Any) -> None:
        if names is not None or self._values is not None:
            raise DataError(
                f"data.palette={palette} names the classes and their pixels; omit "
                "data.reader.names and data.reader.mask_values"
            )
        expanded = Path(os.path.expanduser(palette))  # noqa: PTH111 (Path's own raises for ~nobody)
        path = self.root / expanded
        if not path.is_file():
            path = expanded
        if not path.is_file():
            raise DataError(
                f"data.palette={palette}: no such file, neither in {self.root} nor here"
            )
        try:
            self._palette = read_palette(path)
        except MalformedError as error:
            self._fault = (palette, error)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"mask"})

    def splits(self) -> list[str]:
        return list(self._pairs.places)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        pairs = Pairs(root, "images", "masks")
        known = known_pairs(pairs)
        return f"images and masks ({describe(known)})" if known else None

    def _read(self, split: str) -> Split:
        problems: list[Problem] = []
        say = say_to(problems, problem, split)
        packer = Packer()
        masks = [mask for _, _, mask in self._pairs.pack(split, packer, say)]
        pixels = self._classes()
        if self._fault is not None:
            file, error = self._fault
            say(self._fault_code, file, error.message, where=error.where)
        elif len(pixels.classes) < 2:
            count = len(pixels.classes)
            message = f"masks need two classes or more (background is one), not {count}"
            say("classes-missing", "classes.txt", message)
        table = packer.table(
            self.root,
            pixels.classes,
            masks=Strings(masks),
            mask_values=pixels.values,
            mask_void=pixels.void,
            mask_colors=pixels.colors,
        )
        return Split(split, table, problems, known=frozenset() if self._by_masks else None)

    def _classes(self) -> _Pixels:
        """The classes and the values they have: of palette or names, else of all masks."""
        if self._table is None:
            palette = self._palette if self._typed else self._palette or self._found_palette()
            if self._fault is not None:
                self._table = _Pixels(Classes((), ()), self._values, self._void)
            elif palette is not None:
                void = palette.void if self._void is None else _union(palette.void, self._void)
                self._table = _Pixels(palette.classes, palette.values, void, palette.colors)
            elif self._names is None:
                self._table = self._classes_by_values()
            elif self._values is None and len(self._names) == 2 and self._binary():
                self._table = _Pixels(self._names, np.array([0, VOID], np.int64), self._void)
            else:
                self._table = _Pixels(self._names, self._values, self._void)
        return self._table

    def _found_palette(self) -> Palette | None:
        """A palette in the root, where the masks have colors."""
        file = next((name for name in FOUND if (self.root / name).is_file()), None)
        if file is None or self._values is not None or self._fault is not None:
            return None
        by_index = self._names is not None  # then the indices of palette PNGs are classes
        seen: set[int] = set()
        colored = False
        lossy = np.zeros(256, np.int64)
        for mask in self._pairs.all_masks():
            colored = has_colors(self.root / mask, by_index)
            if colored:
                break
            seen |= set() if by_index else mask_values(self.root / mask, lossy)
        if by_index and not colored:
            return None
        try:
            palette = read_palette(self.root / file)
        except MalformedError as error:
            self._fault = (file, error)
            return None
        seen |= set(levels_of(lossy) or ()) if lossy.any() else set()
        return palette if colored or not palette.colors else _of_grays(palette, seen)

    def _binary(self) -> bool:
        """Whether the masks together hold exactly 0 and 255; stops at the first other value."""
        seen: set[int] = set()
        lossy = np.zeros(256, np.int64)
        for mask in self._pairs.all_masks():
            found = mask_values(self.root / mask, lossy)
            seen |= found
            if not seen <= {0, VOID}:
                return False
        levels = levels_of(lossy) if lossy.any() else []
        return seen | set(levels or ()) == {0, VOID}

    def _classes_by_values(self) -> _Pixels:
        if self._values is not None:
            names = Classes.from_names(str(v) for v in self._values)
            return _Pixels(names, self._values, self._void)
        self._by_masks = True
        seen: set[int] = set()
        lossy = np.zeros(256, np.int64)
        for mask in self._pairs.all_masks():
            seen |= mask_values(self.root / mask, lossy)
        if lossy.any():
            levels = levels_of(lossy)
            if levels is None:
                self._fault, self._fault_code = self._no_levels(lossy), "mask-levels"
                return _Pixels(Classes((), ()))
            seen |= set(levels)
        if seen == {0, VOID} and self._void is None:
            names = Classes.from_names(("background", "foreground"))
            return _Pixels(names, np.array([0, VOID], np.int64))
        void = {VOID, *([] if self._void is None else self._void.tolist())}
        values = sorted(value for value in seen - void if 0 <= value <= _HIGHEST)
        names = Classes.from_names(str(value) for value in values)
        gaps = values != list(range(len(values)))
        return _Pixels(names, np.array(values, np.int64) if gaps else None, self._void)

    def _no_levels(self, lossy: np.ndarray) -> tuple[str, MalformedError]:
        masks = self._pairs.all_masks()
        file = next((m for m in masks if m.lower().endswith((".jpg", ".jpeg"))), masks[0])
        message = (
            f"the JPEG masks hold {np.count_nonzero(lossy)} values, which crowd around no few "
            "levels"
        )
        return file, MalformedError(message)

    def _unlisted(self, used: set[str]) -> list[str]:
        return self._pairs.unlisted(used)


def _are_values(names: Mapping[Any, str]) -> bool:
    """Whether the keys are pixel values, not the indices 0, 1, 2 ..."""
    keys = [str(key) for key in names]
    return all(key.isdecimal() for key in keys) and set(keys) != set(map(str, range(len(keys))))


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.union1d(a, b).astype(np.int64)


def _values(key: str, given: Sequence[int]) -> np.ndarray:
    """int64 ``(K,)``: pixel values, checked.

    Raises:
        DataError: they are not different whole numbers from 0 to 65535.
    """
    values = list(given)
    whole = all(type(value) is int and 0 <= value <= _HIGHEST for value in values)
    if not values or not whole or len(set(values)) < len(values):
        each = " for each class" if key == "mask_values" else ""
        raise DataError(
            f"data.reader.{key}={shorten(values)}: give a different whole number from 0 to "
            f"{_HIGHEST}{each}"
        )
    return np.array(values, np.int64)


def mask_values(path: Path, lossy: np.ndarray | None = None) -> set[int]:
    """The pixel values of a mask; none where it cannot be read or is in colors.

    Such masks are the gate's to report. Bilevel images hold 0 and 255, palette images the indices.
    Of a JPEG they are added to ``lossy``, ``(256,)`` pixels of each value, where that is given.
    """
    found = _open(path, colors=False)
    if found is None:
        return set()
    pixels, is_jpeg = found
    if is_jpeg and lossy is not None:
        lossy += np.bincount(pixels.ravel(), minlength=256)
        return set()
    return {int(v) for v in np.unique(pixels)}


def has_colors(path: Path, by_index: bool = False) -> bool:
    """Whether any pixel of a mask is not gray; ``by_index``: never one of a palette file."""
    found = _open(path, colors=True, by_index=by_index)
    if found is None:
        return False
    pixels, _ = found
    return bool((pixels != (pixels & 255) * 0x010101).any())


def _of_grays(palette: Palette, seen: set[int]) -> Palette:
    """A palette for masks without a color: of its grays, else by index in the file's order."""
    grays = {v & 255 for v in [*palette.values.tolist(), *palette.void.tolist()]
             if v == (v & 255) * 0x010101}  # fmt: skip
    places = {*palette.places.tolist(), *palette.void_places.tolist(), VOID}
    if (seen <= grays and seen != {0}) or not seen <= places:
        return palette
    return replace(palette, colors=False, values=palette.places, void=palette.void_places)


def _open(path: Path, colors: bool, by_index: bool = False) -> tuple[np.ndarray, bool] | None:
    """The pixels of a mask, and whether it is a JPEG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            if by_index and image.mode in ("P", "PA"):
                return None
            pixels = mask_pixels(image, colors)
            return None if pixels is None else (pixels, is_lossy(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning):
        return None
