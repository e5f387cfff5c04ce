#!/usr/bin/env python
"""Cut images with masks or objects into square tiles with a class each: a folder data set.

Reads any data set cvtrain reads (COCO with segments, image and mask pairs, ...) through the same
check, and writes OUT/{train,val}/CLASS/*.png, which data=folder takes. Tiles of an image stay in
that image's split. What a tile is, --label says:

  center  the class of its center pixel, as in Ciresan et al. 2012 ("Deep neural networks segment
          neuronal membranes in electron microscopy images"); objects count as pixels too
  share   the class that covers at least --share of it; tiles of no such class are left out
  count   how many objects have their center in it: empty (not a pixel of any), few, many (--many);
          tiles with parts of objects alone are left out

Nothing is written to the data set. Example:

  python scripts/make_tiles.py membrane tiles --size 32 --label center --per-class 300
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np

from cvtrain.augment.scene import Scene
from cvtrain.data.datamodule import DataModule
from cvtrain.data.formats.auto import AutoReader
from cvtrain.data.gate.run import run_gate
from cvtrain.errors import CvtrainError, UsageError
from cvtrain.structures import IGNORE_INDEX

COUNTS = ("empty", "few", "many")
Namer = Callable[[Scene, slice, slice], str | None]
"""A scene and the rows and columns of a tile -> the tile's class; None: it has none."""


def main(argv: list[str] | None = None) -> int:
    """Cut the tiles; 0, or 1 after one line about what is wrong."""
    args = _arguments(argv)
    try:
        counts = make_tiles(
            args.root,
            args.out,
            size=args.size,
            stride=args.stride or args.size,
            label=args.label,
            share=args.share,
            many=args.many,
            per_class=args.per_class,
            on_bad=args.on_bad,
            seed=args.seed,
        )
    except CvtrainError as error:
        print(f"make_tiles: {error}", file=sys.stderr)
        return 1
    for split, classes in counts.items():
        listed = ", ".join(f"{name} {number:,}" for name, number in classes.items())
        print(f"{split}: {sum(classes.values()):,} tiles ({listed})")
    print(f"cvtrain check data=folder data.root={args.out}")
    return 0


def make_tiles(
    root: Path,
    out: Path,
    *,
    size: int,
    stride: int,
    label: str,
    share: float = 0.6,
    many: int = 4,
    per_class: int | None = None,
    on_bad: str = "error",
    seed: int = 0,
) -> dict[str, dict[str, int]]:
    """Cut every image of a data set into tiles.

    Args:
        root: the data set.
        out: a folder that is not there yet, or empty, outside the data set.
        size: side of a tile, pixels.
        stride: pixels from one tile to the next.
        label: center, share or count.
        share: of a tile that one class must cover, 0.5..1.
        many: objects from which a tile counts as ``many``.
        per_class: at most so many tiles of each class and split, drawn by ``seed``; None: all.
        on_bad: what the check does with bad images and annotations: error, fix or drop.
        seed: of the draw, and of the validation split where the data set has none.

    Returns:
        split -> class -> number of tiles.

    Raises:
        UsageError: a folder that cannot be written to, a value out of range, no tiles.
        DataError: a data set that cannot be used.
    """
    if size < 1 or stride < 1 or not 0.5 <= share <= 1 or many < 2 or (per_class or 1) < 1:
        raise UsageError("--size, --stride, --per-class from 1, --share 0.5 to 1, --many from 2")
    _check_out(root, out)
    task = "instance_segmentation" if label == "count" else "semantic_segmentation"
    report = run_gate(AutoReader(root), task, on_bad=on_bad, seed=seed)
    data = DataModule(report.tables, task, None, image_size=size, num_workers=0)
    names = data.classes.names
    namer: Namer
    if label == "count":
        namer = _counter(many)
    elif label == "center":
        namer = lambda scene, rows, columns: _center(scene, rows, columns, names)  # noqa: E731
    else:
        namer = lambda scene, rows, columns: _share(scene, rows, columns, names, share)  # noqa: E731
    counts = {}
    for split in report.tables:
        dataset = data.dataset(split)
        tiles = list(_tiles(dataset, size, stride, namer))
        if not tiles:
            raise UsageError(f"no tile of {size} pixels in {split} has a class; choose others")
        kept = _draw(tiles, per_class, seed)
        _write(dataset, kept, out / split, size)
        order = COUNTS if label == "count" else names
        found = Counter(name for name, *_ in kept)
        counts[split] = {name: found[name] for name in order if found[name]}
    settings = {"size": size, "stride": stride, "label": label, "seed": seed}
    settings |= {"share": share} if label == "share" else {}
    settings |= {"many": many} if label == "count" else {}
    record = {"source": root.name, **settings, "per_class": per_class, "tiles": counts}
    (out / "tiles.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return counts


def _check_out(root: Path, out: Path) -> None:
    """Refuse a folder inside the data set, and one that holds anything."""
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{out} lies in the data set, which is never written to; choose another")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already and not empty; choose another folder")


def _tiles(
    dataset: Any, size: int, stride: int, namer: Namer
) -> Iterator[tuple[str, int, int, int]]:
    """(class, image, top, left) of every tile that has a class and lies wholly in its image."""
    for row in range(len(dataset)):
        scene = dataset.scene(row)
        height, width = scene.image.shape[:2]
        for top in range(0, height - size + 1, stride):
            for left in range(0, width - size + 1, stride):
                name = namer(scene, slice(top, top + size), slice(left, left + size))
                if name is not None:
                    yield name, row, top, left


def _center(scene: Scene, rows: slice, columns: slice, names: tuple[str, ...]) -> str | None:
    assert scene.mask is not None
    value = int(scene.mask[(rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2])
    return None if value == IGNORE_INDEX else names[value]


def _share(
    scene: Scene, rows: slice, columns: slice, names: tuple[str, ...], share: float
) -> str | None:
    assert scene.mask is not None
    part = scene.mask[rows, columns]
    pixels = np.bincount(part[part != IGNORE_INDEX], minlength=len(names))
    top = int(pixels.argmax())
    return names[top] if pixels[top] >= share * part.size else None


def _counter(many: int) -> Namer:
    def name(scene: Scene, rows: slice, columns: slice) -> str | None:
        assert scene.masks is not None
        if not scene.masks.union()[rows, columns].any():
            return COUNTS[0]
        x = (scene.boxes[:, 0] + scene.boxes[:, 2]) / 2
        y = (scene.boxes[:, 1] + scene.boxes[:, 3]) / 2
        inside = (x >= columns.start) & (x < columns.stop) & (y >= rows.start) & (y < rows.stop)
        number = int(inside.sum())
        return None if number == 0 else COUNTS[1 + (number >= many)]

    return name


def _draw(
    tiles: list[tuple[str, int, int, int]], per_class: int | None, seed: int
) -> list[tuple[str, int, int, int]]:
    """At most ``per_class`` tiles of each class, in the order they came in."""
    if per_class is None:
        return tiles
    order = np.random.default_rng(seed).permutation(len(tiles))
    taken: Counter[str] = Counter()
    kept = []
    for i in order.tolist():
        name = tiles[i][0]
        if taken[name] < per_class:
            taken[name] += 1
            kept.append(i)
    return [tiles[i] for i in sorted(kept)]


def _write(dataset: Any, tiles: list[tuple[str, int, int, int]], folder: Path, size: int) -> None:
    """PNG files, lossless, named after the image and the tile's place in it."""
    row, image = -1, np.zeros(0)
    for name, wanted, top, left in tiles:
        if wanted != row:
            row, image = wanted, dataset.image(wanted)
        stem = Path(dataset.table.files[row]).with_suffix("").as_posix().replace("/", "_")
        place = folder / name.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        tile = cv2.cvtColor(image[top : top + size, left : left + size], cv2.COLOR_RGB2BGR)
        ok, encoded = cv2.imencode(".png", tile)
        if not ok:
            raise UsageError(f"{stem}: a tile of {tile.shape} cannot be written as PNG")
        (place / f"{stem}_y{top}_x{left}.png").write_bytes(encoded.tobytes())


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of the data set")
    parser.add_argument("out", type=Path, help="folder to write: new or empty")
    parser.add_argument("--size", type=int, default=64, help="side of a tile, pixels (64)")
    parser.add_argument("--stride", type=int, help="pixels from tile to tile (the size)")
    parser.add_argument("--label", choices=("center", "share", "count"), default="center")
    parser.add_argument("--share", type=float, default=0.6, help="with --label share (0.6)")
    parser.add_argument("--many", type=int, default=4, help="with --label count (4)")
    parser.add_argument("--per-class", type=int, help="tiles of a class and split; all")
    parser.add_argument("--on-bad", choices=("error", "fix", "drop"), default="error")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
