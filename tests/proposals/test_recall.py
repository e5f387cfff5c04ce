"""Recall and best overlap, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cvtrain.data.table import CROWD, DIFFICULT, Table
from cvtrain.proposals.recall import Recall, box_counts, overlaps
from cvtrain.proposals.selective_search import Boxes

Photos = Callable[..., Table]


def boxes(*rows: list[float]) -> Boxes:
    found = np.array(rows, np.float32)
    return Boxes(found, np.linspace(1, 0, len(found), dtype=np.float32), len(found))


def test_overlaps_by_hand() -> None:
    truths = np.array([[0, 0, 10, 10], [5, 5, 5, 9]])
    found = overlaps(truths, np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]]))
    assert found.tolist() == [[1.0, pytest.approx(50 / 150), 0.0], [0.0, 0.0, 0.0]]
    assert overlaps(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_counts() -> None:
    assert box_counts(2000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    assert box_counts(1) == [1]
    assert box_counts(7) == [1, 2, 5, 7]


def test_curve_by_hand(photos: Photos) -> None:
    # Objects [4, 6, 30, 28] (26 x 22), of classes a, b, a, b.
    table = photos(4)
    recall = Recall(5, table.classes.names)
    whole, half = [4, 6, 30, 28], [4, 6, 30, 17]
    recall.add(table, 0, boxes([0, 0, 1, 1], whole))
    recall.add(table, 1, boxes(half, [0, 0, 1, 1]))
    recall.add(table, 2, boxes([0, 0, 1, 1]))
    recall.add(table, 3, boxes([0, 0, 1, 1], [1, 1, 2, 2], [4, 6, 30, 24], half))
    result = recall.compute()
    third = 18 / 22
    assert [row["boxes"] for row in result["curve"]] == [1, 2, 5]
    first, second, last = result["curve"]
    assert (first["recall50"], first["recall70"], first["ABO"]) == (0.25, 0.0, 0.125)
    assert (second["recall50"], second["recall70"], second["ABO"]) == (0.5, 0.25, 1.5 / 4)
    assert (last["recall50"], last["recall70"]) == (0.75, 0.5)
    assert last["ABO"] == pytest.approx((1 + 0.5 + 0 + third) / 4)
    assert last["MABO"] == pytest.approx((0.5 + (0.5 + third) / 2) / 2)
    assert [c["name"] for c in result["per_class"]] == ["a", "b"]
    assert result["per_class"][0]["ABO"] == 0.5
    assert (result["images"], result["objects"], result["boxes_per_image"]) == (4, 4, 9 / 4)


def test_the_curve_ends_where_no_image_has_more(photos: Photos) -> None:
    table = photos(1)
    recall = Recall(2000, table.classes.names)
    recall.add(table, 0, boxes(*([i, 0, i + 1, 1] for i in range(7))))
    assert [row["boxes"] for row in recall.compute()["curve"]] == [1, 2, 5, 10]


def test_objects_that_do_not_count(photos: Photos) -> None:
    table = photos(3)
    table = replace(table, flags=np.array([CROWD, DIFFICULT, 0], np.uint8))
    recall = Recall(10, table.classes.names)
    for i in range(3):
        recall.add(table, i, boxes([4, 6, 30, 28]))
    result = recall.compute()
    assert (result["objects"], result["curve"][-1]["recall50"]) == (1, 1.0)


def test_no_objects_at_all(photos: Photos) -> None:
    result = Recall(10, ("a",)).compute()
    assert result["objects"] == 0
    assert math.isnan(result["curve"][0]["recall50"])
