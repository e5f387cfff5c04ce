"""CSV files as written: a header and records, each with the line it begins in."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cvtrain.data.formats.files import MalformedError, read_text, shorten

DELIMITERS = (",", ";", "\t", "|")
"""What a file's header is tried with where the given one does not part it."""


@dataclass
class CSVFile:
    """One file.

    Attributes:
        name: POSIX path below the root.
        header: the columns' names, stripped.
        records: (line, cells) of each record that is not blank, as many cells as the header has.
        faults: (line, message) of those that have another number of cells.
    """

    name: str
    header: list[str]
    records: list[tuple[int, list[str]]] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def column(self, name: str) -> int:
        """The place of a column; upper and lower case count alike where that finds just one.

        Raises:
            MalformedError: there is no such column.
        """
        if name in self.header:
            return self.header.index(name)
        alike = [i for i, own in enumerate(self.header) if own.lower() == name.lower()]
        if len(alike) == 1:
            return alike[0]
        raise MalformedError(f"no column {name!r}; there are: {named(self.header)}")

    def find(self, names: Sequence[str]) -> int | None:
        """The place of the first of ``names`` (lower case) that is a column."""
        lower = [own.lower() for own in self.header]
        return next((lower.index(name) for name in names if name in lower), None)


def named(header: Sequence[str], limit: int = 12) -> str:
    """Columns in a message."""
    more = f", ... ({len(header)} in all)" if len(header) > limit else ""
    return ", ".join(shorten(name, 30) for name in header[:limit]) + more


def read_csv(root: Path, name: str, delimiter: str, most: int | None = None) -> CSVFile:
    """A CSV file's records; quoted cells may hold delimiters and line ends.

    Args:
        root: of the data set.
        name: POSIX path below it.
        delimiter: one character.
        most: so many records at most; None: all.

    Raises:
        MalformedError: it cannot be read, is not UTF-8, has no header, a column without a name or
            two of one name, or a quote that is not closed.
    """
    text = read_text(root / name)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    try:
        header = [cell.strip() for cell in next(lines)]
        _check_header(header, delimiter)
        found = CSVFile(name, header)
        begins = lines.line_num + 1
        for cells in lines:
            line, begins = begins, lines.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) == len(header):
                found.records.append((line, cells))
            else:
                count = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
                message = shorten(delimiter.join(cells))
                found.faults.append((line, f"{count}, the header has {len(header)}: {message}"))
            if most is not None and len(found.records) >= most:
                break
    except StopIteration:
        raise MalformedError("the file is empty") from None
    except csv.Error as error:
        raise MalformedError(f"not CSV: {error}", f"line {begins}") from error
    return found


def _check_header(header: Sequence[str], delimiter: str) -> None:
    if not any(header):
        raise MalformedError("no column has a name", "line 1")
    twice = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    if twice is not None:
        raise MalformedError(f"column {twice!r} is there twice", "line 1")
    if len(header) == 1:
        other = [d for d in DELIMITERS if d != delimiter and d in header[0]]
        if other:
            spelled = "tab" if other[0] == "\t" else f"'{other[0]}'"
            raise MalformedError(
                f"its header is one column, {shorten(header[0])!r}; "
                f'say data.reader.delimiter="{spelled}"',
                "line 1",
            )
