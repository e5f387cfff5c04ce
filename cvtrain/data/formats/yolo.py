"""YOLO text labels in the Ultralytics layout: one line an object, in fractions of the image.

A line is ``class x y w h`` (box center and size) or ``class x1 y1 x2 y2 x3 y3 ...`` (polygon, or
the four corners of an oriented box); a file may mix both. Where data.yaml has ``kpt_shape``, lines
are ``class x y w h`` and keypoints behind it, which are not read.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.formats.base import Reader, problem
from cvtrain.data.formats.classes import given_names
from cvtrain.data.formats.elsewhere import Images
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    images_of,
    is_image,
    is_there,
    read_lines,
    shorten,
    stem,
    storable,
    unlisted_of,
    walk,
)
from cvtrain.data.formats.packing import Packer, empty_table
from cvtrain.data.formats.yolo_config import YOLOConfig, find_yaml, read_config, usual_places
from cvtrain.data.formats.yolo_pose import LongLines
from cvtrain.data.table import Classes, Problem, Split, Strings
from cvtrain.errors import DataError

_NOT_LABELS = ("classes.txt", "readme", "license", "requirements")


class LineError(ValueError):
    """A label line that is none.

    Attributes:
        label: the class it names, -1 where it names none.
    """

    def __init__(self, message: str, label: int = -1) -> None:
        super().__init__(message)
        self.label = label


class YOLOReader(Reader):
    """Reads YOLO labels.

    Args:
        root: folder of the data set, the one with data.yaml.
        yaml: the YAML file below the root. None: data.yaml, or the only one with class names;
            without one the splits are ``images/train``, ``train/images`` or ``train`` (and so on)
            and the names come from ``names`` or classes.txt.
        names: class names by index; None: those of the YAML or classes.txt.

    ``train``, ``val`` and ``test`` in the YAML are a folder of images, a text file that lists
    images, or a list of these. The labels of ``.../images/x.jpg`` are ``.../labels/x.txt`` (the
    last ``images`` of the path counts), without such a folder ``x.txt`` beside it. Boxes and
    segments are fractions (``relative``); ``lines`` are line numbers.
    """

    layout = (
        "YOLO: data.yaml (names, train, val) + images/train/* + labels/train/*.txt, "
        "or train/images/* + train/labels/*.txt"
    )
    box_layout = "cxcywh"

    def __init__(
        self,
        root: str | Path,
        yaml: str | None = None,
        names: Sequence[str] | Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(root)
        file = find_yaml(self.root) if yaml is None else below(self.root, "", yaml)
        if yaml is not None and (file is None or not (self.root / file).is_file()):
            raise DataError(f"data.reader.yaml={yaml} is not a file below data.root={root}")
        self._fault: MalformedError | None = None
        self._config = YOLOConfig(file or "")
        self._files = walk(self.root)
        texts = [f for f in self._files if f.endswith(".txt") and _may_be_label(f)]
        if file is None and not texts:
            raise self._not_this("neither data.yaml nor label files found")
        try:
            given = given_names(names)
        except MalformedError as error:
            raise DataError(f"data.reader.names: {error.message}; name each class once") from error
        try:
            self._config = read_config(self.root, file, None if given is None else given.names)
        except MalformedError as error:
            self._fault = error
            self._config.places = usual_places(self.root)
        self._images = set(images_of(self._files))
        self._elsewhere = Images(self.root, self._images)
        self._labels = self._label_files(texts)

    def _label_files(self, texts: list[str]) -> set[str]:
        """Text files that are labels by where they lie: not the lists, not what lies elsewhere."""
        places = [p for paths in self._config.places.values() for p in paths]
        folders = tuple(f"{p}/" if p else "" for p in places if (self.root / p).is_dir())
        found = set()
        for text in texts:
            if text in places:
                continue
            if "labels" in text.split("/")[:-1] or text.startswith(folders):
                found.add(text)
        return found

    @property
    def kinds(self) -> frozenset[str]:
        """``boxes``, and ``segments`` where any line is a polygon."""
        for split in reversed(self.splits()):
            if self.read(split).table.segments is not None:
                return frozenset({"boxes", "segments"})
        return frozenset({"boxes"})

    def splits(self) -> list[str]:
        return list(self._config.places)

    @classmethod
    def detect(cls, root: Path) -> str | None:
        file = find_yaml(root)
        if file is not None:
            return f"YOLO labels ({file})"
        places = [place for paths in usual_places(root).values() for place in paths]
        for place in dict.fromkeys(places):
            files = walk(root, place)
            for image in images_of(files):
                label = label_of(image)
                if (root / label).is_file():
                    return f"YOLO labels ({posixpath.dirname(label) or '.'}/*.txt)"
        return None

    def _read(self, split: str) -> Split:
        config = self._config
        classes = Classes.from_names(config.names)
        if self._fault is not None:
            fault = problem(
                "yaml-malformed",
                config.file or "data.yaml",
                self._fault.message,
                where=self._fault.where,
                split=split,
            )
            return Split(split, empty_table(self.root, classes), [fault])
        problems = list(config.problems.get(split, ()))
        lines = _SplitReader(self, split, problems)
        table = lines.table(classes)
        return Split(split, table, problems, lost=np.array(lines.lost, np.int64))

    def _unlisted(self, used: set[str]) -> list[str]:
        return unlisted_of(self._files, used)


class _SplitReader:
    """Reads the labels of one split."""

    def __init__(self, reader: YOLOReader, split: str, problems: list[Problem]) -> None:
        self._reader, self._split, self._problems = reader, split, problems
        self._root = reader.root
        self._packer = Packer()
        self._places = reader._config.places[split]
        self._classes = len(reader._config.names)
        self._without: list[str] = []
        self._label_paths: list[str] = []
        self._long = LongLines()
        self.lost: list[int] = []
        """Class of each line that is none, -1 where it names none."""

    def table(self, classes: Classes) -> Any:
        """The split's table; what is wrong goes to the problems."""
        seen: dict[str, str] = {}
        by_label: dict[str, str] = {}
        for image, file, where in self._listed():
            if image in seen:
                message = f"{image!r} is already in {seen[image]}"
                self._say("duplicate-file", file or image, message, where=where)
                continue
            seen[image] = f"{file} {where}".strip() or "the split"
            row = self._packer.image(storable(image))
            if image not in self._reader._images and not is_there(self._root / storable(image)):
                message = f"there is no image {image!r}"
                self._say("image-missing", file or image, message, where=where, image=row)
            label = label_of(image)
            other = by_label.setdefault(label, image)
            if other != image:
                message = f"{other} and {image} share the label file {label}"
                self._say("image-ambiguous", image, message, image=row)
            self._read_label(label, image, row)
        self._finish()
        return self._packer.table(
            self._root, classes, relative=True, annotation_files=Strings(self._label_paths)
        )

    def _say(self, code: str, file: str, message: str, **more: Any) -> None:
        self._problems.append(problem(code, file, message, split=self._split, **more))

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        """(image, list file, line) of every image of the split."""
        for place in self._places:
            if (self._root / place).is_dir():
                prefix = f"{place}/" if place else ""
                for image in sorted(self._reader._images):
                    if image.startswith(prefix):
                        yield image, "", ""
            elif is_image(place):
                yield place, "", ""
            else:
                yield from self._list_file(place)

    def _list_file(self, file: str) -> Iterator[tuple[str, str, str]]:
        try:
            lines = read_lines(self._root / file)
        except MalformedError as error:
            self._say("list-malformed", file, error.message, where=error.where)
            return
        folder = posixpath.dirname(file)
        for number, line in lines:
            where = f"line {number}"
            spelled = line.replace("\\", "/")
            tried = [below(self._root, f, n) for n in (line, spelled) for f in (folder, "")]
            there = [path for path in tried if path in self._reader._images]
            inside = [path for path in tried if path is not None]
            if not inside:
                message = self._reader._elsewhere.outside(line, list(dict.fromkeys((folder, ""))))
                self._say("path-outside-root", file, message, where=where)
            elif not there and not is_image(inside[0]):
                message = f"{shorten(line)!r} is not the path of an image"
                self._say("line-malformed", file, message, where=where)
            else:
                yield str(there[0] if there else inside[0]), file, where

    def _read_label(self, label: str, image: str, row: int) -> None:
        there = label in self._reader._labels or is_there(self._root / label)
        self._label_paths.append(label if there else "")
        if not there:
            self._without.append(image)
            return
        try:
            lines = read_lines(self._root / label)
        except MalformedError as error:
            self._say("label-malformed", label, error.message, where=error.where, image=row)
            return
        for number, line in lines:
            try:
                name, box, segment = parse_line(line, self._reader._config.keypoints)
            except LineError as error:
                where = f"line {number}"
                self._say("line-malformed", label, str(error), where=where, image=row)
                self.lost.append(error.label if error.label < self._classes else -1)
                if not self._reader._config.keypoints:
                    self._long.add(line, label, number, polygon=False)
                continue
            if segment:
                self._long.add(line, label, number, polygon=True)
            index = name if 0 <= name < self._classes else -1
            at = self._packer.add(box, index, number, segment=segment)
            if index < 0:
                message = f"class {name} is not in 0..{self._classes - 1}"
                where = f"line {number}"
                self._say("class-unknown", label, message, where=where, image=row, annotation=at)

    def _finish(self) -> None:
        """What concerns the split as a whole."""
        places = ", ".join(place or "." for place in self._places)
        images = len(self._packer.files)
        if not images:
            file = self._reader._config.file or places
            where = f"no images in {places}" if self._places else "none of its entries can be read"
            self._say("empty-split", file, where)
        if images and len(self._without) == images and self._split != "test":
            first = self._without[0]
            message = f"none of {images} images has a label file; {first} has no {label_of(first)}"
            self._say("labels-missing", self._reader._config.file or places, message)
        elif self._without:
            count = len(self._without)
            message = f"{count} of {images} images have no label file, the first {self._without[0]}"
            self._say("image-without-label", self._without[0], message)
        self._note_keypoints()
        for label in self._orphans():
            self._say("label-without-image", label, f"there is no image {image_of(label)}.*")

    def _note_keypoints(self) -> None:
        """What else the lines have, or seem to have, than boxes and polygons."""
        count = self._reader._config.keypoints
        if count and len(self._packer):
            message = f"`kpt_shape`: the {count} numbers of keypoints on each line are ignored"
            self._say("keypoints-ignored", self._reader._config.file, message)
        lines = self._long
        if pose := lines.pose():
            self._say("keypoints-unsaid", pose.file, pose.message(), where=f"line {pose.number}")
            self._problems.insert(0, self._problems.pop())  # lines that are none follow from it
        elif lines.corners and lines.corners == len(self._packer):
            where = f"line {lines.first[1]}"
            message = f"all {lines.corners:,} lines have four corners: oriented boxes"
            self._say("boxes-oriented", lines.first[0], message, where=where)

    def _orphans(self) -> list[str]:
        """Label files of this split without an image; of no split: the first one's."""
        reader = self._reader
        stems = {stem(image) for image in reader._images}
        orphans = [f for f in sorted(reader._labels) if image_of(f) not in stems]
        return [f for f in orphans if _owner(reader, f) == self._split]


def _owner(reader: YOLOReader, label: str) -> str:
    """The split whose folder a label file's image would lie in; the first where there is none."""
    image = image_of(label)
    for split, places in reader._config.places.items():
        if any(image.startswith(f"{p}/" if p else "") for p in places if not is_image(p)):
            return split
    return reader.splits()[0]


def _may_be_label(path: str) -> bool:
    return not posixpath.basename(path).lower().startswith(_NOT_LABELS)


def label_of(image: str) -> str:
    """The label file of an image: its last folder ``images`` becomes ``labels``."""
    return _exchange(stem(image), "images", "labels") + ".txt"


def image_of(label: str) -> str:
    """The image of a label file, without extension."""
    return _exchange(stem(label), "labels", "images")


def _exchange(path: str, old: str, new: str) -> str:
    parts = path.split("/")
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == old:
            parts[i] = new
            break
    return "/".join(parts)


def parse_line(
    line: str, keypoints: int = 0
) -> tuple[int, tuple[float, float, float, float], bytes]:
    """Class index, xyxy box and segment (b"" for a box) of a line, in fractions.

    Args:
        line: of a label file.
        keypoints: numbers behind the box, which are not read; 0: a longer line is a polygon.

    Raises:
        LineError: it is neither a box nor a polygon.
    """
    words = line.split()
    if keypoints and len(words) not in (5, 5 + keypoints):
        raise LineError(
            f"{len(words)} values, not `class x y w h` and {keypoints} of keypoints (`kpt_shape`): "
            f"{shorten(line)}",
            _class_of(words),
        )
    if keypoints:
        words = words[:5]
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise LineError(
            f"{len(words)} values, not `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`: "
            f"{shorten(line)}",
            _class_of(words),
        )
    try:
        if "_" in line:
            raise ValueError
        number, *values = map(float, words)
        label = int(number)
    except (ValueError, OverflowError):
        raise LineError(f"not all values are numbers: {shorten(line)}", _class_of(words)) from None
    if label != number:
        raise LineError(f"the class {words[0]} is not a whole number")
    if len(values) == 4:
        x, y, w, h = values
        return label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), b""
    xs, ys = values[0::2], values[1::2]
    box = (min(xs), min(ys), max(xs), max(ys))
    if not all(-1e300 < value < 1e300 for value in values):
        raise LineError(f"a polygon's coordinates are not finite: {shorten(line)}", label)
    return label, box, json.dumps([values], separators=(",", ":")).encode()


def _class_of(words: Sequence[str]) -> int:
    """The class index that a malformed line begins with, -1 where it begins with none."""
    return int(words[0]) if words and words[0].isdecimal() and len(words[0]) < 10 else -1
