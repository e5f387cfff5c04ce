"""The sides of boxes in shares of the network's input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cvtrain.data import box_sizes as module
from cvtrain.data.box_sizes import box_sizes
from cvtrain.data.shapes import ShapesReader
from cvtrain.data.table import CROWD, DIFFICULT, Table


def table(boxes: list[list[float]], sizes: list[list[int]], starts: list[int]) -> Table:
    like = ShapesReader(num_train=len(sizes), scene_size=64).read("train").table
    count = len(boxes)
    return replace(
        like,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        sizes=np.array(sizes, np.int32),
        starts=np.array(starts, np.int64),
        flags=np.zeros(count, np.uint8),
    )


def test_stretched_and_letterboxed() -> None:
    given = table(
        [[0, 0, 100, 100], [0, 0, 50, 20], [10, 10, 30, 90]], [[100, 200], [100, 100]], [0, 2, 3]
    )
    wide = np.array([[0.5, 1.0], [0.25, 0.2], [0.2, 0.8]])
    np.testing.assert_allclose(box_sizes(given, 64, "stretch"), wide)
    # 200 x 100 becomes 64 x 32 of 64 x 64.
    letterboxed = np.array([[0.5, 0.5], [0.25, 0.1], [0.2, 0.8]])
    np.testing.assert_allclose(box_sizes(given, 64, "letterbox"), letterboxed)
    # ... and all of [32, 64]; 100 x 100 becomes 32 x 32 of it.
    half = np.array([[0.5, 1.0], [0.25, 0.2], [0.1, 0.8]])
    np.testing.assert_allclose(box_sizes(given, [32, 64], "letterbox"), half)


def test_what_does_not_count_is_left_out() -> None:
    given = table([[0, 0, 10, 10]] * 3 + [[5, 5, 5, 9]], [[100, 100]] * 2, [0, 4, 4])
    given.flags[:2] = CROWD, DIFFICULT
    np.testing.assert_allclose(box_sizes(given, 64, "stretch"), [[0.1, 0.1]])
    assert box_sizes(table([], [[9, 9]], [0, 0]), 64, "stretch").shape == (0, 2)


def test_of_many_some_are_drawn_by_seed(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    boxes = [[0, 0, k + 1, 1] for k in range(90)]
    given = table(boxes, [[100, 100]], [0, 90])
    drawn = box_sizes(given, 64, "stretch", seed=1)
    assert len(drawn) == len(np.unique(drawn[:, 0])) == 10
    np.testing.assert_array_equal(drawn, box_sizes(given, 64, "stretch", seed=1))
    assert (drawn != box_sizes(given, 64, "stretch", seed=2)).any()
