"""Recall and mean best overlap of proposals over their number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter

from cvtrain.report.figure import COLORS, MUTED, new_figure, safe

_LINES = {"recall50": "recall at IoU 0.5", "recall70": "recall at IoU 0.7", "MABO": "MABO"}


def plot_recall(splits: Mapping[str, Any], path: str | Path, how: str) -> Path:
    """A panel a split that has objects: recall at both IoU and MABO over the number of boxes.

    Args:
        splits: split -> what ``Recall.compute`` says.
        path: the PNG to write.
        how: the boxes were made, for the title.

    Raises:
        RunError: the file cannot be written.
    """
    shown = {name: result for name, result in splits.items() if result["objects"]}
    with new_figure(path, 5.4 * max(1, len(shown)), 3.8) as figure:
        panels = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
        if not shown:
            panels[0].set_axis_off()
            panels[0].set_title("No objects to cover")
        for ax, (name, result) in zip(panels, shown.items(), strict=False):
            curve = result["curve"]
            counts = [row["boxes"] for row in curve]
            for (key, label), color in zip(_LINES.items(), COLORS, strict=False):
                values = [row[key] for row in curve]
                ax.plot(
                    counts,
                    values,
                    color=color,
                    marker="o",
                    markersize=3,
                    clip_on=False,
                    label=f"{label}: {values[-1]:.3f}",
                )
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_xlim(counts[0], max(counts[-1], counts[0] + 1))
            ax.set_ylim(0, 1.02)
            ax.set_xlabel("boxes per image, best first")
            ax.set_title(safe(f"{name}: {result['objects']:,} objects, {how}", 44))
            ax.legend(loc="lower right", fontsize=8, labelcolor=MUTED)
    return Path(path)
