"""What a data set holds, in one picture: classes, places, sizes, objects per image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cvtrain.data.table import CROWD, DIFFICULT, Table
from cvtrain.report.figure import COLORS, MUTED, new_figure, safe

MAX_BARS = 30
"""Classes with a bar of their own; the rest are summed up in a line."""

BINS = 40


def plot_labels(table: Table, path: str | Path, title: str = "") -> Path:
    """Draw the statistics of a split as the gate left it (boxes in pixels, sizes of the files).

    Boxes, where they are what is learned: objects per class, a heat map of box centers, box sizes
    and objects per image. Images with classes of their own: images per class and image sizes.
    Anything else: image sizes.

    Args:
        table: a split after the gate.
        path: the PNG to write.
        title: what stands above the plot, e.g. ``train: 1,200 images``.

    Raises:
        RunError: the file cannot be written.
    """
    boxed = table.num_annotations > 0 and table.tags is None
    heading = title or f"{len(table):,} images"
    labels = table.labels if boxed else table.image_labels
    labels = labels if table.tags is None else table.tags
    bars = 0 if labels is None else min(len(table.classes), MAX_BARS + 1)
    height = max(3.4, 0.9 + 0.19 * bars)
    width = 13 if boxed else 10 if bars else 6
    with new_figure(path, width, max(height, 6.6) if boxed else height) as figure:
        figure.suptitle(safe(heading, 100), x=0.01, ha="left", weight="bold", fontsize=12)
        if not bars:
            _draw_image_sizes(figure.subplots(), table)
            return Path(path)
        ratios = (1, 1.7) if boxed else (1, 1.1)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=ratios).ravel()
        assert labels is not None
        noun = "Objects" if boxed else "Images"
        axes = left.subplots()
        _draw_classes(axes, labels, table.classes.names, noun)
        if table.tag_starts is not None:
            counts = np.diff(table.tag_starts)
            axes.set_title(
                f"Images per class: {counts.mean():.1f} classes per image, most {counts.max()}"
            )
        if boxed:
            axes = right.subplots(2, 2)
            _draw_centers(axes[0, 0], table)
            _draw_sizes(axes[0, 1], table)
            _draw_counts(axes[1, 0], np.diff(table.starts))
            _draw_image_sizes(axes[1, 1], table)
        else:
            _draw_image_sizes(right.subplots(), table)
    return Path(path)


def _draw_classes(ax: Axes, labels: np.ndarray, names: tuple[str, ...], noun: str) -> None:
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    ticks = [safe(names[k], 22) for k in order[:MAX_BARS]]
    values = counts[order[:MAX_BARS]]
    rest = order[MAX_BARS:]
    place = np.arange(len(values))
    ax.barh(place, values, color=COLORS[0], height=0.7)
    for y, value in zip(place, values, strict=True):
        ax.annotate(
            f"{value:,}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    ax.set_yticks(place, ticks, fontsize=8)
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.set_xlim(0, max(1, values.max(initial=0)) * 1.15)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(axis="y", visible=False)
    ax.set_title(
        f"{noun} per class: {counts.sum():,} in {np.count_nonzero(counts)} of {len(names)}"
    )
    if len(rest):
        low, high = counts[rest].min(), counts[rest].max()
        ax.set_xlabel(f"{len(rest)} more classes with {low:,} to {high:,} each")


def _relative(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Box centers and box sizes ``(M, 2)``, x then y, as fractions of the image."""
    images = np.repeat(np.arange(len(table)), np.diff(table.starts))
    sizes = table.sizes[images][:, ::-1].astype(np.float64)  # (M, 2) width, height
    known = (sizes > 0).all(axis=1) & np.isfinite(table.boxes).all(axis=1)
    boxes, sizes = table.boxes[known], sizes[known]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / sizes
    return centers, (boxes[:, 2:] - boxes[:, :2]) / sizes


def _draw_centers(ax: Axes, table: Table) -> None:
    centers, _ = _relative(table)
    ax.set_title("Box centers")
    counts, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=BINS, range=[[0, 1], [0, 1]])
    image = ax.imshow(counts, extent=(0, 1, 1, 0), cmap="viridis", aspect="auto")
    ax.set_xlabel("x / image width")
    ax.set_ylabel("y / image height")
    ax.grid(visible=False)
    _bar(ax, image, "boxes")


def _draw_sizes(ax: Axes, table: Table) -> None:
    _, sizes = _relative(table)
    ax.set_title("Box sizes")
    counts, _, _ = np.histogram2d(sizes[:, 1], sizes[:, 0], bins=BINS, range=[[0, 1], [0, 1]])
    shown = np.ma.masked_equal(counts, 0)
    image = ax.imshow(shown, extent=(0, 1, 0, 1), origin="lower", cmap="viridis", aspect="auto")
    ax.set_xlabel("box width / image width")
    ax.set_ylabel("box height / image height")
    ax.grid(visible=False)
    _bar(ax, image, "boxes")


def _bar(ax: Axes, image: object, label: str) -> None:
    figure = ax.figure
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)  # type: ignore[arg-type]
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.locator = MaxNLocator(5, integer=True)
    bar.update_ticks()


def _draw_counts(ax: Axes, counts: np.ndarray) -> None:
    highest = int(counts.max(initial=1))
    step = max(1, -(-(highest + 1) // 50))  # at most 50 bars, each a whole number of objects wide
    edges = np.arange(0, highest + step + 1, step) - 0.5
    ax.hist(counts, bins=edges.tolist(), color=COLORS[0], rwidth=0.9)
    ax.set_title(f"Objects per image: mean {counts.mean():.1f}, most {highest}")
    ax.set_xlabel(f"objects ({np.count_nonzero(counts == 0):,} images have none)")
    ax.set_ylabel("images")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_image_sizes(ax: Axes, table: Table) -> None:
    known = table.sizes[(table.sizes > 0).all(axis=1)]
    ax.set_title("Image sizes")
    ax.set_xlabel("width, pixels")
    ax.set_ylabel("height, pixels")
    if len(known):
        sizes, counts = np.unique(known, axis=0, return_counts=True)
        area = 12 + 240 * counts / counts.max()
        ax.scatter(sizes[:, 1], sizes[:, 0], s=area, color=COLORS[0], alpha=0.45, linewidths=0)
        ax.set_xlim(0, sizes[:, 1].max() * 1.15)
        ax.set_ylim(0, sizes[:, 0].max() * 1.15)
        top = sizes[counts.argmax()]
        often = f"{top[1]} x {top[0]}"
        several = f"Image sizes: {len(sizes):,}, mostly {often}"
        ax.set_title(several if len(sizes) > 1 else f"Image size: {often}")
    flagged = int(np.count_nonzero(table.flags & (CROWD | DIFFICULT)))
    if flagged:
        ax.annotate(
            f"{flagged:,} of {table.num_annotations:,} objects are crowd or difficult",
            (0.02, 0.02),
            xycoords="axes fraction",
            fontsize=7,
            color=MUTED,
        )
