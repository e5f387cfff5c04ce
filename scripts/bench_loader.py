#!/usr/bin/env python
"""How many images a second one core loads, by stage: 640 x 480 JPEG to batches of 640 x 640.

Makes its own photographs-like JPEGs in a temporary folder, then times, on one core:

- each stage on its own: decode, resize + affine + flip in one step, HSV, collate to a tensor;
- the whole way through ``VisionDataset`` and ``collate``, boxes included, once with zoom and shift
  (what conf/augment/yolo.yaml does) and once with a turn as well (a warp instead of a resize);
- the same steps written plainly with albumentations, for the ratio.

Times are CPU seconds, so that a busy machine disturbs little; the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2

from cvtrain.augment import HSV, Affine
from cvtrain.augment.pipeline import Pipeline
from cvtrain.augment.policy import Augmentation
from cvtrain.data.collate import collate
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.decode import decode
from cvtrain.data.table import Classes, Strings, Table
from cvtrain.data.worker import prepare_process

HEIGHT, WIDTH, SIZE = 480, 640, 640
BOXES = 7  # an image, about COCO's mean
TARGET = 200.0  # images/s per core


def main() -> None:
    args = _arguments()
    prepare_process()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = make_images(Path(folder), args.images, args.quality)
        print(f"{args.images} JPEGs of {WIDTH} x {HEIGHT}, {size / 1024:.0f} KiB each; one core")
        table = make_table(Path(folder), args.images)
        stages(table, args.rounds)
        print(f"{'':34}{'ms/image':>9}{'images/s':>10}")
        ours = whole(table, args.rounds, rotate=0.0)
        report("cvtrain: affine, HSV, flip", ours)
        report("cvtrain: the same and a turn", whole(table, args.rounds, rotate=10.0))
        plain = albumentations_plain(table, args.rounds, rotate=0.0)
        report("albumentations, plainly", plain)
        report("albumentations, and a turn", albumentations_plain(table, args.rounds, rotate=10.0))
    rate = 1.0 / ours
    print(f"ratio to plain albumentations: {plain / ours:.2f}")
    verdict = "reached" if rate >= TARGET else "missed"
    print(f"target of {TARGET:.0f} images/s per core: {verdict} ({rate:.0f})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="JPEG files to make (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="passes over them (default 7)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs (default 90)")
    return parser.parse_args()


def make_images(folder: Path, count: int, quality: int) -> float:
    """Blotches at several scales and grain: about the bytes and decoding time of COCO photographs.

    Returns the mean size of a file, bytes.
    """
    rng = np.random.default_rng(0)
    total = 0
    for i in range(count):
        image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for cells, weight in ((4, 90), (16, 60), (64, 40), (240, 12)):
            coarse = rng.uniform(0, weight, (cells * 3 // 4, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        image += rng.normal(0, 7, image.shape).astype(np.float32)
        path = folder / f"{i:04d}.jpg"
        written = cv2.imwrite(
            str(path),
            np.clip(image, 0, 255).astype(np.uint8),
            [cv2.IMWRITE_JPEG_QUALITY, quality],
        )
        if not written:
            raise OSError(f"{path} could not be written")
        total += path.stat().st_size
    return total / count


def make_table(folder: Path, count: int) -> Table:
    """Those files with ``BOXES`` boxes each."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 0.7, (count * BOXES, 2)) * [WIDTH, HEIGHT]
    sides = rng.uniform(0.05, 0.3, (count * BOXES, 2)) * [WIDTH, HEIGHT]
    rows = count * BOXES
    return Table(
        root=str(folder),
        classes=Classes.from_names(["thing"]),
        files=Strings(f"{i:04d}.jpg" for i in range(count)),
        sizes=np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (count, 1)),
        starts=np.arange(count + 1, dtype=np.int64) * BOXES,
        boxes=np.concatenate([corners, corners + sides], axis=1),
        labels=np.zeros(rows, np.int64),
        flags=np.zeros(rows, np.uint8),
        areas=np.full(rows, np.nan),
        lines=np.zeros(rows, np.int64),
    )


def make_dataset(table: Table, rotate: float) -> VisionDataset:
    """``conf/augment/yolo.yaml`` with a mirror, and a turn where asked for."""
    transforms = [
        Affine(scale=[0.8, 1.2], translate=0.2, hflip=0.5, rotate=rotate),
        HSV(saturation=1.5, exposure=1.5),
    ]
    pipeline = Pipeline(transforms, height=SIZE, width=SIZE, resize="letterbox", targets=("boxes",))
    return VisionDataset(
        table, "detection", height=SIZE, width=SIZE, augmentation=Augmentation(pipeline)
    )


def stages(table: Table, rounds: int) -> None:
    """Prints each stage on its own."""
    count = len(table)
    paths = [Path(table.root, table.files[i]) for i in range(count)]
    images = [decode(p) for p in paths]
    place = Affine(scale=[0.8, 1.2], translate=0.2, hflip=0.5)
    turn = Affine(scale=[0.8, 1.2], translate=0.2, hflip=0.5, rotate=10.0)
    for transform in (place, turn):
        transform.bind(SIZE, SIZE, "letterbox")
    jitter = HSV(saturation=1.5, exposure=1.5)
    hue = HSV(hue=5.0, saturation=1.5, exposure=1.5)
    placed = [place(image=i)["image"] for i in images]
    dataset = make_dataset(table, 0.0)
    samples = [dataset[0, i] for i in range(count)]
    print(f"{'stage':34}{'ms/image':>9}{'images/s':>10}")
    for name, step in (
        ("decode", lambda i: decode(paths[i])),
        ("resize + affine + flip", lambda i: place(image=images[i])),
        ("  with a turn (one warp)", lambda i: turn(image=images[i])),
        ("HSV (saturation, exposure)", lambda i: jitter(image=placed[i])),
        ("  with a turn of the hue", lambda i: hue(image=placed[i])),
    ):
        report(name, timed(step, count, rounds))
    batches = timed(lambda i: collate(samples[i : i + 16]), 1, rounds * 4)
    report("to tensor (collate, 16 at a time)", batches / min(16, count))


def whole(table: Table, rounds: int, rotate: float) -> float:
    """Seconds an image through the data set and collate."""
    dataset, count = make_dataset(table, rotate), len(table)
    per_round = []
    for epoch in range(rounds + 1):
        begun = time.process_time()
        for start in range(0, count, 16):
            collate([dataset[epoch, i] for i in range(start, min(start + 16, count))])
        per_round.append((time.process_time() - begun) / count)
    return statistics.median(per_round[1:])


def albumentations_plain(table: Table, rounds: int, rotate: float) -> float:
    """Seconds an image for the same steps as its documentation would have them written."""
    compose = A.Compose(
        [
            A.LongestMaxSize(SIZE),
            A.PadIfNeeded(SIZE, SIZE, fill=114),
            A.Affine(
                scale=(0.8, 1.2),
                translate_percent=(-0.2, 0.2),
                rotate=(-rotate, rotate),
                fill=114,
                p=1.0,
            ),
            A.HueSaturationValue(0, 40, 40, p=1.0),
            A.HorizontalFlip(p=0.5),
            ToTensorV2(),
        ],
        bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"], clip=True),
    )
    count = len(table)
    per_round = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        for start in range(0, count, 16):
            batch: list[Any] = []
            for i in range(start, min(start + 16, count)):
                image = cv2.imread(str(Path(table.root, table.files[i])))
                assert image is not None
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                rows = table.rows(i)
                boxes, labels = table.boxes[rows], table.labels[rows]
                batch.append(compose(image=image, bboxes=boxes, labels=labels))
            torch.stack([b["image"] for b in batch])
        per_round.append((time.process_time() - begun) / count)
    return statistics.median(per_round[1:])


def timed(step: Callable[[int], Any], count: int, rounds: int) -> float:
    """Seconds an image: the median over rounds of the mean in a round."""
    per_round = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        for i in range(count):
            step(i)
        per_round.append((time.process_time() - begun) / count)
    return statistics.median(per_round[1:])


def report(name: str, seconds: float) -> None:
    print(f"{name:34}{seconds * 1e3:9.2f}{1 / seconds:10.0f}")


if __name__ == "__main__":
    main()
