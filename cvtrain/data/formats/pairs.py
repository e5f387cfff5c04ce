"""Where the images and the masks of a data set lie, and which mask is which image's."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.data.formats.base import SPLITS
from cvtrain.data.formats.elsewhere import NAME_ALONE
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    find_split_folder,
    images_of,
    inside,
    is_absolute,
    is_image,
    read_lines,
    stem,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.packing import Packer
from cvtrain.errors import DataError

Say = Callable[..., None]
"""Takes code, file and message of a problem, and where, image ... by name."""

_COMMON = {
    ("images", "masks"): [
        (images, masks)
        for images in ("images", "image", "imgs", "img", "Images", "Image")
        for masks in ("masks", "mask", "Masks", "Mask")
    ]
}
"""Where the default names are not there: the others by which the same folders go."""

_YEARS = ("", "2017", "2014")  # of COCO's folders: train2017


@dataclass(frozen=True)
class Place:
    """Folders of a split's images and masks, and the file that lists it (None: all)."""

    images: str
    masks: str
    list: str | None = None


class Pairs:
    """Images and masks that go by one name, in folders of their own or side by side.

    Args:
        root: absolute path of the data set.
        images: name of the folder of images, ``.``: the root.
        masks: name of the folder of masks.
        lists: folder of ``train.txt``, ``val.txt``, each with one name without extension a line,
            where images of all splits lie in one folder. None: folders are the splits.
        image_suffix: what an image's name has after what it shares with its mask.
        mask_suffix: what a mask's name has after it. None: what all masks of the data set have.

    Attributes:
        places: split -> where it lies; empty where nothing is of this layout.
    """

    def __init__(
        self,
        root: Path,
        images: str,
        masks: str,
        lists: str | None = None,
        image_suffix: str = "",
        mask_suffix: str | None = None,
    ) -> None:
        self._root = root
        self._files: dict[str, list[str]] = {}
        self.places = _places(root, images, masks, lists)
        self._image_suffix = image_suffix
        self._mask_suffix = mask_suffix or ""
        if mask_suffix is None:
            self._mask_suffix = self._common_suffix()

    def pack(self, split: str, packer: Packer, say: Say) -> Iterator[tuple[int, str, str]]:
        """Puts each image of a split into ``packer``; gives its row, its file and its mask's.

        The mask is "" where there is none; halves that miss their other half are problems.
        """
        place = self.places[split]
        candidates = self.masks_of(place)
        images = self.images_of(place)
        for key, where in self.keys(place, say):
            image = images.get(key, [])
            base = posixpath.join(place.images, f"{key}{self._image_suffix}")
            name = image[0] if image else storable(f"{base}.jpg")
            row = packer.image(name)
            mask = candidates.get(key, [])
            if not image:
                message = f"there is no image {stem(name)}.*"
                say("image-missing", place.list or name, message, where=where, image=row)
            if not mask:
                wanted = f"{posixpath.join(place.masks, key)}{self._mask_suffix}.png"
                say("mask-missing", name, f"there is no mask {wanted}", image=row)
            if len(image) > 1 or len(mask) > 1:
                message = f"{', '.join([*image, *mask])} go by one name"
                say("image-ambiguous", name, message, image=row)
            yield row, name, mask[0] if mask else ""
        if place.list is None:
            for key in sorted(candidates.keys() - images.keys()):
                wanted = f"{posixpath.join(place.images, key)}{self._image_suffix}"
                say("mask-without-image", candidates[key][0], f"there is no image {wanted}.*")
        if not packer.files:
            say("empty-split", place.list or place.images or ".", "no images")

    def keys(self, place: Place, say: Say) -> list[tuple[str, str]]:
        """Names without extension of a split, below its folder, each with its line in the list."""
        if place.list is None:
            return [(key, "") for key in sorted(self.images_of(place))]
        try:
            lines = read_lines(self._root / place.list)
        except MalformedError as error:
            say("list-malformed", place.list, error.message, where=error.where)
            return []
        keys: dict[str, str] = {}
        for number, line in lines:
            key, where = stem(line) if is_image(line) else line, f"line {number}"
            if None in (below(self._root, folder, key) for folder in (place.images, place.masks)):
                message = f"{line!r} leaves data.root{NAME_ALONE if is_absolute(line) else ''}"
                say("path-outside-root", place.list, message, where=where)
            elif key in keys:
                message = f"{line!r} stands on {keys[key]} already"
                say("duplicate-file", place.list, message, where=where)
            else:
                keys[key] = where
        return list(keys.items())

    def images_of(self, place: Place) -> dict[str, list[str]]:
        """Name without extension and suffix -> images."""
        beside = place.images == place.masks  # then what ends in the suffix is a mask
        found: dict[str, list[str]] = {}
        for file in self._images_in(place.images):
            key = inside(stem(file), place.images)
            if beside and key.endswith(self._mask_suffix):
                continue
            if key.endswith(self._image_suffix):
                found.setdefault(key[: len(key) - len(self._image_suffix)], []).append(file)
        return found

    def masks_of(self, place: Place) -> dict[str, list[str]]:
        """Name without extension and suffix -> masks."""
        found: dict[str, list[str]] = {}
        for file in self._images_in(place.masks):
            key = inside(stem(file), place.masks)
            if key.endswith(self._mask_suffix):
                found.setdefault(key[: len(key) - len(self._mask_suffix)], []).append(file)
        return found

    def all_masks(self) -> list[str]:
        """The masks of all splits, those that have an image."""
        found: dict[str, None] = {}
        for place in self.places.values():
            masks = self.masks_of(place)
            keys = self.keys(place, lambda *args, **more: None)
            found.update(dict.fromkeys(masks[key][0] for key, _ in keys if key in masks))
        return list(found)

    def unlisted(self, used: set[str]) -> list[str]:
        """Image files of the images' folders that no split uses, masks left out."""
        tops = {place.images.split("/")[0] for place in self.places.values()}
        masks = tuple(f"{place.masks}/" for place in self.places.values())
        files = [f for top in sorted(tops) for f in walk(self._root, top)]
        return [f for f in unlisted_of(files, used) if not f.startswith(masks)]

    def _images_in(self, folder: str) -> list[str]:
        if folder not in self._files:
            self._files[folder] = images_of(walk(self._root, folder))
        return self._files[folder]

    def _common_suffix(self) -> str:
        """What every mask's name has after that of an image; "" where they do not all agree.

        A number is none: ``a_0.png`` and ``a_1.png`` are two masks of one image.
        """
        found: set[str] = set()
        for place in self.places.values():
            if place.images == place.masks:
                raise DataError(
                    f"images and masks lie in one folder, {place.images or '.'}; say "
                    "data.reader.mask_suffix=_mask, or what masks' names have after their images'"
                )
            keys = self.images_of(place).keys()
            for file in self._images_in(place.masks):
                name = inside(stem(file), place.masks)
                cuts = range(len(name), 0, -1)
                cut = next((k for k in cuts if name[:k] in keys), None)
                if cut is not None:
                    found.add(name[cut:])
                if "" in found or len(found) > 1:
                    return ""
        suffix = next(iter(found), "")
        return "" if suffix.strip("_-. ").isdigit() else suffix


def _places(root: Path, images: str, masks: str, lists: str | None) -> dict[str, Place]:
    """Split -> where it lies; empty where nothing is of this format."""
    for name in (images, masks, lists or ""):
        if below(root, "", name) is None:
            raise DataError(f"data.reader: {name!r} leaves data.root; give a folder in it")
    images, masks = str(below(root, "", images)), str(below(root, "", masks))
    if lists is None and (images, masks) in _COMMON:
        for pair in [(images, masks), *_COMMON[images, masks]]:
            found = _of_splits(root, *pair)
            if found:
                return found
        return _beside_splits(root, masks)
    both = (root / images).is_dir() and (root / masks).is_dir()
    if lists is not None:
        lists = str(below(root, "", lists))
        files = {s: f"{lists}/{s}.txt" for s in SPLITS if (root / lists / f"{s}.txt").is_file()}
        whole = [f"{lists}/{s}.txt" for s in ("trainval", "default")]  # CVAT writes default.txt
        there = [file for file in whole if (root / file).is_file()]
        if there and not files:
            files = {"train": there[0]}
        return {s: Place(images, masks, file) for s, file in files.items()} if both else {}
    return _of_splits(root, images, masks)


def _beside_splits(root: Path, masks: str) -> dict[str, Place]:
    """``train/`` + ``train_masks/``, ``train_images/`` + ``train_masks/``."""
    found = {}
    for split, aliases in SPLITS.items():
        for alias in aliases:
            theirs = find_split_folder(root, "", [f"{alias}_{masks}", f"{alias}-{masks}"])
            names = [f"{alias}_images", f"{alias}-images", alias]
            own = find_split_folder(root, "", names) if theirs else None
            if own and theirs:
                found[split] = Place(own, theirs)
                break
    return found


def _of_splits(root: Path, images: str, masks: str) -> dict[str, Place]:
    """``images/train`` + ``masks/train``, ``train/images`` + ``train/masks``, or both alone."""
    both = (root / images).is_dir() and (root / masks).is_dir()
    found = {}
    for split, aliases in SPLITS.items():
        first = find_split_folder(root, images, [a + year for year in _YEARS for a in aliases])
        if first is not None and (root / masks).is_dir():
            same = posixpath.join(masks, posixpath.basename(first))
            if not (root / same).is_dir():
                same = find_split_folder(root, masks, aliases) or same
            found[split] = Place(first, same)
            continue
        for alias in aliases:
            if (root / alias / images).is_dir() and (root / alias / masks).is_dir():
                found[split] = Place(f"{alias}/{images}", f"{alias}/{masks}")
                break
    if not found and both:
        found["train"] = Place(images, masks)
    return found


def known_pairs(pairs: Pairs) -> list[Place]:
    """The places where at least one mask is an image's."""
    places = pairs.places.values()
    return [p for p in places if not pairs.images_of(p).keys().isdisjoint(pairs.masks_of(p))]


def describe(places: list[Place]) -> str:
    """``images/train/ + masks/train/, ...``."""
    return ", ".join(f"{p.images or '.'}/ + {p.masks or '.'}/" for p in places)


def say_to(problems: list[Any], make: Callable[..., Any], split: str) -> Say:
    """A ``Say`` that appends to ``problems``."""

    def say(code: str, file: str, message: str, **more: Any) -> None:
        problems.append(make(code, file, message, split=split, **more))

    return say
