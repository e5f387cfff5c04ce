"""Paths, folders and text of a data set, read so that nothing in it can surprise a reader.

Names are POSIX paths below the root. ``below`` is lexical, so links that lie inside the root are
followed wherever they lead, and a name in an annotation cannot climb out with ``..``.
"""

from __future__ import annotations

import os
import posixpath
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path

from cvtrain.errors import DataError
from cvtrain.storage import is_run_folder, lists_run_folder

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .jp2 .pgm .ppm .pnm .avif"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Extensions, lower case, of the image files that are read."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "PPM", "AVIF")
"""Pillow's names of the formats behind them."""

MAX_PIXELS = 178_956_970
"""An image of more pixels counts as a decompression bomb; the loader's and Pillow's own limit."""

_OTHERS = ".heic .heif .jxl .psd .svg .tga .exr .hdr .dds .pcx .eps .dcm"
_RAW = ".dng .cr2 .cr3 .nef .arw .orf .raf .rw2"
OTHER_IMAGE_SUFFIXES = frozenset((*_OTHERS.split(), *_RAW.split()))
"""Images that are not read; they are counted and named, so that nobody wonders where they went."""


_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 3, 100, 100
_BRIEF.maxlist = _BRIEF.maxdict = _BRIEF.maxtuple = _BRIEF.maxset = 16


class MalformedError(Exception):
    """A file is not what its format says; becomes a ``Problem``.

    Attributes:
        where: ``line 12``, or "".
        message: what is wrong, with the bad value.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where


def data_root(root: str | Path | None) -> Path:
    """The absolute path of a data set's folder.

    Raises:
        DataError: no folder is given or there is none.
    """
    if root is None or str(root) in ("", "None"):
        raise DataError("data.root is not set; say data.root=FOLDER")
    path = Path(os.path.abspath(os.path.expanduser(root)))  # noqa: PTH100, PTH111 (keep links)
    if not path.exists():
        raise DataError(f"data.root={root} does not exist; where the data set is: data.root=FOLDER")
    if not path.is_dir():
        raise DataError(f"data.root={root} is a file; give the data set's folder")
    return path


def shorten(text: object, limit: int = 60) -> str:
    """``text`` on one line, cut to ``limit`` characters.

    Of lists and the like only the beginning is formatted: YAML aliases make small files of lists
    that are billions of characters long when written out.
    """
    nested = isinstance(text, list | dict | tuple | set)
    line = " ".join((_BRIEF.repr(text) if nested else str(text)).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def storable(name: str) -> str:
    """``name`` without what UTF-8 cannot hold (lone surrogates of JSON) or a path may not (NUL)."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        name = name.encode("utf-8", "backslashreplace").decode()
    return name.replace("\0", "\\0")


def below(root: Path, folder: str, name: str) -> str | None:
    """The POSIX path below ``root`` of a name written in an annotation.

    Args:
        root: absolute path of the data set.
        folder: POSIX path below the root that ``name`` is relative to.
        name: relative or absolute.

    Returns:
        The normalized path, ``""`` for the root itself; None where it leaves the root.
    """
    if is_absolute(name):
        name = posixpath.normpath(name.replace("\\", "/") if _WINDOWS.match(name) else name)
        for base in (root.as_posix(), root.resolve().as_posix()):
            if name == base:
                return ""
            if name.startswith(base.rstrip("/") + "/"):
                return name[len(base.rstrip("/")) + 1 :]
        return None
    path = posixpath.normpath(posixpath.join(folder, name))
    if path == ".." or path.startswith("../"):
        return None
    return "" if path == "." else path


def is_absolute(name: str) -> bool:
    """Whether a path is absolute, on this system or on Windows (from a drive or a server)."""
    return posixpath.isabs(name) or _WINDOWS.match(name) is not None


def is_there(path: Path) -> bool:
    """Whether a path written in an annotation exists; one that no file can have does not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def is_image(name: str) -> bool:
    """Whether a file is read as an image, by its extension."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def stem(name: str) -> str:
    """A path without its extension: ``a/b.c.jpg`` -> ``a/b.c``."""
    return posixpath.splitext(name)[0]


def inside(path: str, folder: str) -> str:
    """A path below the root made relative to a folder that it lies in."""
    return path[len(folder) + 1 :] if folder else path


def walk(root: Path, folder: str = "", skip: Iterable[str] = ()) -> list[str]:
    """All files below ``root/folder``, sorted, as POSIX paths below ``root``.

    Links are followed (a link back to a folder above is not). Hidden files and folders, and those
    that macOS adds to archives, are left out, as are folders called one of ``skip`` and what
    commands wrote (``cvtrain.storage.is_run_folder``), unless ``root/folder`` itself is such a one.
    """
    found: list[str] = []
    skipped = {"__MACOSX", *skip}
    _walk(root / folder, folder, skipped, (), found)
    found.sort()
    return found


def _walk(
    path: Path, name: str, skip: set[str], above: tuple[tuple[int, int], ...], found: list[str]
) -> None:
    try:
        status = path.stat()
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be listed: {error.strerror}; check its rights") from error
    here = (status.st_dev, status.st_ino)
    if here in above or (above and lists_run_folder(entry.name for entry in entries)):
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in skip:
            continue
        below_root = f"{name}/{entry.name}" if name else entry.name
        if _is_folder(entry):
            _walk(path / entry.name, below_root, skip, (*above, here), found)
        else:
            found.append(below_root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link to itself is a file, and reported as one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def folders(root: Path, folder: str = "") -> list[str]:
    """Names of the visible folders directly in ``root/folder``, sorted.

    Run folders are left out, and those in which nothing else is (``runs``).
    """
    path = root / folder
    if not path.is_dir():
        return []
    try:
        entries = list(os.scandir(path))
    except OSError as error:
        raise DataError(f"{path} cannot be listed: {error.strerror}; check its rights") from error
    hidden = (".", "__MACOSX")
    found = [e for e in entries if not e.name.startswith(hidden) and _is_folder(e)]
    return sorted(e.name for e in found if not holds_only_runs(Path(e.path)))


def holds_only_runs(folder: Path) -> bool:
    """Whether a folder is a run folder, or holds such ones and no visible file beside them."""
    if is_run_folder(folder):
        return True
    runs = False
    for parent, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if lists_run_folder(files):
            runs, inner[:] = True, []
        elif any(not name.startswith(".") for name in files):
            return False
        elif any(os.path.islink(os.path.join(parent, name)) for name in inner):  # noqa: PTH114, PTH118
            return False  # of the user's own; no command makes links
    return runs


def find_split_folder(root: Path, folder: str, names: Iterable[str]) -> str | None:
    """The first of ``names`` that is a folder in ``root/folder``, as a path below ``root``.

    Upper and lower case are the same; a name may have several parts (``images/train``).
    """
    for name in names:
        path = _folder_at(root, folder, name.split("/"))
        if path is not None:
            return path
    return None


def _folder_at(root: Path, folder: str, parts: list[str]) -> str | None:
    if not parts:
        return folder
    there = folders(root, folder)
    exact = [f for f in there if f == parts[0]]
    found = exact or [f for f in there if f.lower() == parts[0].lower()]
    return _folder_at(root, posixpath.join(folder, found[0]), parts[1:]) if found else None


def images_of(files: Iterable[str]) -> list[str]:
    """Those that are read as images."""
    return [f for f in files if is_image(f)]


def unlisted_of(files: Iterable[str], used: set[str]) -> list[str]:
    """Image files that no split uses."""
    return [f for f in images_of(files) if f not in used]


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte-order mark.

    Raises:
        MalformedError: it cannot be read or is not UTF-8 (with the line).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MalformedError(f"cannot be read: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        byte = raw[error.start]
        raise MalformedError(f"not UTF-8: byte 0x{byte:02x}", f"line {line}") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, each with its number from 1.

    Raises:
        MalformedError: it cannot be read or is not UTF-8 (with the line).
    """
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
