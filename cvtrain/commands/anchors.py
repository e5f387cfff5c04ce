"""``cvtrain anchors``: k-means on a data set's boxes, and what each number of anchors is worth.

Redmon & Farhadi 2016 (arXiv 1612.08242), section 2 and figure 2: the mean IoU of every box with the
anchor nearest to it in shape, over the number of anchors.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import OF_TRAINING, Command
from cvtrain.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console


COMMAND = Command(
    "anchors",
    "anchors from the boxes of a data set, and what they are worth: data= [k=1..15]",
    run="cvtrain.commands.anchors:anchors",
    reads=("seed", "run_dir", "k", "data.", "task.", "model", "experiment"),
    unread={
        **OF_TRAINING,
        **dict.fromkeys(
            ("data.batch_size", "data.cache", "data.train_per_class", "data.num_workers"),
            "{key}= is not read by anchors, which looks only at the boxes",
        ),
    },
    defaults={"task": "detection", "model": "yolov2"},
    order=8,
)


def anchors(cfg: Mapping[str, Any]) -> int:
    """Anchors for the training images of a data set, and the line that gives them to a model.

    Writes to ``run_dir`` (None: ``runs/anchors/<timestamp>``): ``anchors.json``, ``anchors.csv``,
    ``anchors.png``.

    Args:
        cfg: the resolved config; reads ``data``, ``k``, ``model.name``, ``model.anchors``,
            ``task.name``, ``seed``, ``trust`` and ``run_dir``.

    Returns:
        The exit code.

    Raises:
        DataError: the data set has errors, or fewer boxes than anchors are wanted.
        UsageError: a value that cannot be used, or a model that takes no such anchors.
        RunError: nothing can be written.
    """
    from cvtrain.commands._tables import checked_tables
    from cvtrain.config.rules import span
    from cvtrain.config.runs import own_folder
    from cvtrain.data.box_sizes import box_sizes
    from cvtrain.terminal import Terminal

    data, seed = cfg["data"], cfg["seed"]
    model = cfg["model"]
    if not isinstance(model.get("anchors"), list):
        raise UsageError(f"model={model['name']} takes no anchors of this kind; model=yolov2 does")
    folder = own_folder(cfg, "anchors")
    console = Terminal()
    table = checked_tables(cfg, console).get("train")
    if table is None:
        raise DataError("the data set has no train split to make anchors from")
    sizes = box_sizes(table, data["image_size"], data["resize"], seed)
    numbers = span(cfg["k"])
    assert numbers is not None  # a rule of config/rules.py
    rows = _clusters(sizes, numbers, seed)
    now = _mean_iou(sizes, model["anchors"])
    chosen = _chosen(rows, len(model["anchors"]))
    _print(console, rows, chosen, len(sizes), model, now)
    for path in _write(folder, cfg, sizes, rows, chosen, now):
        console.print(str(path), soft_wrap=True)
    return 0


def _clusters(sizes: np.ndarray, numbers: tuple[int, int], seed: int) -> list[dict[str, Any]]:
    """A row for each number of anchors: ``k``, ``average_iou``, ``anchors``."""
    import torch

    from cvtrain.layers.anchors import kmeans_sizes

    first, last = numbers
    if len(sizes) < first:
        boxes = f"{len(sizes):,} box{'es' if len(sizes) != 1 else ''}"
        raise DataError(f"the training images have {boxes}, too few for k={first} anchors")
    rows = []
    for k in range(first, min(last, len(sizes)) + 1):
        found, iou = kmeans_sizes(torch.from_numpy(sizes), k, seed=seed)
        pairs = [[round(float(v), 4) for v in pair] for pair in found]
        rows.append({"k": k, "average_iou": iou, "anchors": pairs})
    return rows


def _mean_iou(sizes: np.ndarray, pairs: Sequence[Sequence[float]]) -> float:
    import torch

    from cvtrain.layers.anchors import shape_iou

    given = torch.tensor(pairs, dtype=torch.float64)
    return float(shape_iou(torch.from_numpy(sizes), given).amax(dim=1).mean())


def _chosen(rows: Sequence[Mapping[str, Any]], wanted: int) -> Mapping[str, Any]:
    """The row of as many anchors as the model has, or of the number nearest to it."""
    return min(rows, key=lambda row: abs(row["k"] - wanted))


def anchors_word(pairs: Sequence[Sequence[float]]) -> str:
    """What gives a model these anchors: ``model.anchors=[[0.1,0.2],[0.4,0.3]]``."""
    return "model.anchors=[" + ",".join(f"[{w:g},{h:g}]" for w, h in pairs) + "]"


def _print(
    console: Console,
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    boxes: int,
    model: Mapping[str, Any],
    now: float,
) -> None:
    from rich.table import Table as Page

    console.print(f"\ntrain: {boxes:,} boxes", style="bold")
    page = Page(box=None, pad_edge=False, header_style="dim")
    page.add_column("anchors", justify="right")
    page.add_column("average IoU", justify="right")
    page.add_column("gain", justify="right")
    before = None
    for row in rows:
        gain = "" if before is None else f"{row['average_iou'] - before:+.4f}"
        page.add_row(str(row["k"]), f"{row['average_iou']:.4f}", gain)
        before = row["average_iou"]
    console.print(page)
    count = len(model["anchors"])
    console.print(f"\nmodel={model['name']} has {count} by default, average IoU here {now:.4f}")
    console.print(f"{chosen['k']} of this data set:")
    console.print(anchors_word(chosen["anchors"]), soft_wrap=True)


def _write(
    folder: Path,
    cfg: Mapping[str, Any],
    sizes: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    now: float,
) -> list[Path]:
    from cvtrain.report.anchor_plot import plot_anchors
    from cvtrain.storage import mark_run_folder, write_atomic, write_json_atomic

    data = cfg["data"]
    mark_run_folder(folder)
    write_json_atomic(
        folder / "anchors.json",
        {
            "data": {"name": data["name"], "root": data.get("root"), "resize": data["resize"]},
            "boxes": len(sizes),
            "model": {"name": cfg["model"]["name"], "average_iou": now},
            "clusters": list(rows),
        },
    )

    def lines(file: Any) -> None:
        writer = csv.writer(file)
        writer.writerow(["k", "average_iou", "anchors"])
        for row in rows:
            writer.writerow([row["k"], row["average_iou"], anchors_word(row["anchors"])])

    write_atomic(folder / "anchors.csv", lines)
    return [
        folder / "anchors.json",
        plot_anchors(rows, chosen, sizes, folder / "anchors.png", (cfg["model"]["name"], now)),
    ]
