"""One mask file an object, as of the Data Science Bowl 2018: ID/images/ID.png, ID/masks/*.png."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.data.formats.base import SPLITS, Reader, problem
from cvtrain.data.formats.classes import check_names, given_names
from cvtrain.data.formats.files import (
    MalformedError,
    folders,
    images_of,
    inside,
    read_lines,
    stem,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.mask_objects import in_threads, read_object
from cvtrain.data.formats.packing import Packer
from cvtrain.data.formats.pairs import Pairs, Place, Say, describe, say_to
from cvtrain.data.table import Classes, Problem, Split, Strings
from cvtrain.errors import DataError

_STAGES = ("", "stage1_")  # of the Data Science Bowl's folders: stage1_train


@dataclass
class _Files:
    """What a split has: images, in order, with their masks, and what belongs to no image."""

    images: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """File, folder or name stem of its masks, mask files; no list of masks where that is ""."""
    orphans: list[str] = field(default_factory=list)


class ObjectMasksReader(Reader):
    """Reads objects that have a mask file each.

    Args:
        root: folder of the data set, with ``ID/images/ID.png`` and ``ID/masks/*.png`` in it, in
            ``train/`` and ``val/``, or in ``stage1_train/``; or ``images/[train/]NAME.png`` and
            ``masks/[train/]NAME_0.png``, ``NAME_1.png`` or ``masks/[train/]NAME/*.png``.
        names: class names. None: the lines of classes.txt, else one class, ``object``. Of several
            an object's is the one in its file's name (``NAME_cat_0.png``) or folder
            (``masks/NAME/cat/0.png``).
        images: name of the folder of images.
        masks: name of the folder of masks.

    Light pixels (half of the file's range or more) are the object; in a file without one those that
    are not 0. All masks are read at every start.
    """

    layout = (
        "object_masks: [train/]ID/images/ID.png + ID/masks/*.png, "
        "or images/NAME.png + masks/NAME_0.png, NAME_1.png"
    )

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str] | Mapping[Any, str] | None = None,
        images: str = "images",
        masks: str = "masks",
    ) -> None:
        super().__init__(root)
        self._images, self._masks = images, masks
        self._bowl = _bowl_splits(self.root, images, masks)
        self._pairs = None if self._bowl else Pairs(self.root, images, masks, mask_suffix="")
        if not self.splits():
            raise self._not_this(f"no folders {images!r} and {masks!r} found")
        self._fault: MalformedError | None = None
        self._classes = self._given(names)

    def _given(self, names: Any) -> Classes:
        try:
            given = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        if given is not None:
            return given
        if not (self.root / "classes.txt").is_file():
            return Classes.from_names(["object"])
        try:
            lines = [storable(line) for _, line in read_lines(self.root / "classes.txt")]
            check_names(lines)
            return Classes.from_names(lines)
        except MalformedError as error:
            self._fault = error
            return Classes((), ())

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"boxes", "segments"})

    def splits(self) -> list[str]:
        return list(self._bowl or (self._pairs.places if self._pairs else ()))

    @classmethod
    def detect(cls, root: Path) -> str | None:
        bowl = _bowl_splits(root, "images", "masks")
        if bowl:
            places = ", ".join(posixpath.join(folder, "*/masks") for folder in bowl.values())
            return f"a mask file an object ({places})"
        found = []
        pairs = Pairs(root, "images", "masks", mask_suffix="")
        for place in pairs.places.values():
            images, masks = pairs.images_of(place), pairs.masks_of(place)
            owners = [_owner(key, images) for key in masks]
            numbered = [o is not None and key != o for key, o in zip(masks, owners, strict=True)]
            several = len(set(owners)) < len(owners) or any(_numbered(key) for key in masks)
            if masks and all(numbered) and several:
                found.append(place)
        return f"a mask file an object ({describe(found)})" if found else None

    def _read(self, split: str) -> Split:
        problems: list[Problem] = []
        say = say_to(problems, problem, split)
        if self._bowl:
            files = _bowl_files(self.root, self._bowl[split], self._images, self._masks, say)
            where = self._bowl[split] or "."
        else:
            assert self._pairs is not None
            files = _named_files(self._pairs, self._pairs.places[split])
            where = self._pairs.places[split].images
        packer = Packer()
        of_objects: list[str] = []
        read = in_threads(read_object, [self.root / m for _, _, ms in files.images for m in ms])
        for image, base, masks in files.images:
            row = packer.image(image)
            if not base:
                say("mask-missing", image, "there is no folder of masks for it", image=row)
            for number, mask in enumerate(masks, 1):
                found = next(read)
                if isinstance(found, MalformedError):
                    say("object-unreadable", mask, found.message, image=row)
                    continue
                label = self._label(mask[len(base) :])
                at = packer.add(found.box, label, number, segment=found.segment)
                of_objects.append(mask)
                if label < 0:
                    message = (
                        f"none of the classes {', '.join(self._classes.names[:6])} in its name"
                    )
                    say("class-unknown", mask, message, image=row, annotation=at)
        for orphan in files.orphans:
            say("mask-without-image", orphan, "there is no image that its name begins with")
        if self._fault is not None:
            where_in, message = self._fault.where, self._fault.message
            say("classes-missing", "classes.txt", message, where=where_in)
        if not files.images:
            say("empty-split", where, "no images")
        table = packer.table(self.root, self._classes, object_files=Strings(of_objects))
        return Split(split, table, problems)

    def _label(self, rest: str) -> int:
        """The class that what a file's name has beside its image's says; -1: none."""
        if len(self._classes) < 2:
            return 0 if len(self._classes) else -1
        message = f"_{_words(stem(rest))}_"
        fits = [k for k, n in enumerate(self._classes.names) if f"_{_words(n)}_" in message]
        return max(fits, key=lambda k: len(self._classes.names[k]), default=-1)

    def _unlisted(self, used: set[str]) -> list[str]:
        if self._pairs is not None:
            return self._pairs.unlisted(used)
        files = [f for folder in self._bowl.values() for f in walk(self.root, folder)]
        part = f"/{self._images}/"
        return [f for f in unlisted_of(files, used) if part in f"/{f}"]


def _words(text: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", text.lower()).strip("_")


def _numbered(key: str) -> bool:
    return re.search(r"[_\-.]\d+$", key) is not None


def _owner(key: str, images: Mapping[str, Any]) -> str | None:
    """The image whose name a mask's begins with, the longest: ``a_1`` is of ``a``."""
    for cut in range(len(key), 0, -1):
        if key[:cut] in images and (cut == len(key) or key[cut] in "_-./ "):
            return key[:cut]
    return None


def _named_files(pairs: Pairs, place: Place) -> _Files:
    """Masks whose names begin with their image's."""
    images, masks = pairs.images_of(place), pairs.masks_of(place)
    files = _Files()
    of_image: dict[str, list[str]] = {key: [] for key in images}
    for key in sorted(masks, key=_natural):
        owner = _owner(key, images)
        if owner is None:
            files.orphans += masks[key]
        else:
            of_image[owner] += masks[key]
    for key in sorted(images):
        base = posixpath.join(place.masks, key)
        files.images += [(image, base, of_image[key]) for image in images[key][:1]]
    return files


def _natural(key: str) -> list[Any]:
    """Sorts ``a_2`` before ``a_10``."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", key)]


def _bowl_splits(root: Path, images: str, masks: str) -> dict[str, str]:
    """Split -> the folder of its ``ID/images``; empty where there are none."""
    found = {}
    for split, aliases in SPLITS.items():
        names = [f"{stage}{alias}" for alias in aliases for stage in _STAGES]
        there = next((n for n in names if _has_ids(root, n, images, masks)), None)
        if there is not None:
            found[split] = there
    if not found and _has_ids(root, "", images, masks):
        found["train"] = ""
    return found


def _has_ids(root: Path, folder: str, images: str, masks: str) -> bool:
    """Whether a folder of ``folder`` holds the image that it is named after, and masks."""
    for ident in folders(root, folder):
        below = root / folder / ident
        if (below / masks).is_dir() and (below / images).is_dir():
            named = images_of(walk(root, posixpath.join(folder, ident, images)))
            if any(stem(posixpath.basename(file)) == ident for file in named):
                return True
    return False


def _bowl_files(root: Path, folder: str, images: str, masks: str, say: Say) -> _Files:
    files = _Files()
    for ident in folders(root, folder):
        here = posixpath.join(folder, ident)
        own = images_of(walk(root, posixpath.join(here, images)))
        of_objects = images_of(walk(root, posixpath.join(here, masks)))
        if not own:
            if of_objects or images in folders(root, here):
                files.orphans += of_objects
                if not of_objects:
                    say("image-missing", here, f"there is no image in {here}/{images}")
            continue
        if len(own) > 1:
            message = f"{', '.join(inside(f, here) for f in own[:4])} have one folder of masks"
            say("image-ambiguous", own[0], message, rejects="nothing")
        base = posixpath.join(here, masks) if masks in folders(root, here) else ""
        of_objects.sort(key=_natural)
        files.images.append((own[0], base, of_objects if base else []))
    return files
