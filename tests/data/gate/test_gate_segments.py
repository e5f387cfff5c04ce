"""Polygons and run-length encodings through the gate."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cvtrain.data.gate.segments import turn_pixels, turn_points
from cvtrain.data.masks import from_mask, to_mask
from cvtrain.data.table import CROWD


def ring(*points: float) -> bytes:
    return json.dumps([list(points)]).encode()


SQUARE = ring(5, 5, 25, 5, 25, 30, 5, 30)


def rle(height: int = 40, width: int = 60, filled: bool = True) -> bytes:
    mask = np.zeros((height, width), np.uint8)
    mask[5:30, 5:25] = filled
    return from_mask(mask)


def broken_rle() -> bytes:
    value = json.loads(rle())
    return json.dumps({**value, "counts": value["counts"][:-2]}).encode()


WRONG = [
    (b"{]", "segment-malformed"),
    (b'"text"', "segment-malformed"),
    (b'[["a", "b"]]', "segment-malformed"),
    (b"[[1, 2, 3, 4, 5, 6, 7]]", "segment-malformed"),
    (b"[[1, 2, 3, 4, 5, NaN]]", "segment-malformed"),
    (b'{"size": [40], "counts": "abc"}', "segment-malformed"),
    (b'{"size": [40, 60]}', "segment-malformed"),
    (broken_rle(), "segment-malformed"),
    (ring(5, 5, 25, 30), "segment-short"),
    (rle(60, 40), "segment-size"),
    (rle(filled=False), "segment-empty"),
    (ring(5, 5, 25, 5, 15, 5), "segment-empty"),
    (ring(5.1, 5.1, 5.2, 5.1, 5.2, 5.2), "segment-empty"),
    (ring(105, 5, 125, 5, 125, 30, 105, 30), "segment-empty"),
]


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
@pytest.mark.parametrize(("segment", "code"), WRONG)
def test_wrong_segment(dataset, box, apart, segment: bytes, code: str, on_bad: str) -> None:
    dataset.kinds = frozenset({"boxes", "segments"})
    dataset.add("a.png", boxes=apart(3), segments=[SQUARE, segment, rle()])
    dataset.add("v.png", split="val", boxes=[box], segments=[SQUARE])
    report = dataset.gate("instance_segmentation", on_bad=on_bad)
    (problem,) = report.errors
    assert (problem.code, problem.file, problem.where) == (code, "a.png", "annotation id 2")
    table = report.tables["train"]
    assert [table.segments[i] for i in range(len(table.segments))] == [SQUARE, rle()]
    assert len(table.boxes) == 2


def test_good_segments_stay_as_they_are(dataset, apart) -> None:
    dataset.kinds = frozenset({"boxes", "segments"})
    good = [SQUARE, rle(), b"[[5,5,25,5,25,30],[30,30,40,30,40,35]]", ring(1, 1, 4, 1, 4, 3)]
    dataset.add("a.png", boxes=apart(4), segments=good)
    report = dataset.gate()
    assert report.errors == []
    assert [report.tables["train"].segments[i] for i in range(4)] == good


def test_short_ring_beside_a_good_one_is_mended(dataset, box) -> None:
    both = b"[[1,1,4,4],[5,5,25,5,25,30]]"
    dataset.add("a.png", boxes=[box], segments=[both])
    (problem,) = dataset.gate(on_bad="fix").errors
    assert problem.message == "a ring of 2 points (1 of 2 rings)"
    assert dataset.gate(on_bad="fix").tables["train"].segments[0] == b"[[5,5,25,5,25,30]]"
    assert len(dataset.gate(on_bad="drop").tables["train"].boxes) == 0


def test_polygon_that_leaves_the_image_is_a_note(dataset, apart) -> None:
    far = ring(5, 5, 75, 5, 75, 30)
    dataset.add("a.png", boxes=apart(2), segments=[far, ring(5, 5, 60.9, 5, 60.9, 30)])
    report = dataset.gate()
    assert report.errors == []
    message = [(p.where, p.message) for p in report.notes if p.code == "segment-outside"]
    assert message == [("annotation id 1", "the polygon leaves the image by 15 pixels")]
    assert report.tables["train"].segments[0] == far


def test_relative_polygons_become_pixels(dataset) -> None:
    dataset.relative = True
    dataset.kinds = frozenset({"boxes", "segments"})
    dataset.add("a.png", boxes=[[0, 0, 0.5, 0.5]], segments=[ring(0, 0, 0.5, 0, 0.5, 0.5)])
    table = dataset.gate().tables["train"]
    assert json.loads(table.segments[0]) == [[0, 0, 30, 0, 30, 20]]
    assert table.relative is False


def test_missing_segments_matter_to_instance_segmentation_alone(dataset, box, apart) -> None:
    dataset.kinds = frozenset({"boxes", "segments"})
    dataset.add("a.png", boxes=apart(3), segments=[SQUARE, b"", b""], flags=[0, 0, CROWD])
    dataset.add("v.png", split="val", boxes=[box], segments=[SQUARE])
    report = dataset.gate("instance_segmentation", on_bad="drop")
    assert [(p.code, p.where) for p in report.errors] == [("segment-missing", "annotation id 2")]
    assert len(report.tables["train"].boxes) == 2
    assert dataset.gate("detection").errors == []
    assert [p.message for p in dataset.gate().notes if p.code == "segments-partial"] == [
        "1 of 3 objects have a box, but no segment"
    ]


def test_detection_does_not_hold_segments(dataset, box) -> None:
    dataset.kinds = frozenset({"boxes", "segments"})
    dataset.add("a.png", boxes=[box], segments=[b"{]"])
    report = dataset.gate("detection")
    assert report.errors == []
    assert report.tables["train"].segments is None


def test_more_than_a_chunk(dataset, apart) -> None:
    dataset.kinds = frozenset({"boxes", "segments"})
    segments = [SQUARE] * 5000
    segments[4500] = rle(filled=False)
    dataset.add("a.png", boxes=apart(5000), segments=segments)
    report = dataset.gate()
    assert [p.where for p in report.errors] == ["annotation id 4501"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_with_pixels(orientation: int) -> None:
    array = np.zeros((40, 60), np.uint8)
    array[4:11, 20:50] = 1
    array[11:15, 20:25] = 1  # an L: no symmetry hides a mistake
    corners = np.array([[20, 4], [50, 4], [50, 11], [25, 11], [25, 15], [20, 15]], float)
    turned = turn_points(corners, orientation, 40, 60)
    expected = np.ascontiguousarray(turn_pixels(array, orientation))
    drawn = to_mask(json.dumps([turned.ravel().tolist()]).encode(), *expected.shape)
    assert np.array_equal(drawn, expected)
