#!/usr/bin/env python
"""How many 640 x 480 images a second one core augments, for every yaml of conf/augment.

Each runs as training runs it: at its default strength, with seven boxes per image (seven masks
where objects are pasted in by theirs, a mask of classes where they are cut out of one), from an
image of 640 x 480 to an input of 640 x 480, without decoding and batching. ``ratio`` is the time
over that of augment=none. Below them the families' transforms alone, each applied always and at
full strength, where one that is too slow would show. Times are CPU seconds, so that a busy machine
disturbs little; the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np
import yaml

from cvtrain.augment.config import FAMILIES, scaled, settled
from cvtrain.augment.pipeline import Pipeline, build_pipeline
from cvtrain.augment.planes import Masks
from cvtrain.augment.policy import Augmentation
from cvtrain.augment.scene import Scene
from cvtrain.config.groups import package_conf
from cvtrain.data.datamodule import compile_augment
from cvtrain.data.worker import prepare_process
from cvtrain.instantiate import instantiate

HEIGHT, WIDTH = 480, 640
BOXES = 7  # an image, about COCO's mean
LEAST = 60.0  # images/s per core: what a default may cost


def main() -> None:
    args = _arguments()
    prepare_process()
    scenes = [_scene(seed) for seed in range(args.images)]
    print(f"{WIDTH} x {HEIGHT}, {BOXES} boxes per image; one core")
    print(f"{'augment=':38}{'ms/image':>9}{'images/s':>10}{'ratio':>8}")
    plain = _seconds(_whole({}, args.rounds), scenes, args.rounds)
    for name, node in _choices():
        task = _task(node)
        shown = [_as(task, scene) for scene in scenes]
        _report(name, _seconds(_whole(node, args.rounds), shown, args.rounds), plain)
    print(f"\n{'alone, at full strength':38}{'ms/image':>9}{'images/s':>10}{'ratio':>8}")
    for name, pipeline in _transforms():
        _report(name, _seconds(Augmentation(pipeline), scenes, args.rounds), plain)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24, help="different images (default 24)")
    parser.add_argument("--rounds", type=int, default=7, help="passes over them (default 7)")
    return parser.parse_args()


def _scene(seed: int) -> Scene:
    """Blotches at several scales and grain, with boxes."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 7, (HEIGHT, WIDTH, 3)).astype(np.float32)
    for cells, weight in ((4, 90), (16, 60), (64, 40)):
        coarse = rng.uniform(0, weight, (cells * 3 // 4, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    corners = rng.uniform(0, 0.7, (BOXES, 2)) * [WIDTH, HEIGHT]
    sides = rng.uniform(0.05, 0.3, (BOXES, 2)) * [WIDTH, HEIGHT]
    return Scene(
        image=np.clip(image, 0, 255).astype(np.uint8),
        boxes=np.concatenate([corners, corners + sides], axis=1),
        labels=np.zeros(BOXES, np.int64),
        ignore=np.zeros(BOXES, bool),
        areas=sides.prod(axis=1),
    )


def _choices() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every yaml, none first; the four families together; a mosaic."""
    folder = package_conf() / "augment"
    nodes = {path.stem: _load(path) for path in sorted(folder.glob("*.yaml"))}
    yield "none", nodes.pop("none")
    yield from nodes.items()
    together: dict[str, Any] = {}
    for family in FAMILIES:
        together |= nodes[family]
    yield f"[{','.join(FAMILIES)}]", together
    yield "none augment.mosaic=1", {"mosaic": 1.0}


def _load(path: Path) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return node


def _task(node: dict[str, Any]) -> str:
    """A task that the node serves: detection, where it can be."""
    if node.get("object_crops"):
        return "semantic_segmentation"
    return "instance_segmentation" if node.get("copy_paste") else "detection"


def _as(task: str, scene: Scene) -> Scene:
    """The scene with the truths of another task: its boxes filled."""
    if task == "detection":
        return scene
    masks = np.zeros((BOXES, HEIGHT, WIDTH), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, scene.boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    if task == "instance_segmentation":
        return replace(scene, masks=Masks.of(masks))
    nothing = np.zeros(0, np.int64)
    return scene.moved(scene.image, np.zeros((0, 4)), nothing, masks.max(axis=0), None)


def _whole(node: dict[str, Any], rounds: int) -> Augmentation:
    return compile_augment(
        node,
        _task(node),
        height=HEIGHT,
        width=WIDTH,
        resize="letterbox",
        epochs=rounds + 1,
        class_names=("background", "object"),
    )


def _transforms() -> Iterator[tuple[str, Pipeline]]:
    """Each transform of each family alone, applied always."""
    for family in FAMILIES:
        node = _load(package_conf() / "augment" / f"{family}.yaml")[family]
        for transform in _leaves(scaled(node["transforms"], 1.0, family)):
            if "p" in transform:
                transform = {**transform, "p": 1.0}
            alone = settled({"name": family, "own": {"transforms": [transform]}})
            pipeline = build_pipeline(
                alone,
                lambda n, where: instantiate(n, where=where),
                HEIGHT,
                WIDTH,
                resize="letterbox",
                targets=("boxes",),
            )
            yield f"{family}: {transform['_target_'].rpartition('.')[2]}", pipeline


def _leaves(nodes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for node in nodes:
        if "transforms" in node:
            yield from _leaves(node["transforms"])
        else:
            yield node


def _seconds(augmentation: Augmentation, scenes: list[Scene], rounds: int) -> float:
    """CPU seconds per image."""
    per_round = []
    for epoch in range(rounds + 1):
        generators = [np.random.default_rng([0, epoch, i]) for i in range(len(scenes))]
        begun = time.process_time()
        for i, scene in enumerate(scenes):
            augmentation(scene, epoch, generators[i], lambda i=i: scenes[(i + 1) % len(scenes)])
        per_round.append((time.process_time() - begun) / len(scenes))
    return statistics.median(per_round[1:])


def _report(name: str, seconds: float, plain: float) -> None:
    rate = 1 / seconds
    slow = f"  below {LEAST:.0f}: for no default" if rate < LEAST else ""
    print(f"{name:38}{seconds * 1e3:9.2f}{rate:10.0f}{seconds / plain:8.1f}{slow}")


if __name__ == "__main__":
    main()
