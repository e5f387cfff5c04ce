"""Boxes written in another way than they are read are found over the whole set, in every format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.data.gate.run import run_gate

W, H = 320, 200


def boxes(
    count: int,
    seed: int = 0,
    largest: float = 0.4,
    smallest: float = 0.05,
    place: tuple[float, float] = (0, 1),
) -> np.ndarray:
    """``(count, 4)`` xyxy pixels inside images of W x H; ``place``: where, 0 to 1 on both axes."""
    draws = np.random.default_rng(seed)
    size = draws.uniform(smallest, largest, (count, 2)) * (W, H)
    corner = draws.uniform(*place, (count, 2)) * ((W, H) - size)
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
    whole = {"": None, "fractions": 1, "percent": 100, "thousandths": 1000}[unit]
    return numbers if whole is None else numbers / (W, H, W, H) * whole


class Sets:
    """The same boxes in COCO, VOC and YOLO, two images a split; more with ``count``."""

    count = 2

    def __init__(self, make) -> None:
        self.make = make

    def images(self, folder: str) -> list[str]:
        names = [f"{folder}/{k}.png" for k in range(self.count)]
        for k, name in enumerate(names):
            path = self.make.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (W, H), (k, len(folder), 9)).save(path)
        return names

    def coco(self, splits: dict[str, np.ndarray], **more: Any) -> COCOReader:
        for split, rows in splits.items():
            self.images(split)
            images = [
                {"id": k, "file_name": f"{k}.png", "width": W, "height": H}
                for k in range(self.count)
            ]
            annotations = [
                {
                    "id": n + 1,
                    "image_id": n % self.count,
                    "category_id": 1,
                    "bbox": row,
                    **_of(more, n),
                }
                for n, row in enumerate(rows.tolist())
            ]
            self.make.coco(f"{split}.json", images, annotations)
        return COCOReader(self.make.root)

    def voc(self, splits: dict[str, np.ndarray]) -> VOCReader:
        for split, rows in splits.items():
            self.images(split)
            for k in range(self.count):
                objects = [("cat", *row) for row in rows[k :: self.count].tolist()]
                self.make.voc(f"{split}/{k}.xml", *objects, size="<size/>")
        return VOCReader(self.make.root)

    def yolo(self, splits: dict[str, np.ndarray]) -> YOLOReader:
        for split, rows in splits.items():
            self.images(f"images/{split}")
            for k in range(self.count):
                part = rows[k :: self.count].tolist()
                lines = [f"0 {' '.join(map(str, row))}" for row in part]
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
SMALL = {"largest": 0.08, "smallest": 0.02}


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


@pytest.mark.parametrize("place", [(0, 1), (0, 0.45)])
@pytest.mark.parametrize(("format", "unit"), [("coco", ""), ("yolo", " fractions")])
def test_corners_of_small_boxes(sets, format: str, unit: str, place: tuple[float, float]) -> None:
    """Read as sizes, the second corners follow the first; most such boxes stay inside."""
    xyxy = boxes(33, place=place, **SMALL)
    own = {"train": written(xyxy, f"xyxy{unit}"), "val": written(xyxy, OWN[format])}
    (problem,) = check(getattr(sets, format)(own), on_bad="fix")
    assert problem.action == ""
    assert "in all 33 boxes" in problem.message
    assert f"follow them: {NAMES[f'xyxy{unit}']}?" in problem.message


@pytest.mark.parametrize("format", OWN)
@pytest.mark.parametrize("count", [24, 200])
def test_x_and_y_swapped(sets, format: str, count: int) -> None:
    xyxy = boxes(count, largest=0.15)
    layout = OWN[format].partition(" ")[0]
    swapped = written(xyxy, layout)[:, [1, 0, 3, 2]]  # pixels: of fractions it cannot be told
    own = {"train": swapped, "val": written(xyxy, OWN[format])}
    (problem,) = check(getattr(sets, format)(own))
    names = ["y x height width", "y1 x1 y2 x2", "center y, center x, height, width"]
    assert any(f"fit as {name} in pixels" in problem.message for name in names)


@pytest.mark.parametrize(
    ("format", "how"), [("coco", "cxcywh"), ("yolo", "xywh fractions"), ("voc", "xywh")]
)
def test_a_layout_by_which_few_boxes_leave(sets, format: str, how: str) -> None:
    """A box in twenty leaves its image, at two sides alone; the right reading fits all."""
    xyxy = boxes(400, 5, **({"largest": 0.12, "smallest": 0.04} if format != "voc" else {}))
    own = {"train": written(xyxy, how), "val": written(xyxy, OWN[format])}
    (problem,) = check(getattr(sets, format)(own), on_bad="fix")
    assert f"fit as {NAMES[how]}" in problem.message


@pytest.mark.parametrize("format", OWN)
@pytest.mark.parametrize("unit", ["percent", "thousandths"])
def test_percent_and_thousandths(sets, format: str, unit: str) -> None:
    sets.count = 6
    layout = OWN[format].partition(" ")[0]
    own = {"train": written(boxes(60), f"{layout} {unit}"), "val": written(boxes(6), OWN[format])}
    (problem,) = check(getattr(sets, format)(own))
    assert f"fit as {NAMES[layout].replace('pixels', f'{unit} of the image')}" in problem.message


@pytest.mark.parametrize("format", OWN)
def test_shifted_fractions_are_no_pixels(sets, format: str) -> None:
    layout = OWN[format].partition(" ")[0]
    own = {"train": written(boxes(24), f"{layout} fractions") + 1, "val": boxes(3)}
    own["val"] = written(own["val"], OWN[format])
    (problem,) = check(getattr(sets, format)(own))
    assert " fit as " not in problem.message


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_boxes_that_cutting_would_guess(sets, on_bad: str) -> None:
    """Six of 50 lie mostly outside; boxes a few pixels outside are cut, as asked."""
    rows = boxes(50)
    rows[::9] += np.array([W, 0, W, 0]) - rows[::9][:, [0, 0, 0, 0]] * [1, 0, 1, 0] - [5, 0, 5, 0]
    good = written(boxes(3), "xywh")
    (problem,) = check(sets.coco({"train": written(rows, "xywh"), "val": good}), on_bad=on_bad)
    assert "6 of 50 boxes lie outside their images by more than half as x y wi" in problem.message
    assert "the best are " in problem.message
    assert problem.action == ""
    sloppy = boxes(50)
    sloppy[::3, 2] = W + 5
    reader = sets.coco({"train": written(sloppy, "xywh"), "val": good})
    report = run_gate(reader, "detection", progress=False, workers=1, strict=False, on_bad="fix")
    assert {(p.code, p.action) for p in report.errors} == {("box-outside", "fixed")}


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


@pytest.mark.parametrize("how", ["cxcywh", "xyxy", "swapped"])
def test_outlines_tell_the_layout_of_boxes_that_stay_inside(sets, how: str) -> None:
    xyxy = boxes(12, largest=0.2, place=(0.2, 0.6))
    rings = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in xyxy.tolist()]
    swapped = how == "swapped"
    rows = written(xyxy, "xywh")[:, [1, 0, 3, 2]] if swapped else written(xyxy, how)
    both = {"train": rows, "val": rows}
    assert len(check(sets.coco(both, segmentation=rings))) == 2
    (problem, _) = check(sets.coco(both, segmentation=rings))
    name = "y x height width in pixels" if swapped else NAMES[how]
    assert name in problem.message


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
    third = np.tile([[W / 3, H / 3, 2 * W / 3, 2 * H / 3]], (12, 1)) + draws.uniform(-4, 4, (12, 4))
    aside = boxes(60, seed, 0.2, place=(0.6, 1)) + draws.uniform(0, 4, (60, 4)) * [0, 0, 1, 1]
    near = boxes(40, seed, place=(0, 0.3), **SMALL)
    scaled = boxes(40, seed) * 1.015
    few = [boxes(n, seed + n, size) for n in (1, 2, 3) for size in (0.1, 0.9)]
    crowd = boxes(500, seed, 0.1)
    kinds = (boxes(20, seed, 0.95), whole, sloppy, dots, corner, third, aside, near, scaled, crowd)
    for kind in (*kinds, *few):
        rows = written(kind, OWN[format])
        assert check(getattr(sets, format)({"train": rows, "val": rows})) == []
