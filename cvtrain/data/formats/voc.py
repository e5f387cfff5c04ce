"""Pascal VOC: one XML file an image, boxes in pixels, a flag for difficult objects.

Format: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.base import SPLITS, Reader, problem
from cvtrain.data.formats.classes import given_names
from cvtrain.data.formats.elsewhere import NAME_ALONE
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    find_split_folder,
    folders,
    images_of,
    inside,
    is_absolute,
    is_image,
    is_there,
    read_lines,
    shorten,
    stem,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.packing import Packer
from cvtrain.data.formats.voc_xml import EntitiesError, VOCFile, read_xml
from cvtrain.data.table import DIFFICULT, Classes, Problem, Split, Strings
from cvtrain.errors import DataError

_IMAGES = ("JPEGImages", "images", "Images")
_LISTS = ("ImageSets/Main", "ImageSets")


@dataclass(frozen=True)
class _Place:
    """Where a split lies: folders of images and XML, and the file that lists it (None: all)."""

    images: str
    xml: str
    list: str | None


@dataclass
class _Parsed:
    """A split with class numbers in order of appearance."""

    packer: Packer = field(default_factory=Packer)
    xml: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Class name of each object that could not become a row."""


class VOCReader(Reader):
    """Reads Pascal VOC.

    Args:
        root: folder that holds ``Annotations/`` and ``JPEGImages/`` (or ``images/``), itself or as
            ``VOC2007/`` or ``VOCdevkit/VOC2007/``. Also read: ``train/``, ``val/`` or the root
            itself with images and XML side by side.
        one_based: subtract 1 from xmin and ymin: the original VOC counts pixels from 1 and
            includes the last one.
        names: classes in the order wanted; others are errors. None: those of all XML, sorted.
        folder: which folder below the root, where it holds several (``VOCdevkit/VOC2012``).
        train_list: list in ``ImageSets/Main`` of a split, without ``.txt``; also ``val_list``,
            ``test_list``. Without any list all annotated images are ``train``; with
            ``trainval.txt`` but neither train.txt nor val.txt, that is.

    The image of ``ID`` is ``JPEGImages/ID.*``, else what the XML's ``<filename>`` says; ``<path>``
    is not used. ``lines`` are object numbers from 1.
    """

    layout = (
        "VOC: Annotations/*.xml + JPEGImages/* (+ ImageSets/Main/train.txt, val.txt), "
        "or train/*.xml beside its images"
    )
    box_layout = "xyxy"

    def __init__(
        self,
        root: str | Path,
        one_based: bool = False,
        names: Sequence[str] | None = None,
        folder: str | None = None,
        train_list: str = "train",
        val_list: str = "val",
        test_list: str = "test",
    ) -> None:
        super().__init__(root)
        self._one_based = one_based
        try:
            self._names = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        lists = {"train": train_list, "val": val_list, "test": test_list}
        self._places = _places(self.root, folder, lists)
        if not self._places:
            raise self._not_this("no VOC annotations found")
        self._ids: dict[str, int] = {}  # class name -> number in order of appearance
        if self._names is not None:
            self._ids = {name: i for i, name in enumerate(self._names.names)}
        self._parsed: dict[str, _Parsed] = {}
        self._files: dict[str, list[str]] = {}

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"boxes"})

    def splits(self) -> list[str]:
        return list(self._places)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        places = _places(root, None, {split: split for split in SPLITS})
        found = dict.fromkeys(f"{place.xml or '.'}/*.xml" for place in places.values())
        return f"Pascal VOC ({', '.join(found)})" if found else None

    def _read(self, split: str) -> Split:
        if self._names is None:  # the classes are those of all splits together
            for name in self.splits():
                self._parse(name)
            names = sorted(self._ids)
            classes = Classes.from_names(names)
            position = {name: i for i, name in enumerate(names)}
            new = np.array([position[name] for name in self._ids], np.int64)
        else:
            classes = self._names
            new = np.arange(len(classes))
        parsed = self._parse(split)
        table = parsed.packer.table(self.root, classes, annotation_files=Strings(parsed.xml))
        known = table.labels >= 0
        table.labels[known] = new[table.labels[known]]
        problems = list(parsed.problems)
        place = self._places[split]
        if not len(table):
            file = place.list or place.images
            problems.append(problem("empty-split", file, "no images", split=split))
        elif not classes:
            problems.append(
                problem("classes-missing", place.xml, "no XML file has an object", split=split)
            )
        index = {name: i for i, name in enumerate(classes.names)}
        lost = np.array([index.get(name, -1) for name in parsed.lost], np.int64)
        named = frozenset[str]() if self._names is None else None
        return Split(split, table, problems, lost=lost, known=named)

    def _walk(self, folder: str) -> list[str]:
        if folder not in self._files:
            self._files[folder] = walk(self.root, folder)
        return self._files[folder]

    def _parse(self, split: str) -> _Parsed:
        if split not in self._parsed:
            self._parsed[split] = _SplitParser(self, split, self._places[split]).parse()
        return self._parsed[split]

    def _unlisted(self, used: set[str]) -> list[str]:
        places = dict.fromkeys(place.images for place in self._places.values())
        return unlisted_of(sorted({f for place in places for f in self._walk(place)}), used)


class _SplitParser:
    """Parses the XML files of one split."""

    def __init__(self, reader: VOCReader, split: str, place: _Place) -> None:
        self._reader, self._split, self._place = reader, split, place
        self._root = reader.root
        self._out = _Parsed()
        self._images: dict[str, list[str]] = {}  # path without extension -> images
        for file in images_of(reader._walk(place.images)):
            self._images.setdefault(stem(file), []).append(file)
        self._xml = {f for f in reader._walk(place.xml) if f.lower().endswith(".xml")}
        self._used_xml: set[str] = set()
        self._taken: set[str] = set()  # images that have a row

    def parse(self) -> _Parsed:
        """All images of the split, and XML files that no image goes with."""
        for ident, where in self._idents():
            self._image(ident, where)
        if self._place.list is None:
            for base in sorted(self._images):
                if not self._taken.intersection(self._images[base]):
                    self._image(inside(base, self._place.images), "")
        first = next(iter(self._reader._places.values()))
        if self._place.list is None or self._place == first:
            self._orphans()
        return self._out

    def _say(self, code: str, file: str, message: str, **more: Any) -> None:
        self._out.problems.append(problem(code, file, message, split=self._split, **more))

    def _idents(self) -> list[tuple[str, str]]:
        """The ids of the split with their place in the list; without a list those of all XML."""
        listed = self._place.list
        if listed is None:
            found = {inside(stem(f), self._place.xml) for f in self._xml}
            return [(ident, "") for ident in sorted(found)]
        try:
            lines = read_lines(self._root / listed)
        except MalformedError as error:
            self._say("list-malformed", listed, error.message, where=error.where)
            return []
        idents: dict[str, str] = {}
        for number, line in lines:
            ident = stem(line) if is_image(line) else line
            where = f"line {number}"
            if None in (below(self._root, folder, ident) for folder in self._folders()):
                message = f"{line!r} leaves data.root{NAME_ALONE if is_absolute(line) else ''}"
                self._say("path-outside-root", listed, message, where=where)
            elif ident in idents:
                message = f"{line!r} stands on {idents[ident]} already"
                self._say("duplicate-file", listed, message, where=where)
            else:
                idents[ident] = where
        return list(idents.items())

    def _folders(self) -> tuple[str, str]:
        return self._place.images, self._place.xml

    def _image(self, ident: str, where: str) -> None:
        base, xml = (str(below(self._root, folder, ident)) for folder in self._folders())
        xml = self._xml_file(xml)
        there = xml in self._xml
        parsed, fault = self._read_xml(xml) if there else (VOCFile(), None)
        image, doubt = self._find(base, parsed)
        listed = self._place.list
        if image is None and listed is None:
            return  # an XML file without its image: one of the orphans
        if there:
            self._used_xml.add(xml)
        name = storable(image or f"{base}.jpg")
        self._taken.add(name)
        row = self._out.packer.image(name, parsed.height, parsed.width)
        self._out.xml.append(xml if there else "")
        if image is None:
            message = f"there is no image {base}.*"
            self._say("image-missing", listed or xml, message, where=where, image=row)
        if doubt:
            self._say("image-ambiguous", name, doubt, image=row)
        if not there:
            message = f"there is no {xml}"
            self._say("annotation-missing", listed or name, message, where=where, image=row)
        elif fault is not None:
            code = "xml-entities" if isinstance(fault, EntitiesError) else "xml-malformed"
            self._say(code, xml, fault.message, where=fault.where, image=row)
        else:
            self._check_names(xml, parsed, name, row)
            self._add(xml, parsed, row)

    def _xml_file(self, path: str) -> str:
        """The XML file of an id, whatever the case of its extension."""
        upper = f"{path}.XML"
        return upper if upper in self._xml else f"{path}.xml"

    def _read_xml(self, xml: str) -> tuple[VOCFile, MalformedError | None]:
        try:
            return read_xml(self._root / xml), None
        except MalformedError as error:
            return VOCFile(), error

    def _find(self, base: str, parsed: VOCFile) -> tuple[str | None, str]:
        """The image of an id, and a doubt about it."""
        found = self._images.get(base, [])
        named = self._named(parsed)
        if len(found) > 1 and named not in found:
            return found[0], f"{', '.join(found)} go by one XML file"
        if found:
            return named if named in found else found[0], ""
        if named is None or named in self._taken or self._has_own_xml(named):
            return None, ""
        return named, ""

    def _has_own_xml(self, image: str) -> bool:
        ident = inside(stem(image), self._place.images)
        return self._xml_file(posixpath.join(self._place.xml, ident)) in self._xml

    def _named(self, parsed: VOCFile) -> str | None:
        """The image that ``<filename>`` names, where there is one."""
        for name in (parsed.filename, parsed.filename.replace("\\", "/")):
            path = below(self._root, self._place.images, name) if name else None
            if path and path in self._images.get(stem(path), ()):
                return path
        return None

    def _check_names(self, xml: str, parsed: VOCFile, image: str, row: int) -> None:
        """What ``<filename>`` and ``<path>`` say beside the file's own name."""
        filename = parsed.filename.replace("\\", "/")
        elsewhere = is_absolute(filename) and not filename.startswith("/")  # on Windows
        if filename and not elsewhere and below(self._root, self._place.images, filename) is None:
            message = f"<filename> {shorten(parsed.filename)!r} leaves data.root"
            self._say("path-outside-root", xml, message, image=row)
        elif (named := self._named(parsed)) is not None and named != image:
            message = f"<filename> is {shorten(parsed.filename)!r}, the image read is {image!r}"
            self._say("filename-differs", xml, message, image=row)
        if parsed.path and below(self._root, self._place.xml, parsed.path) is None:
            target = self._root / self._place.xml / parsed.path
            if is_there(target):
                message = f"<path> {shorten(parsed.path)!r} leads outside data.root"
                self._say("path-outside-root", xml, message, image=row, rejects="nothing")

    def _add(self, xml: str, parsed: VOCFile, row: int) -> None:
        for code, where, message, name in parsed.problems:
            self._say(code, xml, message, where=where, image=row)
            if code == "annotation-malformed":
                self._out.lost.append(storable(name))
        if parsed.no_size:
            self._say("size-missing", xml, parsed.no_size, where="size", image=row)
        ids, fixed = self._reader._ids, self._reader._names is not None
        shift = 1.0 if self._reader._one_based else 0.0
        for item in parsed.objects:
            name = storable(item.name)
            label = ids.get(name, -1) if fixed else ids.setdefault(name, len(ids))
            x1, y1, x2, y2 = item.box
            flags = DIFFICULT if item.difficult else 0
            box = array("d", (x1 - shift, y1 - shift, x2, y2))
            at = self._out.packer.add(box, label, item.number, flags)
            where = f"object {item.number}"
            if item.fault:
                more = {"where": where, "image": row, "annotation": at}
                self._say("box-malformed", xml, item.fault, **more)
            if label < 0:
                message = f"unknown class {name!r}"
                self._say("class-unknown", xml, message, where=where, image=row, annotation=at)

    def _orphans(self) -> None:
        """XML files whose image is not there and which no list asks for."""
        listed = self._listed() if self._place.list is not None else self._used_xml
        for xml in sorted(self._xml - listed):
            ident = inside(stem(xml), self._place.xml)
            if posixpath.join(self._place.images, ident) in self._images:
                continue
            named = self._named(self._read_xml(xml)[0])
            if named is None or named in self._taken or self._has_own_xml(named):
                message = f"there is no image for it in {self._place.images or 'data.root'}"
                self._say("label-without-image", xml, message)

    def _listed(self) -> set[str]:
        """XML files of the ids in all lists; what is wrong with these is said elsewhere."""
        found = set()
        for place in self._reader._places.values():
            try:
                lines = read_lines(self._root / str(place.list))
            except MalformedError:
                continue
            for _, line in lines:
                path = below(self._root, place.xml, stem(line) if is_image(line) else line)
                if path is not None:
                    found.add(self._xml_file(path))
        return found


def _places(root: Path, folder: str | None, lists: dict[str, str]) -> dict[str, _Place]:
    """Split -> where it lies; empty where nothing is of this format."""
    if folder is None:
        bases = _bases(root)
        if len(bases) > 1:
            raise DataError(
                f"{root} holds {', '.join(bases)}; say data.root={root / bases[0]} for one of them"
            )
    else:
        base = below(root, "", folder)
        bases = [base] if base is not None and (root / base / "Annotations").is_dir() else []
    if bases:
        return _devkit(root, bases[0], lists)
    found = {}
    for split, aliases in SPLITS.items():
        place = find_split_folder(root, "", aliases)
        if place is None:
            continue
        inner = _annotated(root, place)
        if inner is not None:
            found[split] = inner
    if not found and _has_xml(root, ""):
        found["train"] = _Place("", "", None)
    return found


def _bases(root: Path) -> list[str]:
    """Folders that hold ``Annotations`` with XML: the root, or VOC folders in it."""
    if _has_xml(root, "Annotations"):
        return [""]
    years = [f for f in folders(root) if f.startswith("VOC")]
    years += [f"VOCdevkit/{f}" for f in folders(root, "VOCdevkit")]
    return [f for f in years if _has_xml(root, f"{f}/Annotations")]


def _devkit(root: Path, base: str, lists: dict[str, str]) -> dict[str, _Place]:
    xml = posixpath.join(base, "Annotations")
    images = find_split_folder(root, base, _IMAGES)
    if images is None:
        images = base
    for folder in _LISTS:
        files = {
            split: path
            for split, name in lists.items()
            if (root / (path := posixpath.join(base, folder, f"{name}.txt"))).is_file()
        }
        both = posixpath.join(base, folder, "trainval.txt")
        if not files.keys() & {"train", "val"} and (root / both).is_file():
            files = {"train": both, **files}
        if files:
            return {split: _Place(images, xml, file) for split, file in files.items()}
    return {"train": _Place(images, xml, None)}


def _annotated(root: Path, place: str) -> _Place | None:
    """A split's folder: XML beside the images, or in folders of their own."""
    if _has_xml(root, place):
        return _Place(place, place, None)
    for name in ("Annotations", "annotations"):
        if _has_xml(root, f"{place}/{name}"):
            images = find_split_folder(root, place, _IMAGES)
            return _Place(images or place, f"{place}/{name}", None)
    return None


def _has_xml(root: Path, folder: str) -> bool:
    path = root / folder
    return path.is_dir() and any(p.suffix.lower() == ".xml" for p in path.iterdir())
