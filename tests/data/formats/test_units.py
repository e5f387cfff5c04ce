"""Boxes written in another way than they are read are found over the whole set, in every format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.data.gate import run_gate

W, H = 320, 200


def boxes(count: int, seed: int = 0, largest: float = 0.4) -> np.ndarray:
    """``(count, 4)`` xyxy pixels inside images of W x H."""
    draws = np.random.default_rng(seed)
    size = draws.uniform(0.05, largest, (count, 2)) * (W, H)
    corner = draws.uniform(0, 1, (count, 2)) * ((W, H) - size)
    return np.concatenate([corner, corner + size], 1).round(1)


def written(xyxy: np.ndarray, how: str) -> np.ndarray:
    low, high = xyxy[:, :2], xyxy[:, 2:]
    layout, _, unit = how.partition(" ")
    parts = {
        "xyxy": (low, high),
        "xywh": (low, high - low),
        "cxcywh": ((low + high) / 2, high - low),
    }
    numbers = np.concatenate(parts[layout], 1)
    return numbers / (W, H, W, H) if unit else numbers


class Sets:
    """The same boxes in COCO, VOC and YOLO, two images a split."""

    def __init__(self, make) -> None:
        self.make = make

    def images(self, folder: str) -> list[str]:
        names = [f"{folder}/{k}.png" for k in range(2)]
        for k, name in enumerate(names):
            path = self.make.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (W, H), (k, len(folder), 9)).save(path)
        return names

    def coco(self, splits: dict[str, np.ndarray], **more: Any) -> COCOReader:
        for split, rows in splits.items():
            self.images(split)
            images = [{"id": k, "file_name": f"{k}.png", "width": W, "height": H} for k in range(2)]
            annotations = [
                {"id": n + 1, "image_id": n % 2, "category_id": 1, "bbox": row, **_of(more, n)}
                for n, row in enumerate(rows.tolist())
            ]
            self.make.coco(f"{split}.json", images, annotations)
        return COCOReader(self.make.root)

    def voc(self, splits: dict[str, np.ndarray]) -> VOCReader:
        for split, rows in splits.items():
            self.images(split)
            for k in range(2):
                objects = [("cat", *row) for row in rows[k::2].tolist()]
                self.make.voc(f"{split}/{k}.xml", *objects, size="<size/>")
        return VOCReader(self.make.root)

    def yolo(self, splits: dict[str, np.ndarray]) -> YOLOReader:
        for split, rows in splits.items():
            self.images(f"images/{split}")
            for k in range(2):
                lines = [f"0 {' '.join(map(str, row))}" for row in rows[k::2].tolist()]
                self.make.text(f"labels/{split}/{k}.txt", "\n".join(lines))
        self.make.text("data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
        return YOLOReader(self.make.root)


def _of(more: dict[str, Any], n: int) -> dict[str, Any]:
    return {key: values[n] for key, values in more.items()}


@pytest.fixture
def sets(make) -> Sets:
    return Sets(make)


OWN = {"coco": "xywh", "voc": "xyxy", "yolo": "cxcywh fractions"}
NAMES = {
    "xyxy": "x1 y1 x2 y2 in pixels",
    "xywh": "x y width height in pixels",
    "cxcywh": "center x, center y, width, height in pixels",
    "xyxy fractions": "x1 y1 x2 y2 in fractions of the image",
    "xywh fractions": "x y width height in fractions of the image",
    "cxcywh fractions": "center x, center y, width, height in fractions of the image",
}


def check(reader, task: str = "detection", **options) -> list:
    report = run_gate(reader, task, progress=False, workers=1, strict=False, **options)
    return [p for p in report.errors if p.code == "box-units"]


@pytest.mark.parametrize("format", OWN)
@pytest.mark.parametrize("how", NAMES)
def test_every_other_way_to_write_a_box(sets, format: str, how: str) -> None:
    xyxy = boxes(24)
    own = {"train": written(xyxy, how), "val": written(boxes(6, 1), OWN[format])}
    found = check(getattr(sets, format)(own), on_bad="fix")
    if how == OWN[format]:
        assert found == []
        return
    (problem,) = found
    assert problem.split == "train"
    assert problem.action == ""  # whatever on_bad says: which reading is right is a guess
    assert "of 24 boxes" in problem.message
    assert NAMES[how] in problem.message
    assert check(getattr(sets, format)(own), check_boxes=False) == []


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_fractions_among_pixels(sets, format: str) -> None:
    both = np.concatenate([written(boxes(60), OWN[format]), np.full((3, 4), 0.25)])
    both[-3:, 2:] += 0.5
    (problem,) = check(getattr(sets, format)({"train": both, "val": both[:9]}))
    assert "3 of 63 boxes lie within the first pixel: fractions" in problem.message


def test_a_single_box_in_fractions(sets) -> None:
    one = {"train": np.array([[0.2, 0.3, 0.5, 0.5]]), "val": written(boxes(3), "xywh")}
    (problem,) = check(sets.coco(one))
    assert "1 of 1 boxes lie within the first pixel" in problem.message


def test_images_resized_after_they_were_annotated(sets) -> None:
    (problem,) = check(
        sets.coco({"train": 3 * written(boxes(30), "xywh"), "val": written(boxes(3), "xywh")})
    )
    assert "were the images resized after they were annotated?" in problem.message


def test_boxes_beside_their_outlines(sets) -> None:
    xyxy = boxes(12)
    rings = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in xyxy.tolist()]
    good = {"train": written(xyxy, "xywh"), "val": written(xyxy, "xywh")}
    assert check(sets.coco(good, segmentation=rings), "instance_segmentation") == []
    moved = np.roll(xyxy, 1, axis=0)
    reader = sets.coco({**good, "train": written(moved, "xywh")}, segmentation=rings)
    for task in ("instance_segmentation", "detection"):
        (problem,) = check(reader, task)
        assert "boxes lie beside their own segmentation" in problem.message
    assert check(reader, "semantic_segmentation") == []
    wrong = moved.copy()
    wrong[1:] = xyxy[1:]
    reader = sets.coco({**good, "train": written(wrong, "xywh")}, segmentation=rings)
    report = run_gate(reader, "instance_segmentation", progress=False, workers=1, strict=False)
    (problem,) = report.errors
    assert (problem.code, problem.where) == ("box-outline", "annotation id 1")
    assert "is not that of its segmentation" in problem.message
    assert run_gate(reader, "detection", progress=False, workers=1).errors == []


def test_boxes_drawn_generously_around_their_outlines(sets) -> None:
    xyxy = boxes(12)
    shrink = 0.19 * (xyxy[:, 2:] - xyxy[:, :2])  # a box padded by 30 % on each side
    inner = np.concatenate([xyxy[:, :2] + shrink, xyxy[:, 2:] - shrink], 1).tolist()
    rings = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in inner]
    both = {"train": written(xyxy, "xywh"), "val": written(xyxy, "xywh")}
    assert check(sets.coco(both, segmentation=rings)) == []


@pytest.mark.parametrize("format", OWN)
@pytest.mark.parametrize("seed", range(4))
def test_sets_that_are_in_order(sets, format: str, seed: int) -> None:
    """Large and small objects, full images, hands that tremble, boxes at the border."""
    draws = np.random.default_rng(seed)
    whole = np.tile([[0.0, 0.0, W, H]], (5, 1)) - np.arange(5)[:, None] * [0, 0, 3, 2]
    sloppy = boxes(20, seed) + draws.uniform(-4, 4, (20, 4))
    dots = boxes(10, seed + 50)
    dots[:, 2:] = dots[:, :2] + 2
    corner = np.array([[0, 0, 1, 1], [0, 0, 2, 2], [0, 1, 1, 2.0]])
    for kind in (boxes(20, seed, 0.95), whole, sloppy, dots, boxes(3, seed), corner):
        rows = written(kind, OWN[format])
        assert check(getattr(sets, format)({"train": rows, "val": rows})) == []
