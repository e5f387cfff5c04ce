"""The terminal: where all that people read is printed, foreign text made fit for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cvtrain.text import printable_lines

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
