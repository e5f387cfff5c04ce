"""How many images a localizer's answers still hold for as the box has to fit better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.metrics.localization import IOU_THRESHOLD
from cvtrain.report.figure import COLORS, INK, MUTED, new_figure


def plot_iou_curve(details: Mapping[str, Any], path: str | Path) -> Path:
    """The share of images whose box, and whose box and class, are right, over the IoU asked for.

    The area below the curve of the box is the mean IoU.

    Raises:
        RunError: the file cannot be written.
    """
    curve = details["iou_curve"]
    threshold = np.asarray(curve["threshold"])  # (T,)
    with new_figure(path, 6.4, 4.2) as figure:
        ax = figure.subplots()
        ax.set_title("Localization: images that are right at each IoU")
        ax.set_xlabel("IoU asked for")
        ax.set_ylabel("share of the images")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        if np.isnan(curve["box"]).all():
            ax.text(0.5, 0.5, "no image", ha="center", va="center", color=MUTED)
            return Path(path)
        # The class's line first: where every class is right, the box's lies on it.
        for n, (key, name) in enumerate((("both", "class and box"), ("box", "box only"))):
            share = np.asarray(curve[key])  # (T,)
            ax.plot(threshold, share, color=COLORS[n], label=name, linestyle=("-", "--")[n])
        at = int(np.searchsorted(threshold, IOU_THRESHOLD))
        reached = float(curve["both"][at])
        ax.axvline(IOU_THRESHOLD, color=MUTED, linewidth=0.8)
        ax.plot([IOU_THRESHOLD], [reached], marker="o", color=COLORS[0], markersize=5)
        ax.annotate(
            f"localization accuracy {reached:.3f}", (IOU_THRESHOLD, reached), (6, 6),
            textcoords="offset points", color=INK, fontsize=8,
        )  # fmt: skip
        ax.legend(loc="lower left", fontsize=8)
    return Path(path)
