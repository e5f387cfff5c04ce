"""Images that are not read: of other formats, or without an extension. Counted and named."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import Path

from cvtrain.data.formats.files import OTHER_IMAGE_SUFFIXES

_NAMED = 5
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_BOXED = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")

CONVERT = (
    "save them as JPEG or PNG (ImageMagick: `magick mogrify -format jpg *.heic`); give a file "
    "without an extension its own (NAME.jpg)"
)
"""What to do about them."""


def unread_images(root: Path, files: Iterable[str]) -> list[tuple[str, str]]:
    """For each kind a file of it, and a line that counts and names those there are.

    Args:
        root: absolute path of the folder.
        files: POSIX paths below it, as ``walk`` gives them.
    """
    kinds: dict[str, list[str]] = {}
    for file in files:
        ending = posixpath.splitext(file)[1].lower()
        if ending in OTHER_IMAGE_SUFFIXES:
            kinds.setdefault(ending, []).append(file)
        elif not ending and _is_image(root / file):
            kinds.setdefault("", []).append(file)
    lines = []
    for ending, found in sorted(kinds.items()):
        count, several = len(found), len(found) != 1
        message = f"{ending} file{'s' * several}" if ending else f"image{'s' * several}"
        without = "" if ending else " without an extension"
        names = ", ".join(found[:_NAMED]) + (", ..." if count > _NAMED else "")
        is_ = "are" if several else "is"
        lines.append((found[0], f"{count:,} {message}{without} {is_} not read: {names}"))
    return lines


def said_of_unread(root: Path, files: Iterable[str]) -> str:
    """The same for the end of a message: ``; 3 .heic files are not read: ...: save them ...``."""
    lines = [line for _, line in unread_images(root, files)]
    return f"; {'; '.join(lines)}: {CONVERT}" if lines else ""


def _is_image(path: Path) -> bool:
    """Whether a file's first bytes are those of an image."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return webp or head.startswith(_MAGIC) or head[4:12] in _BOXED
