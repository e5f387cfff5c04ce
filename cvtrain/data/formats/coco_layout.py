"""Where a COCO data set keeps its JSON files and images, and what is known without parsing."""

from __future__ import annotations

import json
import mmap
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.data.formats.base import SPLITS
from cvtrain.data.formats.files import below, folders, is_there
from cvtrain.errors import DataError

_JSON_FOLDERS = ("", "annotations", "Annotations")
_IN_SPLIT_FOLDER = r"(?:_annotations\.coco|_annotations|annotations|instances|labels|coco)\.json"
_PROBES = 64  # file names looked up in each folder that may hold the images
_WINDOW = 1 << 20  # bytes of JSON decoded at first when only the categories are wanted


@dataclass(frozen=True)
class Source:
    """The files of one split.

    Attributes:
        json: POSIX path below the root.
        images: folder of the images below the root, or None: found by looking for them.
        names: what the split goes by in this data set, e.g. ``("train2017", "train")``.
    """

    json: str
    images: str | None
    names: tuple[str, ...]


def find_sources(root: Path, jsons: dict[str, str | None], images: dict[str, str | None]) -> dict:
    """Split -> ``Source``, those there are; given paths (below the root) go before found ones.

    Raises:
        DataError: a given path is not there, or several JSON files claim one split.
    """
    found: dict[str, Source] = {}
    files = _json_files(root)
    for split, aliases in SPLITS.items():
        folder = _given(root, images[split], f"{split}_images", folder=True)
        if jsons[split] is not None:
            path = _given(root, jsons[split], f"{split}_json", folder=False)
            found[split] = Source(str(path), folder, aliases)
            continue
        match = _by_name(files, split, aliases)
        if match is not None:
            found[split] = Source(match[0], folder, (f"{match[1]}{match[2]}", *aliases))
    if not found:
        whole = [f for f in files if looks_like_coco(root / f)]
        if len(whole) > 1:
            raise DataError(
                f"{root}: {', '.join(whole)} all look like COCO; say "
                "data.reader.train_json=... data.reader.val_json=..."
            )
        if whole:
            found["train"] = Source(whole[0], _given(root, images["train"], "", True), ("train",))
    return found


def _given(root: Path, value: str | None, key: str, folder: bool) -> str | None:
    if value is None:
        return None
    path = below(root, "", value)
    if path is None or not ((root / path).is_dir() if folder else (root / path).is_file()):
        kind = "folder" if folder else "file"
        raise DataError(f"data.reader.{key}={value} is not a {kind} below data.root={root}")
    return path


def _json_files(root: Path) -> list[str]:
    places = [f for f in _JSON_FOLDERS if (root / f).is_dir()]
    prefixes = tuple(alias for aliases in SPLITS.values() for alias in aliases)
    places += [f for f in folders(root) if f.startswith(prefixes)]
    return sorted(
        posixpath.join(place, path.name)
        for place in places
        for path in (root / place).iterdir()
        if path.suffix.lower() == ".json" and not path.name.startswith(".")
    )


def _by_name(files: list[str], split: str, aliases: tuple[str, ...]) -> tuple[str, str, str] | None:
    """The JSON file of a split, the alias in its name and the year behind that."""
    any_alias = "|".join(aliases)
    flat = (
        r"(?i:annotations/)?(?P<kind>instances_|annotations_|image_info_)?"
        rf"(?P<alias>{any_alias})_?(?P<year>\d{{4}})?(?:_annotations|_instances|_coco)?\.json"
    )
    nested = rf"(?P<alias>{any_alias})(?P<year>\d{{4}})?/{_IN_SPLIT_FOLDER}"
    matches = [m for f in files if (m := re.fullmatch(flat, f) or re.fullmatch(nested, f))]
    instances = [m for m in matches if m.groupdict().get("kind") == "instances_"]
    matches = instances or matches
    if len(matches) > 1:
        names = ", ".join(m.string for m in matches)
        raise DataError(f"{names} all look like the {split} split; say data.reader.{split}_json=")
    if not matches:
        return None
    return matches[0].string, matches[0]["alias"], matches[0]["year"] or ""


def image_folder(root: Path, source: Source, names: list[str]) -> str:
    """The folder in which most of these file names are found; the likeliest where none is."""
    if source.images is not None:
        return source.images
    places = [p for name in source.names for p in (name, f"images/{name}", f"{name}/images")]
    places += [posixpath.dirname(source.json), "images", "JPEGImages", "data", ""]
    there = [p for p in dict.fromkeys(places) if (root / p).is_dir()]
    sample = names[:: max(1, len(names) // _PROBES)]

    def hits(place: str) -> int:
        paths = (below(root, place, name) for name in sample)
        return sum(path is not None and is_there(root / path) for path in paths)

    return max(there, key=hits)  # the first of equals


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's two keys, without parsing it."""
    return _search(path, rb'"images"\s*:\s*\[') and _search(path, rb'"categories"\s*:\s*\[')


def has_segments(path: Path) -> bool:
    """Whether any annotation has polygons or an RLE, without parsing the file."""
    return _search(path, rb'"segmentation"\s*:\s*(?:\[\s*[^\s\]]|\{)')


def _search(path: Path, pattern: bytes) -> bool:
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                return re.search(pattern, text) is not None
    except OSError:
        return False  # what cannot be read has nothing; reading it gives the problem


def scan_categories(path: Path) -> Any:
    """The categories of a JSON file without parsing the rest; None where that does not work."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                starts = _starts(text, b'"categories"')
                return _decode_from(text, starts[0]) if len(starts) == 1 else None
    except OSError:
        return None


def _starts(text: mmap.mmap, key: bytes) -> list[int]:
    """Where lists begin that follow a key; ``find`` is many times faster than a pattern here."""
    behind = re.compile(rb"\s*:\s*(?=\[)")
    found = []
    at = text.find(key)
    while at >= 0:
        match = behind.match(text, at + len(key))
        if match is not None and text[at - 1 : at] != b"\\":
            found.append(match.end())
        at = text.find(key, at + len(key))
    return found


def _decode_from(text: mmap.mmap, start: int) -> Any:
    window = _WINDOW
    while True:
        piece = text[start : start + window].decode("utf-8", "ignore")
        try:
            return json.JSONDecoder().raw_decode(piece)[0]
        except (ValueError, RecursionError):
            if start + window >= len(text):
                return None
            window *= 8
