"""Loss and metric curves from metrics.csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from cvtrain.report.figure import COLORS, MUTED, entry, new_figure, safe

HEADLINES = (
    "mAP", "mAP50", "mAP75", "voc_mAP50", "voc07_mAP50", "mIoU", "mDice", "pixel_accuracy",
    "localization_accuracy", "mean_iou", "accuracy", "accuracy_top5", "top5_error", "f1_macro",
    "ece",
)  # fmt: skip
"""Metrics of the first panel; the rest (by size, recalls) share a second one."""

MAX_LINES = 10
"""Lines in one panel; more cannot be told apart."""


def plot_curves(metrics_csv: str | Path, path: str | Path) -> Path:
    """Draw every curve of a run: losses, loss terms, metrics, counts, learning rate.

    Args:
        metrics_csv: one row an epoch; columns ``epoch`` (from 0; drawn from 1), ``train/...``,
            ``val/...``, ``lr...``. A cell may be empty (validation every few epochs) or NaN.
        path: the PNG to write.

    Raises:
        RunError: the file cannot be written.
    """
    columns = read_columns(metrics_csv)
    panels = _panels(columns)
    epochs = columns["epoch"] + 1
    shown = list(panels.items()) or [("No epoch has finished yet", [])]
    wide = min(2, len(shown))
    tall = math.ceil(len(shown) / wide)
    with new_figure(path, 6.4 * wide, 3.2 * tall) as figure:
        # A figure of its own for each panel: a wide legend then narrows its own axes alone.
        parts = figure.subfigures(tall, wide, squeeze=False).ravel()
        for part, (title, names) in zip(parts, shown, strict=False):
            _draw_panel(part.subplots(), title, {name: columns[name] for name in names}, epochs)
    return Path(path)


def read_columns(metrics_csv: str | Path) -> dict[str, np.ndarray]:
    """Columns of numbers by name; a cell that is empty or no number is NaN."""
    with Path(metrics_csv).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restval="")
        names = list(reader.fieldnames or [])
        rows = list(reader)
    columns = {name: np.array([_number(row[name]) for row in rows]) for name in names}
    if "epoch" not in columns:
        columns["epoch"] = np.arange(len(rows), dtype=np.float64)
    return columns


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _panels(columns: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Column names by panel title; columns without a finite value are left out."""
    names = [n for n, v in columns.items() if n != "epoch" and np.isfinite(v).any()]
    trained = {n.removeprefix("train/") for n in names if n.startswith("train/")}
    panels: dict[str, list[str]] = {
        "Loss": [],
        "Loss terms": [],
        "Metrics": [],
        "More metrics": [],
        "Counts": [],
        "Learning rate": [],
    }
    for name in names:
        split, _, what = name.partition("/")
        if split == "lr" or what == "lr" or name.startswith("lr-"):
            panels["Learning rate"].append(name)
        elif split not in ("train", "val", "test"):
            continue  # times, throughput, memory
        elif what == "loss":
            panels["Loss"].append(name)
        elif what.startswith("num_"):
            panels["Counts"].append(name)
        elif what in trained or "loss" in what:
            panels["Loss terms"].append(name)
        else:
            panels["Metrics" if what in HEADLINES else "More metrics"].append(name)
    if panels["More metrics"] and not panels["Metrics"]:
        panels["Metrics"] = panels.pop("More metrics")
    if len({name.partition("/")[2] for name in panels["Loss terms"]}) == 1:
        del panels["Loss terms"]  # the loss once more
    for lines in panels.values():
        del lines[MAX_LINES:]
    return {title: lines for title, lines in panels.items() if lines}


def _draw_panel(ax: Axes, title: str, lines: dict[str, np.ndarray], epochs: np.ndarray) -> None:
    ax.set_title(title)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs):  # the same span in every panel, and room around a single epoch
        pad = max(0.5, 0.03 * (epochs.max() - epochs.min()))
        ax.set_xlim(epochs.min() - pad, epochs.max() + pad)
    finite = np.concatenate([v[np.isfinite(v)] for v in lines.values()] or [np.zeros(0)])
    if not finite.size:
        ax.set_axis_off()
        return
    # train and val of one quantity share a color: the split is the line's style.
    stems = list(dict.fromkeys(name.partition("/")[2] or name for name in lines))
    paired = len(stems) < len(lines) and len(stems) > 1
    for n, (name, values) in enumerate(lines.items()):
        split, _, what = name.partition("/")
        color = COLORS[(stems.index(what or name) if paired else n) % len(COLORS)]
        dashed = (paired and split == "train") or (not paired and n >= len(COLORS))
        good = np.isfinite(values)
        ax.plot(
            epochs[good],
            values[good],
            color=color,
            linestyle="--" if dashed else "-",
            marker="o" if good.sum() <= 25 else None,
            markersize=3,
            clip_on=False,
            label=entry(safe(name)),
        )
    _scale(ax, title, finite)
    # Beside the axes, where it cannot hide a curve.
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, labelcolor=MUTED)


def _scale(ax: Axes, title: str, finite: np.ndarray) -> None:
    top = float(finite.max())
    if title.endswith("etrics") and finite.min() >= 0 and top <= 1:
        ax.set_ylim(0, min(1.02, max(0.05, 1.1 * top)))
    elif title.startswith("Loss") and finite.min() > 0 and top / finite.min() > 100:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif finite.min() >= 0:
        ax.set_ylim(bottom=0, top=1.08 * top if top > 0 else 1)
