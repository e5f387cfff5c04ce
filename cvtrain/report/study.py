"""Several runs as one table and one plot: mean and standard deviation over seeds.

A result has a panel (a backbone), a line (a regime), a place on the x axis (images per class) and a
seed; the driver of a study says which is which.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from cvtrain.report.figure import COLORS, MUTED, entry, new_figure, safe
from cvtrain.text import markdown_cell

_MARKERS = "osD^vP*X"
_PANELS_A_ROW = 3


@dataclass(frozen=True)
class Result:
    """One run's number; None where it failed or is still to come."""

    panel: str
    line: str
    x: str
    seed: int
    value: float | None


@dataclass(frozen=True)
class Cell:
    """The runs that differ in their seeds alone.

    Attributes:
        values: of the runs that have one.
        mean: NaN of none.
        std: the sample's standard deviation (n - 1 in the denominator); NaN below two values.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    def text(self, *, count: bool = False) -> str:
        """``0.612 ± 0.013``, with ``count`` its n too; a dash for none."""
        if not self.values:
            return "-"
        spread = "" if self.n < 2 else f" ± {self.std:.3f}"
        return f"{self.mean:.3f}{spread}" + (f" (n={self.n})" if count else "")


class Grid:
    """Results by panel, place and line, each in the order of its first result.

    Args:
        results: of all runs that were planned.
        minimize: smaller is better (a loss).
    """

    def __init__(self, results: Sequence[Result], *, minimize: bool = False) -> None:
        self.results = list(results)
        self.minimize = minimize
        self.panels = list(dict.fromkeys(r.panel for r in results))
        self.xs = list(dict.fromkeys(r.x for r in results))
        self.lines = list(dict.fromkeys(r.line for r in results))
        self.seeds = list(dict.fromkeys(r.seed for r in results))

    def cell(self, panel: str, x: str, line: str) -> Cell:
        """The runs of one panel, place and line."""
        found = (r for r in self.results if (r.panel, r.x, r.line) == (panel, x, line))
        return Cell(tuple(r.value for r in found if r.value is not None))

    def best(self, panel: str, x: str) -> list[str]:
        """The line with the best mean, all of a tie; none where fewer than two have a result."""
        means = {line: self.cell(panel, x, line).mean for line in self.lines}
        known = {line: mean for line, mean in means.items() if not math.isnan(mean)}
        if len(known) < 2:
            return []
        top = (min if self.minimize else max)(known.values())
        return [line for line, mean in known.items() if mean == top]

    @property
    def even(self) -> bool:
        """Whether every cell has a result of every seed."""
        cells = (self.cell(p, x, line) for p in self.panels for x in self.xs for line in self.lines)
        return all(cell.n == len(self.seeds) for cell in cells)

    def rows(self, x_title: str, panel_title: str) -> list[list[str]]:
        """A titles row, then one row for each panel and place: ``mean ± std`` of each line."""
        several = len(self.xs) > 1
        rows = [[panel_title, *([x_title] if several else []), *self.lines]]
        for panel in self.panels:
            for x in self.xs:
                cells = [self.cell(panel, x, line) for line in self.lines]
                texts = [cell.text(count=not self.even) for cell in cells]
                rows.append([panel, *([x] if several else []), *texts])
        return rows


def markdown(grid: Grid, metric: str, x_title: str, panel_title: str) -> str:
    """The table in Markdown, the best mean of each row in bold, and how often each line wins."""
    rows = grid.rows(x_title, panel_title)
    places = [(panel, x) for panel in grid.panels for x in grid.xs]
    lead = len(rows[0]) - len(grid.lines)
    rows[0] = [markdown_cell(title) for title in rows[0]]
    for row in rows[1:]:
        row[:lead] = [markdown_cell(cell) for cell in row[:lead]]
    for row, place in zip(rows[1:], places, strict=True):
        for line in grid.best(*place):
            column = lead + grid.lines.index(line)
            row[column] = f"**{row[column]}**"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join(["---"] * lead + ["---:"] * len(grid.lines)) + " |")
    seeds = ", ".join(map(str, grid.seeds))
    if len(grid.seeds) > 1:
        message = f"{metric}: mean ± standard deviation over the seeds {seeds}"
        message += f"; n = {len(grid.seeds)}" if grid.even else "; n is how many runs have a result"
    else:
        message = f"{metric}, of one seed ({seeds})"
    decided = [best for place in places if (best := grid.best(*place))]
    if decided:
        counts = ", ".join(f"{line} {sum(line in b for b in decided)}" for line in grid.lines)
        message += f". Best mean of a row (of {len(decided)}): {counts}"
    return "\n".join([*lines, "", message + "."])


def plot(grid: Grid, path: str | Path, metric: str, x_title: str, title: str = "") -> Path:
    """One panel a backbone, one line a regime with error bars of one standard deviation.

    Faint dots are the single runs. With one place alone the lines stand side by side.

    Raises:
        RunError: the file cannot be written.
    """
    wide = min(_PANELS_A_ROW, max(1, len(grid.panels)))
    tall = math.ceil(max(1, len(grid.panels)) / wide)
    with new_figure(path, 4.6 * wide + 1.0, 3.6 * tall) as figure:
        if title:
            figure.suptitle(safe(title, 100), x=0.01, ha="left", color=MUTED, fontsize=9)
        axes = figure.subplots(tall, wide, sharey=True, squeeze=False).ravel()
        for ax, panel in zip(axes, grid.panels, strict=False):
            _panel(ax, grid, panel)
            ax.set_title(safe(panel))
            ax.set_xlabel(x_title if len(grid.xs) > 1 else "")
        for ax in axes[len(grid.panels) :]:
            ax.set_axis_off()
        for ax in axes[::wide]:
            ax.set_ylabel(safe(metric))
        handles, labels = axes[0].get_legend_handles_labels()
        if handles and len(grid.xs) > 1:
            figure.legend(handles, labels, loc="outside right upper", labelcolor=MUTED)
    return Path(path)


def _panel(ax: Axes, grid: Grid, panel: str) -> None:
    several = len(grid.xs) > 1
    for k, line in enumerate(grid.lines):
        # Beside each other, so that no error bar hides another's.
        shift = (k - (len(grid.lines) - 1) / 2) * 0.07
        cells = [grid.cell(panel, x, line) for x in grid.xs]
        places = [i + shift if several else float(k) for i in range(len(cells))]
        known = [(p, c) for p, c in zip(places, cells, strict=True) if c.n]
        color = COLORS[k % len(COLORS)]
        for place, cell in known:
            ax.scatter([place] * cell.n, cell.values, s=9, color=color, alpha=0.35, linewidths=0)
        ax.errorbar(
            [place for place, _ in known],
            [cell.mean for _, cell in known],
            yerr=[0.0 if math.isnan(cell.std) else cell.std for _, cell in known],
            color=color,
            marker=_MARKERS[k % len(_MARKERS)],
            markersize=5,
            capsize=3,
            label=entry(safe(line)),
        )
    ticks = grid.xs if several else grid.lines
    ax.set_xticks(range(len(ticks)), [safe(tick) for tick in ticks])
    ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.grid(axis="x", visible=False)
