"""Objects annotated twice are found; crowds of objects, nested and touching ones are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.gate.copies import near_pairs
from cvtrain.data.table import CROWD

A = [10.0, 10.0, 30.0, 30.0]


def codes(dataset, task="detection", **options) -> list[tuple[str, str]]:
    report = dataset.gate(task, **options)
    wanted = ("duplicate-object", "box-of-two-classes")
    return [(p.code, p.where) for p in report.problems if p.code in wanted]


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
@pytest.mark.parametrize(
    "copy",
    [A, [10.5, 10.5, 30.5, 30.5], [9, 9, 30, 30], [11, 11, 31, 31], [10.001, 10, 30, 30.02]],
    ids=["equal", "half a pixel aside", "counted from 1", "one pixel aside", "rounded"],
)
def test_a_copy_is_left_out(dataset, copy, on_bad: str) -> None:
    dataset.add("a.png", boxes=[[1, 1, 9, 9], A, copy])
    dataset.add("b.png", boxes=[A])  # of another image: no copy
    report = dataset.gate("detection", on_bad=on_bad)
    (problem,) = report.errors
    assert (problem.code, problem.file, problem.where) == (
        "duplicate-object",
        "a.png",
        "annotation id 3",
    )
    assert problem.message.startswith("'cat' twice, the same box")
    assert "annotation id 2" in problem.message
    assert bool(report.stopping) == (on_bad == "error")
    assert report.tables["train"].boxes.tolist() == [[1, 1, 9, 9], A, A]


def test_every_further_copy_is_left_out(dataset) -> None:
    other = [10.5, 10, 30, 30]
    dataset.add("a.png", boxes=[A, other, other, A, A, other])
    found = codes(dataset)
    assert found == [("duplicate-object", f"annotation id {k}") for k in range(2, 7)]
    assert len(dataset.gate("detection", on_bad="fix").tables["train"].boxes) == 1


def test_large_boxes_that_differ_by_rounding(dataset) -> None:
    """Three digits of a fraction are several pixels of a large image."""
    image = Image.new("RGB", (3000, 2000))
    dataset.add("a.png", image=image, boxes=[[100, 100, 2100, 1900], [102, 99, 2101.5, 1903]])
    assert codes(dataset) == [("duplicate-object", "annotation id 2")]


@pytest.mark.parametrize(
    "boxes",
    [
        [A, [12, 12, 28, 28], [14, 14, 26, 26]],  # nested
        [A, [30, 10, 50, 30], [10, 30, 30, 39]],  # touching
        [A, [12, 10, 32, 30], [14, 10, 34, 30]],  # a crowd
        [[10, 10, 11, 11], [11, 10, 12, 11], [10, 11, 11, 12]],  # dots, pixel beside pixel
        [[10, 10, 12, 12], [11, 10, 13, 12], [11, 11, 13, 13]],
        [[x, 5, x + 1.5, 35] for x in np.arange(2, 50, 2.0)],  # bars
    ],
)
def test_neighbors_are_no_copies(dataset, boxes) -> None:
    dataset.add("a.png", boxes=boxes)
    assert codes(dataset) == []


def test_the_same_box_of_two_classes_is_a_note(dataset) -> None:
    dataset.add("a.png", boxes=[A, A, A, [1, 1, 9, 9]], labels=[0, 1, 1, 0])
    assert codes(dataset) == [
        ("duplicate-object", "annotation id 3"),
        ("box-of-two-classes", "annotation id 2"),
    ]
    report = dataset.gate("detection", on_bad="drop")
    assert report.tables["train"].labels.tolist() == [0, 1, 0]
    (note,) = [p for p in report.notes if p.code == "box-of-two-classes"]
    assert note.message == "'dog' has the box of annotation id 1, 'cat'"


def test_crowd_regions_are_left_alone(dataset) -> None:
    dataset.add("a.png", boxes=[A, A, A], flags=[0, CROWD, CROWD])
    assert codes(dataset) == []


def strokes(one: list, other: list) -> list[bytes]:
    return [json.dumps([ring]).encode() for ring in (one, other)]


def test_crossing_strokes_share_a_box(dataset) -> None:
    dataset.kinds = frozenset({"boxes", "segments"})
    down = [10, 10, 12, 10, 30, 28, 30, 30, 28, 30, 10, 12]
    up = [10, 28, 28, 10, 30, 10, 30, 12, 12, 30, 10, 30]
    dataset.add("a.png", boxes=[A, A], segments=strokes(down, up))
    assert codes(dataset, "instance_segmentation") == []
    finer = [10, 10, 12, 10, 21, 19, 30, 28, 30, 30, 28, 30, 10, 12]
    dataset.rows["train"][0].segments = strokes(down, finer)
    assert codes(dataset, None) == [("duplicate-object", "annotation id 2")]
    assert codes(dataset, "semantic_segmentation") == []  # drawn twice, it is the same mask
    dataset.rows["train"][0].segments = [b"", strokes(down, up)[0]]
    assert codes(dataset, None) == [("duplicate-object", "annotation id 2")]


def test_images_with_one_object_twice_have_one(dataset) -> None:
    dataset.add("a.png", boxes=[A, A])
    dataset.add("v.png", split="val", boxes=[A])
    report = dataset.gate("localization", on_bad="fix", object_choice="only")
    assert report.counts["train"].used == 1


def one(a: np.ndarray, b: np.ndarray) -> bool:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(width, 0) * max(height, 0)
    iou = both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)
    shorter = np.minimum(a[2:] - a[:2], b[2:] - b[:2]).min()
    return iou >= 0.98 or (np.abs(a - b).max() <= min(1, 0.2 * shorter) + 1e-6 and iou >= 0.7)


def test_neighbors_in_a_crowd_of_small_objects_are_no_copies(dataset) -> None:
    dataset.add("a.png", boxes=[[10, 10, 14, 14], [10.9, 10, 14.9, 14], [30, 10, 33, 13]])
    assert codes(dataset) == []


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_pairs_are_those_of_comparing_all_with_all(seed: int) -> None:
    draws = np.random.default_rng(seed)
    corner = draws.uniform(0, 40, (80, 2))
    boxes = np.concatenate([corner, corner + draws.choice([3, 10, 400], (80, 2))], 1)
    source, images = draws.choice(80, 30), draws.integers(0, 3, 80)
    again = boxes[source]
    aside = np.where(again[:, 2:3] - again[:, :1] > 100, 3, 1) * draws.uniform(-1.3, 1.3, (30, 4))
    boxes = np.concatenate([boxes, again + aside])
    images = np.concatenate([images, images[source]])
    first, later = near_pairs(boxes, images, np.zeros(len(boxes), np.int64))
    found = set(zip(first.tolist(), later.tolist(), strict=True))
    rows = range(len(boxes))
    pairs = [(i, j) for i in rows for j in rows if i < j and images[i] == images[j]]
    assert found == {(i, j) for i, j in pairs if one(boxes[i], boxes[j])}
    assert len(found) >= 3


def test_equal_boxes_and_rows_of_boxes_cost_little(monkeypatch) -> None:
    """Counted, not timed: comparisons follow the copies, not the square of the boxes."""
    from cvtrain.data.gate import copies

    compared = []
    real = copies._are_one
    monkeypatch.setattr(copies, "_are_one", lambda a, b: compared.append(len(a)) or real(a, b))
    step = np.arange(100) * 12.0
    corner = np.stack(np.meshgrid(step, step), 2).reshape(-1, 2)  # a page of 10,000 cells
    cells = np.concatenate([corner, corner + 10], 1)
    boxes = np.concatenate([cells, np.tile(cells[:1], (10_000, 1))])
    zeros = np.zeros(len(boxes), np.int64)
    first, later = near_pairs(boxes, zeros, zeros)
    assert (first == 0).all()
    assert later.tolist() == list(range(10_000, 20_000))
    assert sum(compared) < 50 * len(cells)
