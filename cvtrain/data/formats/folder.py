"""Class folders: an image's class is the name of the folder it lies in."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cvtrain.data.formats.base import SPLITS, Reader, problem
from cvtrain.data.formats.classes import given_names
from cvtrain.data.formats.files import (
    MalformedError,
    find_split_folder,
    folders,
    images_of,
    inside,
    is_image,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.nested import describe, images_by_folder, nested
from cvtrain.data.formats.packing import Packer
from cvtrain.data.formats.siblings import not_classes
from cvtrain.data.table import Classes, Problem, Split
from cvtrain.errors import DataError

_NOT_CLASSES = frozenset(
    {"images", "labels", "masks", "annotations", "imagesets", "jpegimages", "vocdevkit", "data"}
)
"""Folder names, lower case, that make a folder look like something else than classes."""


class NotClassesError(DataError):
    """The folders hold something else than classes.

    Attributes:
        pairs: what they hold is known: images, and masks of these.
    """

    def __init__(self, message: str, pairs: bool) -> None:
        super().__init__(message)
        self.pairs = pairs


class FolderReader(Reader):
    """Reads class folders.

    Args:
        root: folder of the data set, with ``train/CLASS/*`` and ``val/CLASS/*`` (``valid``,
            ``test``), or ``CLASS/*`` alone, which is one split, ``train``. Images may lie deeper.
        names: classes in the order wanted; other folders are errors. None: the folders' names,
            sorted, all splits together.

    Fills ``image_labels``; there are no boxes.
    """

    layout = "folder: train/CLASS/*.jpg + val/CLASS/*.jpg, or CLASS/*.jpg for two classes or more"

    def __init__(self, root: str | Path, names: Sequence[str] | None = None) -> None:
        super().__init__(root)
        try:
            self._given = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        self._splits = _split_folders(self.root)
        self._files = walk(self.root)
        if not self._splits:
            if not any(is_image(f) and "/" in f for f in self._files):
                raise self._not_this("no folders with images found")
            self._splits = {"train": ""}
        if self._given is None:
            self._refuse_pairs()
        if not any(self._splits.values()):
            classes = {name.lower() for name in self._classes_of("train")}
            if sum(bool(classes.intersection(aliases)) for aliases in SPLITS.values()) > 1:
                raise self._not_this("the folders of the splits hold images, but no class folders")
        self._tables = {split: self._classes_of(split) for split in self._splits}

    def _refuse_pairs(self) -> None:
        """Raise NotClassesError where folders hold images and what is said about them."""
        for place in self._splits.values():
            held: dict[str, list[str]] = {}
            for file in images_of(self._files):
                here = not place or file.startswith(f"{place}/")
                parts = inside(file, place).split("/") if here else []
                if len(parts) > 1:
                    held.setdefault(posixpath.join(place, parts[0]), []).append(file)
            found = not_classes(self.root, held)
            if found is not None:
                message = f"{self.root}: {self._what_they_are(place, *found)}"
                raise NotClassesError(message, found[0] != found[1])

    def _what_they_are(self, place: str, images: str, others: str) -> str:
        from cvtrain.data.formats.auto import looks_like

        message = f"{images}/ and {others}/ hold images and their masks, not classes"
        if images == others:
            message = f"the folder {images}/ is not a class by its name"
        found = looks_like(self.root)
        if found is not None:
            return f"{message}; it looks like {found[1]}: say data={found[0]}"
        words = [posixpath.basename(folder) if place else folder for folder in (images, others)]
        if images == others:
            return f"{message}; if it is one, name all classes: data.reader.names=[...]"
        return (
            f"{message}: say data=masks data.reader.images={words[0]} data.reader.masks={words[1]} "
            "task=semantic_segmentation; if they are classes, name them: data.reader.names=[...]"
        )

    def _classes_of(self, split: str) -> list[str]:
        """Class folders of a split; in a root without splits those that hold images."""
        place = self._splits[split]
        found = folders(self.root, place)
        if place:
            return found
        filled = self._filled(split)
        return [name for name in found if name in filled]

    def _filled(self, split: str) -> set[str]:
        """Class folders of a split that hold images."""
        prefix = f"{self._splits[split]}/".lstrip("/")
        below = (f[len(prefix) :] for f in images_of(self._files) if f.startswith(prefix))
        return {f.split("/", 1)[0] for f in below if "/" in f}

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"label"})

    def splits(self) -> list[str]:
        return list(self._splits)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        try:
            reader = cls(root)
        except NotClassesError as error:
            if error.pairs:
                raise
            return None
        except DataError:
            return None
        names = {name for split in reader.splits() for name in reader._filled(split)}
        places = [place for place in reader._splits.values() if place]
        if not names or any(name.lower() in _NOT_CLASSES for name in names):
            return None
        if not places and len(names) < 2:
            for found in reader._inside("train"):
                if found.code == "folders-nested":
                    raise DataError(f"{root}: {found.message}")
            return None
        where = ", ".join(f"{place}/" for place in places) or "no split folders"
        return f"class folders ({where}; {len(names)} classes)"

    def _classes(self) -> Classes:
        if self._given is not None:
            return self._given
        names = {name for table in self._tables.values() for name in table}
        if "train" in self._tables:  # an empty folder elsewhere names no class that train lacks
            filled = {name for split in self._tables for name in self._filled(split)}
            names = filled | set(self._tables["train"])
        return Classes.from_names(sorted(names))

    def _read(self, split: str) -> Split:
        classes = self._classes()
        index = {name: i for i, name in enumerate(classes.names)}
        place = self._splits[split]
        prefix = f"{place}/" if place else ""
        packer = Packer()
        labels: list[int] = []
        problems = self._inside(split)
        for file in images_of(self._files):
            parts = file[len(prefix) :].split("/") if file.startswith(prefix) else []
            if len(parts) < 2:
                continue  # lies in no class folder: unlisted
            row = packer.image(file)
            labels.append(index.get(parts[0], -1))
            if labels[-1] < 0:
                message = f"folder {parts[0]!r} is not among the class names"
                found = problem(
                    "class-unknown", file, message, split=split, image=row, rejects="image"
                )
                problems.append(found)
        if not labels:
            problems.append(problem("empty-split", place, "no images", split=split))
        table = packer.table(self.root, classes, image_labels=np.array(labels, np.int64))
        return Split(split, table, problems, known=self._known())

    def _inside(self, split: str) -> list[Problem]:
        """What is to be said of folders inside of class folders, where images lie.

        An error where one class folder alone holds others: these are the classes; or where class
        folders hold those of splits. Classes that were given by name are as they were meant.
        """
        place = self._splits[split]
        inner = {
            name: held
            for name, held in images_by_folder(self._files, place, self._filled(split)).items()
            if any(held)
        }
        if not inner:
            return []
        found, advice = nested(self.root, place, inner, len(self._classes()))
        code = "folders-nested" if found and self._given is None else "folders-inside"
        file = posixpath.join(place, next(iter(inner)))
        message = f"{describe(place, inner)}{f': {advice}' if code == 'folders-nested' else ''}"
        return [problem(code, file, message, split=split)]

    def _known(self) -> frozenset[str] | None:
        """The classes that train has a folder of; None: all of the table."""
        if self._given is not None or "train" not in self._tables:
            return None
        return frozenset(self._tables["train"])

    def _unlisted(self, used: set[str]) -> list[str]:
        return unlisted_of(self._files, used)


def _split_folders(root: Path) -> dict[str, str]:
    """Split -> its folder, where that holds folders; empty for classes in the root itself.

    A folder ``train`` that holds images and no folders is a class of vehicles.
    """
    found = {}
    for split, aliases in SPLITS.items():
        place = find_split_folder(root, "", aliases)
        if place is None:
            continue
        direct = any(is_image(p.name) for p in (root / place).iterdir())
        if folders(root, place) or not direct:
            found[split] = posixpath.basename(place)
    return found if any(folders(root, place) for place in found.values()) else {}
