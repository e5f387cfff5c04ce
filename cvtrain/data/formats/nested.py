"""Folders inside of class folders: classes one level too deep, or sessions and cameras."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from cvtrain.data.formats.base import SPLITS
from cvtrain.data.formats.files import images_of

_NAMED = 4


def images_by_folder(
    files: Iterable[str], place: str, classes: Iterable[str]
) -> dict[str, Counter[str]]:
    """Class folder -> how many images lie in each folder of it, "": in itself.

    Args:
        files: all of the data set, POSIX paths below its root.
        place: the split's folder, "" for the root.
        classes: its class folders.
    """
    prefix = f"{place}/" if place else ""
    found: dict[str, Counter[str]] = {name: Counter() for name in sorted(classes)}
    for file in images_of(files):
        parts = file[len(prefix) :].split("/") if file.startswith(prefix) else []
        if len(parts) > 1 and parts[0] in found:
            found[parts[0]][parts[1] if len(parts) > 2 else ""] += 1
    return found


def nested(
    root: Path, place: str, inner: Mapping[str, Counter[str]], classes: int
) -> tuple[bool, str]:
    """Whether the classes, or the splits, lie one level deeper, and what to do then.

    Args:
        root: of the data set.
        place: the split's folder, "" for the root.
        inner: class folders that hold folders, as ``images_by_folder`` gives them.
        classes: how many there are in all splits.
    """
    name, held = next(iter(inner.items()))
    if classes == 1 and not held[""]:
        above = posixpath.join(root.as_posix(), place, name)
        if not place:
            return True, f"say data.root={above}"
        return True, f"move {place}/{name}/* to {place}/, or say data.root={above}"
    splits = {n: _splits_in(h) for n, h in inner.items()}
    if all(len(found) > 1 for found in splits.values()) and len(inner) == classes:
        first = splits[name][0]
        return (
            True,
            f"splits inside of classes; move {name}/{first}/* to {first}/{name}/, and so on",
        )
    return False, ""


def _splits_in(held: Mapping[str, int]) -> list[str]:
    """The folders that are called as two splits or more."""
    lower = {name.lower(): name for name in held}
    return [lower[a] for aliases in SPLITS.values() for a in aliases if a in lower]


def describe(place: str, inner: Mapping[str, Counter[str]]) -> str:
    """``12 images lie deeper than their class folder: in animals/ cat 6, dog 6``."""
    deep = {name: {f: n for f, n in held.items() if f} for name, held in inner.items()}
    total = sum(sum(held.values()) for held in deep.values())
    parts = []
    for name, held in list(deep.items())[:_NAMED]:
        folders = [f"{folder} {count:,}" for folder, count in list(held.items())[:_NAMED]]
        more = f", ... ({len(held):,} folders)" if len(held) > _NAMED else ""
        parts.append(f"in {posixpath.join(place, name)}/ {', '.join(folders)}{more}")
    more = f"; and in {len(deep) - _NAMED:,} more" if len(deep) > _NAMED else ""
    lie = "image lies" if total == 1 else "images lie"
    return f"{total:,} {lie} deeper than the class folder: {'; '.join(parts)}{more}"
