"""``cvtrain proposals``: makes (or reads) boxes, says how well they cover the objects, writes all.

No torch here, but for the pictures at the end.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import OF_TRAINING, Command

if TYPE_CHECKING:
    from rich.console import Console

    from cvtrain.data.table import Table
    from cvtrain.proposals.source import Prepared, Proposals

COMMAND = Command(
    "proposals",
    "boxes that may hold objects, and their recall: data= [proposals.mode=] [split=]",
    run="cvtrain.commands.proposals:proposals",
    reads=("seed", "run_dir", "split", "data.", "proposals.", "task.", "experiment"),
    unread={
        **OF_TRAINING,
        "model.": "{key}= is not read by proposals: no model is run",
        **dict.fromkeys(
            ("data.batch_size", "data.resize", "data.cache", "data.train_per_class"),
            "{key}= is not read by proposals, which makes boxes on the original images",
        ),
    },
    defaults={"task": "detection", "proposals": "selective_search"},
    order=7,
)

PICTURES = 6
"""Images drawn, of the smallest split that has objects: val before train."""
BEST = 25
"""Boxes of the ranking drawn on each."""


def proposals(cfg: Mapping[str, Any]) -> int:
    """Boxes for every image of a data set, and their recall.

    Writes to ``run_dir`` (None: ``runs/proposals/<timestamp>``): ``proposals.npz`` (see
    ``cvtrain.proposals.file``), ``recall.json``, ``recall.csv``, ``recall.png``, ``boxes.png``.

    Args:
        cfg: the resolved config; reads ``data``, ``proposals``, ``task.name``, ``seed``, ``trust``,
            ``run_dir``, and ``split`` where it was typed.

    Returns:
        The exit code.

    Raises:
        DataError: the data set has errors, or the file holds boxes of other images.
        UsageError: a value that cannot be used.
        RunError: nothing can be written.
    """
    from cvtrain.config.runs import own_folder
    from cvtrain.lock import locked

    folder = own_folder(cfg, "proposals")
    with locked(folder):
        return _proposals(cfg, folder)


def _proposals(cfg: Mapping[str, Any], folder: Path) -> int:
    from cvtrain.commands._tables import checked_tables
    from cvtrain.instantiate import instantiate
    from cvtrain.proposals.recall import Recall
    from cvtrain.terminal import Terminal

    data = cfg["data"]
    source: Proposals = instantiate(
        cfg["proposals"], where="proposals", trust=cfg.get("trust") or ()
    )
    console = Terminal()
    found = checked_tables(cfg, console, _splits(cfg))
    tables = {name: table for name, table in found.items() if len(table)}
    prepared = source.prepare(tables, channels=data["channels"], workers=data.get("num_workers"))
    results = {}
    for name, table in tables.items():
        recall = Recall(cfg["proposals"]["max_boxes"], table.classes.names)
        for i in range(len(table)):
            recall.add(table, i, source.boxes(table.files[i]))
        results[name] = recall.compute()
    _print(console, results, prepared)
    for path in _write(folder, cfg, tables, source, prepared, results):
        console.print(str(path), soft_wrap=True)
    return 0


def _splits(cfg: Mapping[str, Any]) -> list[str] | None:
    """The split that was typed; None: all there are."""
    typed = any(text.startswith("split=") for text in cfg.get("overrides") or ())
    return [cfg["split"]] if typed else None


def _print(console: Console, results: Mapping[str, Any], prepared: Prepared) -> None:
    from rich.table import Table as Page

    for name, result in results.items():
        counts = [_counted(result["images"], "image"), _counted(result["objects"], "object")]
        counts.append(f"{result['boxes_per_image']:,.0f} boxes per image")
        console.print(f"\n{name}: {', '.join(counts)}", style="bold")
        if not result["objects"]:
            console.print("no objects that count: nothing to cover", style="yellow")
            continue
        page = Page(box=None, pad_edge=False, header_style="dim")
        for title in ("boxes", "recall at IoU 0.5", "at IoU 0.7", "ABO", "MABO"):
            page.add_column(title, justify="right")
        for row in result["curve"]:
            numbers = (row["recall50"], row["recall70"], row["ABO"], row["MABO"])
            page.add_row(f"{row['boxes']:,}", *(f"{value:.4f}" for value in numbers))
        console.print(page)
    console.print(f"\n{prepared.summary()}", style="dim")


def _counted(number: int, what: str) -> str:
    ending = "" if number == 1 else "es" if what.endswith("x") else "s"
    return f"{number:,} {what}{ending}"


def _write(
    folder: Path,
    cfg: Mapping[str, Any],
    tables: Mapping[str, Table],
    source: Proposals,
    prepared: Prepared,
    results: Mapping[str, Any],
) -> list[Path]:
    """All files; the paths that a person wants to know."""
    import numpy as np

    from cvtrain.proposals.file import write_proposals
    from cvtrain.report.recall_plot import plot_recall
    from cvtrain.storage import mark_run_folder, write_atomic, write_json_atomic

    mark_run_folder(folder)
    files, sizes = [], []
    for table in tables.values():
        files += [table.files[i] for i in range(len(table))]
        sizes.append(table.sizes)
    about = {key: value for key, value in cfg["proposals"].items() if not key.startswith("_")}
    paths = [
        write_proposals(
            folder / "proposals.npz",
            files,
            np.concatenate([np.zeros((0, 2), np.int32), *sizes]),
            (source.boxes(file) for file in files),
            about,
        )
    ]
    write_json_atomic(
        folder / "recall.json",
        {
            "data": {"name": cfg["data"]["name"], "root": cfg["data"].get("root")},
            "proposals": about,
            "seconds_per_image": prepared.seconds,
            "splits": results,
        },
    )

    def rows(file: Any) -> None:
        writer = csv.writer(file)
        for split, result in results.items():
            for n, row in enumerate(result["curve"]):
                if file.tell() == 0 and n == 0:
                    writer.writerow(["split", *row])
                writer.writerow([split, *row.values()])

    write_atomic(folder / "recall.csv", rows)
    plot_recall(results, folder / "recall.png", str(about.get("mode", about["name"])))
    paths.append(folder / "recall.png")
    pictures = _pictures(tables, source, cfg["data"]["channels"])
    if pictures is not None:
        from cvtrain.report import draw

        paths.append(draw.save(folder / "boxes.png", pictures))
    return paths


def _pictures(tables: Mapping[str, Table], source: Proposals, channels: int) -> Any:
    """Objects beside the boxes nearest to them, and the first boxes of the ranking."""
    import numpy as np

    from cvtrain.data.decode import decode
    from cvtrain.proposals.recall import overlaps
    from cvtrain.report import draw

    with_objects = {n: t for n, t in tables.items() if t.num_annotations}
    name = next((n for n in ("val", "test", "train") if n in with_objects), None)
    if name is None:
        return None
    table = with_objects[name]
    rows = [i for i in range(len(table)) if table.rows(i).stop > table.rows(i).start]
    shown, captions = [], []
    for i in np.array(rows)[np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int)]:
        file = table.files[int(i)]
        if table.generator is not None:
            image = table.generator(file)  # type: ignore[operator]
        else:
            image = decode(Path(table.root, file), channels)
        truths, found = table.boxes[table.rows(int(i))], source.boxes(file)
        iou = overlaps(truths, found.boxes)
        best = iou.argmax(axis=1)
        both = np.concatenate([truths, found.boxes[best]])
        kinds = np.concatenate([np.zeros(len(truths), int), 1 + np.arange(len(truths))])
        names = ["object", *(f"nearest box, IoU {value:.2f}" for value in iou.max(axis=1))]
        shown.append(_drawn(image, both, kinds, names))
        captions.append(f"{file}: {_counted(len(found.boxes), 'box')}")
        first = found.boxes[:BEST]
        ranks = np.arange(len(first))
        shown.append(_drawn(image, first, ranks, [str(n + 1) for n in ranks]))
        captions.append("the first of the ranking")
    return draw.grid(shown, 4, captions)


def _drawn(image: Any, boxes: Any, labels: Any, names: Sequence[str]) -> Any:
    from cvtrain.report import draw

    return draw.draw(image, boxes, labels, names, max_side=448)
