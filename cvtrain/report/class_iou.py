"""The IoU of each class as bars: what a mean of them hides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.report.figure import COLORS, INK, MUTED, new_figure, safe

MAX_BARS = 40
"""Classes with a bar of their own; of more, the best and the worst half of as many."""


def plot_class_iou(details: Mapping[str, Any], path: str | Path) -> Path:
    """A bar a class, the best first, with its share of the true pixels; a line at the mean.

    Classes without ground truth have no bar: they have no IoU.

    Raises:
        RunError: the file cannot be written.
    """
    rows = details["per_class"]
    iou = np.array([row["IoU"] for row in rows], np.float64)
    share, mean = np.asarray(details["class_iou"]["share"]), details["class_iou"]["mean"]
    order = np.argsort(-iou, kind="stable")  # NaN last
    order = order[: int((~np.isnan(iou)).sum())]
    hidden = len(order) - MAX_BARS
    if hidden > 0:
        order = np.concatenate([order[: MAX_BARS // 2], order[-MAX_BARS // 2 :]])
    with new_figure(path, 7.2, max(2.2, 1.1 + 0.26 * len(order))) as figure:
        ax = figure.subplots()
        ax.set_xlim(0, 1)
        ax.set_xlabel("IoU over all pixels of the set")
        if not len(order):
            ax.set_yticks([])
            ax.text(0.5, 0.5, "no ground truth", ha="center", va="center", color=MUTED)
            return Path(path)
        between = f"; {hidden} classes between are not shown" if hidden > 0 else ""
        ax.set_title(f"IoU of each class, mean {mean:.3f}{between}")
        place = np.arange(len(order))
        ax.barh(place, iou[order], color=COLORS[0], height=0.7)
        ax.axvline(mean, color=INK, linestyle="--", linewidth=1)
        for y, k in zip(place, order, strict=True):
            inside = iou[k] > 0.6
            ax.annotate(
                f"{iou[k]:.3f}  ({share[k]:.1%} of pixels)", (iou[k], y),
                (-4 if inside else 4, 0), textcoords="offset points", va="center", fontsize=7,
                ha="right" if inside else "left", color="white" if inside else INK,
                bbox=None if inside else {"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
        ax.set_yticks(place, [safe(rows[k]["name"], 24) for k in order], fontsize=8)
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
    return Path(path)
