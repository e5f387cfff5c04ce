"""Text from strangers (names of files, of classes), made fit for a terminal, a table, a file name.

``cvtrain.terminal`` prints through these; nothing else writes foreign text to a terminal or a log.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

LONGEST_NAME = 200
"""Bytes of a file's name that is made from a foreign one; file systems take 255."""


def printable(text: str) -> str:
    """``text`` on one line of a terminal: line ends, controls and what is no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """``text`` with its line ends, each line made ``printable``."""
    return "\n".join(printable(line) for line in text.split("\n"))


def say(text: str = "") -> None:
    """Print lines for people to standard output, at once."""
    print(printable_lines(text), flush=True)


def shortened(text: str, limit: float, length: Callable[[str], float] = len) -> str:
    """``text``, or if it is longer than ``limit`` its beginning and its end around a ``…``.

    The middle goes: names of a set often share their beginning or their end.

    Args:
        text: any.
        limit: the most that ``length`` may give.
        length: of a text: characters, columns of a terminal, pixels of a font.
    """
    if length(text) <= limit:
        return text
    low, high = 0, len(text)  # so many characters can stay, so many cannot
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(_around(text, middle)) <= limit else (low, middle)
    return _around(text, low)


def _around(text: str, kept: int) -> str:
    head = kept * 2 // 3
    return f"{text[:head]}…{text[len(text) - (kept - head) :]}"


def wrapped(text: str, width: int) -> str:
    """``text`` with its long lines broken at spaces, what follows below the line's last column.

    Columns of a line are what two spaces or more stand between.
    """
    lines = []
    for line in text.split("\n"):
        gaps = [m.end() for m in re.finditer(r"(?:^|\S) {2,}(?=\S)", line)]
        under = max((end for end in gaps if end <= width // 2), default=0)
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * under,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def fitting(parts: Sequence[str], width: int, gap: str = "  ") -> str:
    """As many of ``parts``, the most important first, as a line of ``width`` columns holds."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(gap) + len(part) > width:
            break
        line += gap + part
    return line


def three_digits(value: float) -> str:
    """``3.90``, ``0.0412``, ``123``, ``1.23e+04``: as wide from line to line as can be."""
    return f"{value:#.3g}".removesuffix(".")


def duration(seconds: float) -> str:
    """``0.4 s``, ``40 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def markdown_cell(text: str) -> str:
    """Foreign text as a cell of a Markdown table: shown as it is, never markup, HTML or a link."""
    shown = printable(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*_`[]~$":
        # Underscores inside a word are no emphasis; names of classes are full of them.
        if mark != "_" or text[:1] == "_" or text[-1:] == "_":
            shown = shown.replace(mark, f"\\{mark}")
    return shown


def csv_cell(text: str) -> str:
    """Foreign text as a cell of a CSV: one line, and to a spreadsheet never a formula."""
    shown = printable(text)
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") else shown


def output_file(file_name: str, suffix: str) -> PurePosixPath:
    """A relative path below an output folder, for what is made of the file ``file_name``.

    Folders are kept, but none leads out of the output folder; a name that with ``suffix`` would be
    longer than LONGEST_NAME bytes keeps its beginning, and a digest that no other name has.

    Args:
        file_name: of a data set, with ``/``; its own suffix is part of the name.
        suffix: appended, ``.png``.
    """
    parts = [part for part in file_name.split("/") if part not in ("", ".")]
    safe = [_fitting("__" if part == ".." else part, "") for part in parts[:-1]]
    return PurePosixPath(*safe, _fitting(parts[-1] if parts else "_", suffix))


def _fitting(name: str, suffix: str) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) + len(suffix.encode()) <= LONGEST_NAME:
        return name + suffix
    digest = "~" + hashlib.blake2b(raw, digest_size=6).hexdigest()
    kept = raw[: LONGEST_NAME - len(suffix.encode()) - len(digest)]
    return kept.decode("utf-8", "ignore") + digest + suffix


def relative(path: Path) -> str:
    """A path as it is printed: relative where it lies below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
