"""The search as a whole: modes, ranking, odd images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cvtrain.errors import DataError, UsageError
from cvtrain.proposals.color import unit_rgb
from cvtrain.proposals.selective_search import (
    MODES,
    groupings,
    rank,
    selective_search,
    settings,
)

Image = Callable[..., np.ndarray]
FAST = settings("fast")


@pytest.mark.parametrize(("mode", "count"), [("single", 1), ("fast", 8), ("quality", 80)])
def test_modes_are_the_papers(image: Image, mode: str, count: int) -> None:
    assert len(groupings(unit_rgb(image(0, 20, 20)), settings(mode))) == count
    chosen = MODES[mode]
    assert len(chosen.colors) * len(chosen.similarities) * len(chosen.thresholds) == count


def test_boxes_are_whole_inside_unique_and_ranked(image: Image) -> None:
    found = selective_search(image(1), FAST)
    boxes = found.boxes
    assert (boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= [48, 40, 48, 40]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes) == found.total
    assert (np.diff(found.scores) <= 0).all()
    assert [0, 0, 48, 40] in boxes.tolist()


def test_the_ranking_follows_seed_and_pixels_alone(image: Image) -> None:
    first = selective_search(image(1), FAST)
    again = selective_search(image(1).copy(), FAST)
    assert np.array_equal(first.boxes, again.boxes)
    other = selective_search(image(1), replace(FAST, seed=1))
    assert not np.array_equal(first.boxes, other.boxes)
    assert {*map(tuple, first.boxes.tolist())} == {*map(tuple, other.boxes.tolist())}
    fewer = selective_search(image(1), replace(FAST, max_boxes=7))
    assert np.array_equal(fewer.boxes, first.boxes[:7])
    assert fewer.total == first.total


def test_rank_by_place_times_chance_and_keep_the_best_of_equals() -> None:
    class Fixed:
        def random(self, count: int) -> np.ndarray:
            return np.array([0.9, 0.5, 0.8, 0.1, 0.3])

    first = np.array([[0, 0, 1, 1], [1, 0, 2, 1], [0, 0, 2, 1]])  # places 3, 2, 1
    second = np.array([[1, 0, 2, 1], [0, 0, 2, 1]])  # places 2, 1
    boxes, values = rank([first, second], Fixed(), (1, 2, 3))  # type: ignore[arg-type]
    # Values: 2.7, 1.0, 0.8 and 0.2, 0.3.
    assert boxes.tolist() == [[1, 0, 2, 1], [0, 0, 2, 1], [0, 0, 1, 1]]
    assert values.tolist() == pytest.approx([0.2, 0.3, 2.7])


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (1, 5000, 3), (5000, 1, 3), (2, 3, 1), (1, 2, 1), (3, 400, 3)]
)
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_odd_images_have_boxes(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, shape, np.uint8)
    found = selective_search(noise if kind == "noise" else np.full_like(noise, 77), FAST)
    height, width = shape[:2]
    assert len(found.boxes) >= 1
    assert [0, 0, width, height] in found.boxes.tolist()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_an_image_of_one_color_is_one_box() -> None:
    found = selective_search(np.full((30, 50, 3), 200, np.uint8), settings("quality"))
    assert found.boxes.tolist() == [[0, 0, 50, 30]]
    assert found.total == 1


def test_gray_and_deeper_images_give_the_same_boxes(image: Image) -> None:
    gray = image(2)[:, :, :1]
    once = selective_search(gray, FAST)
    assert len(once.boxes) > 5
    chosen = replace(FAST, max_boxes=10**6)
    sets = [
        {*map(tuple, selective_search(x, chosen).boxes.tolist())}
        for x in (gray, np.repeat(gray, 3, axis=2), gray.astype(np.uint16) * 257)
    ]
    assert sets[0] == sets[1] == sets[2]


def test_other_channels_are_refused() -> None:
    with pytest.raises(DataError, match="RGB or gray images, not 8 x 8 x 4"):
        selective_search(np.zeros((8, 8, 4), np.uint8), FAST)


def test_min_side_leaves_the_whole_image_where_nothing_else_is_left(image: Image) -> None:
    found = selective_search(image(1), replace(FAST, min_side=12))
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert sides.min() >= 12
    assert len(found.boxes) < selective_search(image(1), FAST).total
    assert selective_search(image(1), replace(FAST, min_side=100)).boxes.tolist() == [
        [0, 0, 48, 40]
    ]


def test_max_side_searches_a_smaller_image_and_answers_in_original_pixels(image: Image) -> None:
    large = image(4, 90, 160)
    found = selective_search(large, replace(FAST, max_side=80))
    assert [0, 0, 160, 90] in found.boxes.tolist()
    assert (found.boxes[:, [0, 2]] % 2 == 0).all(), "whole pixels of the small image"
    assert found.boxes[:, 2].max() == 160
    same = selective_search(large, replace(FAST, max_side=160))
    assert np.array_equal(same.boxes, selective_search(large, FAST).boxes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "slow"}, "choose one of single, fast, quality"),
        ({"colors": ["XYZ"]}, "proposals.colors=XYZ: choose from RGB"),
        ({"similarities": ["CX"]}, "letters of CTSF"),
        ({"similarities": ["CC"]}, "letters of CTSF"),
        ({"thresholds": [0]}, "numbers above 0"),
        ({"thresholds": []}, "numbers above 0"),
        ({"colors": []}, "at least one of each"),
    ],
)
def test_wrong_settings(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settings(**options)
