"""The data.yaml of a YOLO data set: class names, and where the splits' images are."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cvtrain.data.formats.base import SPLITS, problem
from cvtrain.data.formats.classes import check_names, in_order
from cvtrain.data.formats.elsewhere import end_of_place
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    find_split_folder,
    is_absolute,
    is_there,
    read_lines,
    read_text,
    shorten,
    storable,
)
from cvtrain.data.table import Problem


@dataclass
class YOLOConfig:
    """What data.yaml says, or the folders' names where there is none.

    Attributes:
        file: the YAML (or classes.txt) below the root, "" where there is none.
        names: class names by index.
        places: split -> folders of images and list files, below the root.
        problems: split -> what is wrong with its entries.
        keypoints: numbers that follow the box on each line (``kpt_shape``), 0: none do.
    """

    file: str = ""
    names: tuple[str, ...] = ()
    places: dict[str, list[str]] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    keypoints: int = 0


def find_yaml(root: Path) -> str | None:
    """The data set's YAML: data.yaml, or the only one in the root that has class names."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return name
    found = [p.name for p in sorted(root.iterdir()) if p.suffix.lower() in (".yaml", ".yml")]
    found = [name for name in found if (root / name).is_file() and _has_names(root / name)]
    return found[0] if len(found) == 1 else None


def _has_names(path: Path) -> bool:
    try:
        lines = read_lines(path)
    except MalformedError:
        return False
    return any(line.startswith(("names:", "nc:")) for _, line in lines)


def read_config(root: Path, file: str | None, names: tuple[str, ...] | None) -> YOLOConfig:
    """Reads the YAML, or classes.txt where there is none; finds the splits' images.

    Args:
        root: the data set.
        file: the YAML below the root, None where there is none.
        names: class names that go before those of the file.

    Raises:
        MalformedError: it is no YAML, has no usable names, or no class names are to be found.
    """
    document: dict[str, Any] = {}
    config = YOLOConfig(file or "")
    if file is not None:
        document = _load(root / file)
    config.names = names or _names(root, document, config)
    config.keypoints = _keypoints(document.get("kpt_shape"))
    for split, aliases in SPLITS.items():
        key = next((alias for alias in aliases if document.get(alias)), None)
        if key is not None:
            _add_entries(root, config, split, document, key)
    _forgive_test(config)
    if not config.places and not config.problems:
        config.places = usual_places(root)
    return config


def _forgive_test(config: YOLOConfig) -> None:
    """A test split that is not there is no loss: YAMLs name ones that are never handed out."""
    found = config.problems.get("test", [])
    if config.places.get("test") or {p.code for p in found} != {"place-missing"}:
        return
    del config.places["test"], config.problems["test"]
    first = next(iter(config.places), None)
    if first is None:
        config.places = {"test": []}
        config.problems = {"test": found}
        return
    notes = [problem("test-missing", p.file, p.message, split=first) for p in found]
    config.problems[first] += notes


def usual_places(root: Path) -> dict[str, list[str]]:
    """Split -> its image folder, by the folders' names alone."""
    found = {}
    for split, aliases in SPLITS.items():
        names = [f"images/{alias}" for alias in aliases]
        names += [f"{alias}/images" for alias in aliases]
        place = find_split_folder(root, "", [*names, *aliases])
        if place is not None:
            found[split] = [place]
    if not found:
        found["train"] = ["images" if (root / "images").is_dir() else ""]
    return found


def _load(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        # Every scalar a string: `names: [yes, no]` are two words, not True and False.
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else ""
        raise MalformedError(shorten(error.problem or error, 120), where) from error
    except yaml.YAMLError as error:
        raise MalformedError(shorten(error, 120)) from error
    except RecursionError as error:
        raise MalformedError("nested too deeply") from error
    if not isinstance(document, dict):
        raise MalformedError("`names:`, `train:` and `val:` are expected")
    return document


def _names(root: Path, document: dict[str, Any], config: YOLOConfig) -> tuple[str, ...]:
    raw = document.get("names")
    if raw is None or raw == "":
        for name in ("classes.txt", "labels/classes.txt"):
            if (root / name).is_file():
                config.file = config.file or name
                raw = [line for _, line in read_lines(root / name)]
                break
        else:
            raise MalformedError(
                "there are no class names; write `names: [...]` into data.yaml, or say "
                "data.reader.names=[...]"
            )
    if isinstance(raw, dict):
        raw = in_order(raw)
    if not isinstance(raw, list) or not all(isinstance(name, str) for name in raw):
        raise MalformedError(f"`names` is {shorten(raw)}, not a list of names")
    names = tuple(storable(name.strip()) for name in raw)
    check_names(names)
    count = document.get("nc")
    if count not in (None, "", str(len(names))):
        raise MalformedError(f"`nc` is {shorten(count)}, `names` has {len(names)}")
    return names


def _keypoints(shape: Any) -> int:
    """How many numbers ``kpt_shape: [points, 2 or 3]`` adds to a line.

    Raises:
        MalformedError: it is something else.
    """
    if shape in (None, ""):
        return 0
    words = shape if isinstance(shape, list) else []
    if len(words) != 2 or not all(isinstance(w, str) and w.isdecimal() for w in words):
        raise MalformedError(f"`kpt_shape` is {shorten(shape)}, not [points, 2 or 3]")
    points, numbers = (int(w) for w in words)
    if not 0 < points < 10_000 or numbers not in (2, 3):
        raise MalformedError(f"`kpt_shape` is {shorten(shape)}, not [points, 2 or 3]")
    return points * numbers


def _add_entries(
    root: Path, config: YOLOConfig, split: str, document: dict[str, Any], key: str
) -> None:
    """Adds a split's places, each checked to lie below the root and to be there."""
    entries = document[key]
    entries = entries if isinstance(entries, list) else [entries]
    config.places[split] = []
    found = config.problems.setdefault(split, [])
    for entry in entries:
        if not isinstance(entry, str):
            message = f"`{key}` is {shorten(entry)}, not a folder, a list file or a list of them"
            found.append(problem("yaml-malformed", config.file, message, split=split))
            continue
        place, code, message = _resolve(root, document.get("path"), entry)
        if code:
            rejects = "nothing"
            message = f"`{key}: {shorten(entry)}` {message}"
            found.append(problem(code, config.file, message, split=split, rejects=rejects))
        if place is not None:
            config.places[split].append(place)


def _candidates(root: Path, base: Any, entry: str) -> list[str | None]:
    """Where an entry may lie below the root: in the folder that ``path:`` names, in the root."""
    folder = below(root, "", base) if isinstance(base, str) and base else None
    if folder is None or not is_there(root / folder):
        folder = ""
    return [below(root, f, entry) for f in dict.fromkeys((folder, ""))]


def _resolve(root: Path, base: Any, entry: str) -> tuple[str | None, str, str]:
    """The place of an entry below the root, and the code and message of what is wrong with it.

    ``path:`` counts where it leads to a folder of this data set; it is otherwise a place on the
    machine where the file was written.
    """
    tried = _candidates(root, base, entry)
    for path in tried:
        if path is not None and is_there(root / path):
            return path, "", ""
    if "\\" in entry or (isinstance(base, str) and "\\" in base):
        entry = entry.replace("\\", "/")
        tried = _candidates(root, str(base or "").replace("\\", "/"), entry)
        for path in tried:
            if path is not None and is_there(root / path):
                return path, "path-separator", f"is written as on Windows; {path} is read"
    if tried[0] is not None or tried[-1] is not None:
        hint = end_of_place(root, entry)
        return None, "place-missing", f"does not exist below data.root{hint}"
    if not is_absolute(entry) and not is_there(root / entry):
        # Exports say `../train/images` for a folder beside data.yaml.
        inner = posixpath.normpath(entry)
        while inner.startswith("../"):
            inner = inner[3:]
        if is_there(root / inner):
            return inner, "path-fixed", f"leaves data.root; {inner} in it is read"
        return None, "place-missing", f"does not exist, nor does {inner} below data.root"
    return None, "path-outside-root", f"leaves data.root{end_of_place(root, entry)}"
