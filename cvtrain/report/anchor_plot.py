"""Average IoU over the number of anchors (Redmon & Farhadi 2016, figure 2), and their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cvtrain.report.figure import COLORS, MUTED, new_figure

SHOWN = 2000
"""Boxes drawn as dots, evenly taken of all."""


def plot_anchors(
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    sizes: np.ndarray,
    path: str | Path,
    model: tuple[str, float],
) -> Path:
    """The curve, and beside it the chosen anchors among the boxes.

    Args:
        rows: ``k``, ``average_iou``, ``anchors`` (width, height in shares of the image).
        chosen: one of them.
        sizes: ``(N, 2)`` the boxes' widths and heights in shares of the image.
        path: the PNG to write.
        model: its name, and the average IoU of its default anchors here.

    Raises:
        RunError: the file cannot be written.
    """
    with new_figure(path, 9.6, 4.2) as figure:
        curve, shapes = figure.subplots(1, 2, width_ratios=(1.15, 1))
        k = [row["k"] for row in rows]
        iou = [row["average_iou"] for row in rows]
        curve.plot(k, iou, color=COLORS[0], marker="o", markersize=4, label="k-means")
        curve.plot(chosen["k"], chosen["average_iou"], "o", color=COLORS[1], markersize=8)
        curve.annotate(
            f"{chosen['k']}: {chosen['average_iou']:.3f}",
            (chosen["k"], chosen["average_iou"]),
            (8, -12),
            textcoords="offset points",
        )
        name, now = model
        curve.axhline(now, color=MUTED, linestyle="--", linewidth=1)
        curve.text(
            1, now, f"{name}'s default: {now:.3f}", color=MUTED, fontsize=8, ha="right",
            va="bottom", transform=curve.get_yaxis_transform(),
        )  # fmt: skip
        curve.set_ylim(0, 1.02)
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
        curve.set_xlabel("anchors")
        curve.set_ylabel("average IoU")
        curve.set_title(f"Average IoU of {len(sizes):,} boxes with their nearest anchor")

        few = sizes[np.linspace(0, len(sizes) - 1, min(SHOWN, len(sizes))).astype(int)]
        shapes.plot(few[:, 0], few[:, 1], ".", color=MUTED, markersize=3, alpha=0.5)
        for n, (w, h) in enumerate(chosen["anchors"]):
            color = COLORS[n % len(COLORS)]
            shapes.add_patch(Rectangle((0, 0), w, h, fill=False, edgecolor=color, linewidth=1.6))
            shapes.plot(w, h, "o", color=color, markersize=6)
        limit = 1.05 * max(1e-3, float(sizes.max()), *(max(a) for a in chosen["anchors"]))
        shapes.set_xlim(0, limit)
        shapes.set_ylim(0, limit)
        shapes.set_aspect("equal")
        shapes.set_xlabel("width, share of the image")
        shapes.set_ylabel("height")
        shapes.set_title(f"{chosen['k']} anchors among the boxes")
    return Path(path)
