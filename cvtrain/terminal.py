"""The terminal: where all that people read is printed, foreign text made fit for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cvtrain.text import printable_lines, say

WIDE = 10_000
"""Columns where nobody watches: a file has no width, tables keep their columns side by side."""


class Terminal(Console):
    """A console that takes text as text: no markup, no emoji codes, no control characters.

    Args:
        options: as of ``rich.console.Console``; where the output is no terminal and no ``width``
            is given, lines are as long as they are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        if not self.is_terminal and "width" not in options:
            self.width = WIDE

    def render_str(self, text: str, **how: Any) -> Text:
        """Strings, cells of tables among them, on their way to becoming ``Text``."""
        return super().render_str(printable_lines(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Everything that is printed comes by here in parts: their text is cleaned."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; in a terminal nothing is cut, cells take the lines they need.

    In a pipe a row is a line, its columns aligned.
    """
    if sys.stdout.isatty():
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for i, title in enumerate(titles):
            words = [word for row in [list(titles), *rows] for word in row[i].split()]
            table.add_column(
                title,
                style="bold" if i == 0 else "",
                no_wrap=i == 0,
                overflow="fold",
                min_width=min(24, max(map(len, words), default=0)) if i else None,
            )
        for row in rows:
            table.add_row(*row)
        Terminal().print(table)
        return
    widths = [max(len(r[i]) for r in [list(titles), *rows]) for i in range(len(titles) - 1)]
    for row in [list(titles), *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())
