"""What is printed at the end of an evaluation: the metrics, then the classes, then the notes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MAX_CLASSES = 20


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
            parts.append(_classes(rows))
        parts += [Text(f"note: {note}", style="yellow") for note in details.get("notes", [])]
    return Group(*parts)


def _scalars(metrics: Mapping[str, float]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in metrics.items():
        table.add_row(Text(name), number(value))
    return table


def _classes(rows: list[dict[str, Any]]) -> Table:
    columns = [c for c in rows[0] if c not in ("name", "id")]
    shown, gap = _pick(rows, columns)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=24)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for n, row in enumerate(shown):
        if n == gap:
            table.add_row(Text(f"({len(rows) - len(shown)} between)"), style="dim")
        table.add_row(Text(row["name"]), *(number(row[c]) for c in columns))
    return table


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
