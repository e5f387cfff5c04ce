"""Accuracy over latency: a point a run, its name beside it, and the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from cvtrain.report.comparison import Comparison, Row
from cvtrain.report.figure import COLORS, INK, MUTED, new_figure, safe

_STEPS = (7, 14, 24, 36, 50, 68, 90, 115)
"""How far from its point, in points, a name may be written."""
_AROUND = ((0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0))


def plot_pareto(comparison: Comparison, path: str | Path) -> Path:
    """Draw the runs that have a score and a latency.

    The bar through a point is its 10th to 90th percentile. A ring is the latency of a model alone,
    where the point has its proposals added.

    Raises:
        RunError: the file cannot be written.
    """
    rows = [r for r in comparison.rows if r.seconds is not None and comparison.value(r) is not None]
    with new_figure(path, 8.6, 5.4 if len(rows) <= 12 else 7.2) as figure:
        ax = figure.subplots()
        figure.suptitle(safe(comparison.title, 110), x=0.01, ha="left", color=MUTED, fontsize=9)
        more = ", proposals included" if comparison.proposed else ""
        ax.set_xlabel(f"latency of one image{more}, ms ({safe(comparison.device, 60)})")
        ax.set_ylabel(safe(comparison.monitor))
        if not rows:
            ax.text(0.5, 0.5, "no run has a score and a latency", ha="center", color=MUTED)
            return Path(path)
        front = [r for r in comparison.front if r in rows]
        _axes(ax, comparison, rows)
        _front(ax, comparison, front)
        for row in rows:
            _point(ax, comparison, row, row in front)
        if front:
            ax.legend(
                loc="lower right",
                bbox_to_anchor=(1, 1),
                ncols=2,
                fontsize=8,
                labelcolor=MUTED,
                borderaxespad=0.2,
            )
        _name(figure, ax, comparison, [*front, *(r for r in rows if r not in front)], front)
    return Path(path)


def _place(comparison: Comparison, row: Row) -> tuple[float, float]:
    value = comparison.value(row)
    assert row.seconds is not None
    assert value is not None
    return row.seconds * 1000, value


def _axes(ax: Axes, comparison: Comparison, rows: Sequence[Row]) -> None:
    places = np.array([_place(comparison, row) for row in rows])  # (R, 2)
    lowest = [1000 * min(r.cost["latency_p10"], r.cost["latency"]) for r in rows]
    highest = [
        1000 * (r.seconds + max(0.0, r.cost["latency_p90"] - r.cost["latency"]))
        for r in rows
        if r.seconds is not None
    ]
    ax.set_xscale("log")
    ax.set_xlim(min(lowest) / 1.25, max(highest) * 1.6)
    low, high = places[:, 1].min(), places[:, 1].max()
    room = max(0.12 * (high - low), 0.01)
    ax.set_ylim(low - room, high + room)
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _front(ax: Axes, comparison: Comparison, front: Sequence[Row]) -> None:
    """What accuracy is to be had within a latency: a staircase through the front's points."""
    if not front:
        return
    xs, ys = (list(v) for v in zip(*(_place(comparison, r) for r in front), strict=True))
    ax.plot(
        [*xs, ax.get_xlim()[1]],
        [*ys, ys[-1]],
        drawstyle="steps-post",
        color=COLORS[0],
        linewidth=1.2,
        alpha=0.6,
        zorder=1.5,
        label="Pareto front",
    )


def _point(ax: Axes, comparison: Comparison, row: Row, on_front: bool) -> None:
    x, y = _place(comparison, row)
    cost = row.cost
    below = max(0.0, cost["latency"] - cost["latency_p10"]) * 1000
    above = max(0.0, cost["latency_p90"] - cost["latency"]) * 1000
    color = COLORS[0] if on_front else MUTED
    ax.errorbar(
        [x],
        [y],
        xerr=[[below], [above]],
        color=color,
        marker="o",
        markersize=6 if on_front else 5,
        linewidth=1,
        capsize=2,
        zorder=3,
    )
    if cost["proposals"]:
        alone = cost["latency"] * 1000
        ax.plot([alone, x], [y, y], color=color, linestyle=":", linewidth=1, zorder=2)
        ring: Any = {"marker": "o", "markersize": 5, "mfc": "white", "linestyle": ""}
        known = ax.get_legend_handles_labels()[1]
        label = "without proposals" if "without proposals" not in known else None
        ax.plot([alone], [y], **ring, mec=color, zorder=3, label=label)


def _name(
    figure: Figure, ax: Axes, comparison: Comparison, rows: Sequence[Row], front: Sequence[Row]
) -> None:
    """Write each name where it covers no point and no other name, as near as can be."""
    figure.draw_without_rendering()  # the layout decides where the points are
    figure.set_layout_engine("none")
    points = ax.transData.transform([_place(comparison, row) for row in rows])  # (R, 2) pixels
    dots = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points]
    taken = _lines(ax, comparison, rows, front)
    inside = ax.get_window_extent()
    scale = figure.dpi / 72
    for i, (row, point) in enumerate(zip(rows, points, strict=True)):
        label = ax.annotate(
            safe(row.name, 34),
            _place(comparison, row),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK if row in front else MUTED,
            ha="center",
            va="center",
            zorder=4,
        )
        box = label.get_window_extent()
        width, height = box.width, box.height
        best = None
        for step, (dx, dy) in itertools.product(_STEPS, _AROUND):
            x = point[0] + dx * (step * scale + width / 2)
            y = point[1] + dy * (step * scale + height / 2) * (0.6 if dx and dy else 1)
            spot = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
            others = [d for j, d in enumerate(dots) if j != i]
            covered = sum(_overlap(spot, other) for other in [*taken, *others])
            covered += width * height - _overlap(spot, inside)
            if best is None or covered < best[0]:
                best = (covered, x, y, spot, step)
            if covered == 0:
                break
        assert best is not None
        _, x, y, spot, step = best
        label.set_position(((x - point[0]) / scale, (y - point[1]) / scale))
        taken.append(spot)
        if step > _STEPS[1]:
            edge = np.clip(point, [spot.x0, spot.y0], [spot.x1, spot.y1])
            ends = ax.transData.inverted().transform([point, edge])
            ax.plot(ends[:, 0], ends[:, 1], color=MUTED, linewidth=0.5, alpha=0.5, zorder=1)


def _lines(
    ax: Axes, comparison: Comparison, rows: Sequence[Row], front: Sequence[Row]
) -> list[Bbox]:
    """What is drawn beside the points, in pixels: bars, and the steps of the front."""
    ends = []
    for row in rows:
        x, y = _place(comparison, row)
        cost = row.cost
        first = min(cost["latency_p10"], cost["latency"]) * 1000
        ends.append(((first, y), (x + (cost["latency_p90"] - cost["latency"]) * 1000, y)))
    corners = [_place(comparison, row) for row in front]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        ends += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    ends += [((x, y), (ax.get_xlim()[1], y)) for x, y in corners[-1:]]
    boxes = []
    for pair in ends:
        (x0, y0), (x1, y1) = ax.transData.transform(pair)
        wide, tall = sorted((x0, x1)), sorted((y0, y1))
        boxes.append(Bbox.from_extents(wide[0] - 2, tall[0] - 2, wide[1] + 2, tall[1] + 2))
    return boxes


def _overlap(one: Bbox, other: Bbox) -> float:
    """Square pixels that two boxes share."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    tall = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, wide) * max(0.0, tall)
