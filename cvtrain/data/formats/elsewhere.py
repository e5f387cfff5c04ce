"""Absolute paths that were written on another machine: what of them is here, and what to write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cvtrain.data.formats.files import below, is_absolute, is_there, shorten

NAME_ALONE = ": an absolute path; write the name alone, as 0001"
"""What to say where a list holds a path, and names are expected."""

_LONGEST = 160


class Images:
    """The image files of a data set, to look for the ends of paths among them.

    Args:
        root: absolute path of the data set.
        files: its images, POSIX paths below the root.
    """

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self._root, self._files = root, set(files)
        self._by_name: dict[str, list[str]] | None = None

    def outside(self, name: str, folders: Sequence[str]) -> str:
        """The message for a path that leaves the root: ``name`` and, of an absolute one, a hint.

        Args:
            name: as the annotation has it.
            folders: below the root, in which names are looked for.
        """
        if not is_absolute(name):
            return f"{shorten(name)!r} leaves data.root"
        end = _end(self._root, name, folders, self._files.__contains__)
        if end:
            return f"{_leaves(name)}; its end {end!r} is there: write that"
        if self._by_name is None:
            self._by_name = {}
            for file in sorted(self._files):
                self._by_name.setdefault(file.rpartition("/")[2], []).append(file)
        base = _parts(name)[-1]
        found = self._by_name.get(base, [])
        if len(found) == 1:
            return f"{_leaves(name)}; {found[0]!r} alone has its name: write that, if it is meant"
        have = f"{len(found)} images have that name" if found else f"no image is called {base!r}"
        places = ", ".join(f"{folder}/" if folder else "data.root" for folder in folders)
        return f"{_leaves(name)}; {have}: write paths relative to {places}"


def end_of_place(root: Path, entry: str) -> str:
    """``; its end 'images/train' is there: write that`` for a folder or a file; "": none is."""
    end = _end(root, entry, [""], lambda path: is_there(root / path))
    return f"; its end {end!r} is there: write that" if end else ""


def _leaves(name: str) -> str:
    shown = name if len(name) <= _LONGEST else f"...{name[-_LONGEST:]}"
    return f"{shown!r} is an absolute path that does not lead into data.root"


def _parts(name: str) -> list[str]:
    parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]
    return parts or [name]


def _end(root: Path, name: str, folders: Sequence[str], there: Callable[[str], bool]) -> str:
    """The longest end of a path that is there, from one of the folders; "" where none is."""
    parts = _parts(name)
    for k in range(1, len(parts)):
        end = "/".join(parts[k:])
        paths = (below(root, folder, end) for folder in folders)
        if any(path and there(path) for path in paths):
            return end
    return ""
