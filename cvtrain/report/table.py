"""Tables for a terminal: no number is ever cut, what has no room beside goes below.

``results_table`` is printed at the end of an evaluation: the metrics, the classes, the notes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cvtrain.text import printable, shortened

MAX_CLASSES = 20

_GAP = 2  # columns between two columns of a table
_NAME = 24  # the first column may take so many before it splits a table that would fit else
_LINES = 3  # that a name may take


class Blocks:
    """A table in blocks of as many columns as there is room for; the first column begins each.

    Names in the first column wrap where that keeps the table in one block, or where they would
    leave no room for a number; one that needs more than three lines loses its middle.

    Args:
        rows: cells, the titles first; what they hold is printed as it is, on one line.
        text: columns that are text, flush left; the first always is.
        faint: rows (the titles are row 0) in gray.
    """

    def __init__(
        self, rows: Sequence[Sequence[str]], text: Sequence[int] = (), faint: Sequence[int] = ()
    ) -> None:
        self.rows = [[printable(cell) for cell in row] for row in rows]
        self.text, self.faint = {0, *text}, set(faint)

    def split(self, width: int) -> tuple[int, list[list[int]]]:
        """The width of the first column, and the columns of each block, in ``width`` columns."""
        wide = [max(cell_len(row[c]) for row in self.rows) for c in range(len(self.rows[0]))]
        needed = [_GAP + w for w in wide[1:]]
        room = max(_NAME, width - sum(needed))
        first = max(1, min(wide[0], room, width - max(needed, default=0)))
        blocks: list[list[int]] = [[0]]
        used = first
        for column, more in enumerate(needed, start=1):
            if used + more > width and len(blocks[-1]) > 1:
                blocks.append([0])
                used = first
            blocks[-1].append(column)
            used += more
        return first, blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, blocks = self.split(options.max_width)
        for n, columns in enumerate(blocks):
            if n:
                yield ""
            yield self._block(first, columns)

    def _block(self, first: int, columns: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for c in columns:
            side = "left" if c in self.text else "right"
            table.add_column(
                self.rows[0][c],
                justify=side,  # type: ignore[arg-type]
                no_wrap=c > 0,
                overflow="fold",
                width=first if c == 0 else None,
                min_width=max(cell_len(row[c]) for row in self.rows) if c else None,
            )
        for n, row in enumerate(self.rows[1:], start=1):
            name = shortened(row[0], _LINES * first, cell_len)
            cells = [name, *(row[c] for c in columns[1:])]
            table.add_row(*cells, style="dim" if n in self.faint else None)
        return table


def results_table(
    metrics: Mapping[str, float], details: Mapping[str, Any] | None = None
) -> RenderableType:
    """A rich renderable of ``Metrics.compute()`` and ``Metrics.details()``.

    Args:
        metrics: scalars by name; NaN shows as a dash.
        details: with ``per_class`` and ``notes``; of many classes only the best and the worst
            are shown.
    """
    parts: list[RenderableType] = [_scalars(metrics)]
    if details is not None:
        rows = details.get("per_class", [])
        if len(rows) > 1:
            parts += ["", _classes(rows), *_meaning(details)]
        parts += [Text(f"note: {note}", style="yellow") for note in details.get("notes", [])]
    return Group(*parts)


def _scalars(metrics: Mapping[str, float]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in metrics.items():
        table.add_row(name, number(value))
    return table


def _classes(rows: list[dict[str, Any]]) -> Blocks:
    hidden = {"name", "id"}
    if "predicted" in rows[0]:  # those that somebody sees who looks at the images
        hidden.add("predictions")
    columns = [c for c in rows[0] if c not in hidden]
    shown, gap = _pick(rows, columns)
    cells = [["class", *columns]]
    for n, row in enumerate(shown):
        if n == gap:
            cells.append(
                [f"({len(rows) - len(shown)} between)", *itertools.repeat("", len(columns))]
            )
        cells.append([row["name"], *(number(row[c]) for c in columns)])
    return Blocks(cells, faint=() if gap < 0 else (gap + 1,))


def _meaning(details: Mapping[str, Any]) -> list[RenderableType]:
    """What a column counts that does not say it itself."""
    if "predicted" not in details["per_class"][0]:
        return []
    score = details["confusion_thresholds"]["score"]
    return [Text(f"predicted: those with a score of {score:g} or more", style="dim")]


def _pick(rows: list[dict[str, Any]], columns: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The rows to show and before which of them the rest is left out (-1: nothing is)."""
    if len(rows) <= MAX_CLASSES:
        return rows, -1
    # The first column of fractions says how good a class is; those without a value come last.
    score = next(c for c in columns if isinstance(rows[0][c], float))
    ranked = sorted(rows, key=lambda r: (math.isnan(r[score]), -r[score]))
    worst = sum(not math.isnan(r[score]) for r in ranked)  # where the defined ones end
    half = MAX_CLASSES // 2
    tail = ranked[worst - half : worst] if worst >= MAX_CLASSES else ranked[-half:]
    return ranked[:half] + tail, half


def number(value: float) -> str:
    """Four decimals, counts as they are, a dash where undefined."""
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:.4f}"
