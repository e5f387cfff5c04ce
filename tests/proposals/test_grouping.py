"""Fast features and grouping against plain, slow ones written from the paper."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from cvtrain.proposals.color import SPACES, convert, unit_rgb
from cvtrain.proposals.grouping import group
from cvtrain.proposals.regions import Regions, describe, features, neighbors, segment

Image = Callable[..., np.ndarray]


def slow_histograms(
    image: np.ndarray, labels: np.ndarray, region: int
) -> tuple[list[float], list[float]]:
    """Color and texture histograms of one region, pixel by pixel, of ``(H, W, C)`` in 0..1."""
    colors, textures = [], []
    places = list(zip(*np.nonzero(labels == region), strict=True))
    for channel in np.moveaxis(image, 2, 0):
        counts = [0] * 25
        for y, x in places:
            counts[min(int(channel[y, x] * 25), 24)] += 1
        colors += counts
        down = ndimage.gaussian_filter(channel, 1.0, order=(1, 0))
        right = ndimage.gaussian_filter(channel, 1.0, order=(0, 1))
        angles = [(1, 0), (0, 1), (0.5**0.5, 0.5**0.5), (0.5**0.5, -(0.5**0.5))]
        fields = [np.float32(a) * right + np.float32(b) * down for a, b in angles]
        most = max(abs(field).max() for field in fields)
        for field in fields:
            for sign in (1, -1):
                counts = [0] * 10
                for y, x in places:
                    value = max(0.0, sign * field[y, x])
                    counts[min(int(value * np.float32(10 / most)), 9)] += 1
                textures += counts
    return [c / sum(colors) for c in colors], [c / sum(textures) for c in textures]


def slow_group(regions: Regions, measures: str) -> list[tuple[int, ...]]:
    """Algorithm 1 of the paper: every similarity anew for every merge, lists and loops."""
    alive = {
        i: {
            "size": int(size),
            "box": tuple(int(v) for v in box),
            "C": [float(v) for v in colors],
            "T": [float(v) for v in textures],
        }
        for i, (size, box, colors, textures) in enumerate(
            zip(regions.sizes, regions.boxes, regions.colors, regions.textures, strict=True)
        )
    }
    touching = {frozenset(map(int, pair)) for pair in regions.pairs}
    found = [part["box"] for part in alive.values()]

    def around(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])

    def alike(a: int, b: int) -> float:
        first, second = alive[a], alive[b]
        value = 0.0
        for letter in "CT":
            if letter in measures:
                value += math.fsum(map(min, first[letter], second[letter]))
        both = first["size"] + second["size"]
        if "S" in measures:
            value += 1 - both / regions.area
        if "F" in measures:
            x0, y0, x1, y1 = around(first["box"], second["box"])
            value += 1 - ((x1 - x0) * (y1 - y0) - both) / regions.area
        return value

    new = len(alive)
    while len(alive) > 1:
        pairs = sorted(tuple(sorted(pair)) for pair in touching)
        # Equal up to rounding is equal: the pair with the smaller numbers goes first.
        scores = [alike(a, b) for a, b in pairs]
        a, b = pairs[next(i for i, s in enumerate(scores) if s >= max(scores) - 1e-12)]
        first, second = alive.pop(a), alive.pop(b)
        both = first["size"] + second["size"]
        alive[new] = {"size": both, "box": around(first["box"], second["box"])}
        for letter in "CT":
            alive[new][letter] = [
                (first["size"] * p + second["size"] * q) / both
                for p, q in zip(first[letter], second[letter], strict=True)
            ]
        touching = {frozenset(new if i in (a, b) else i for i in pair) for pair in touching}
        touching = {pair for pair in touching if len(pair) == 2}
        found.append(alive[new]["box"])
        new += 1
    return found


@pytest.mark.parametrize("space", ["HSV", "Lab", "I"])
def test_features_equal_the_slow_ones(image: Image, space: str) -> None:
    pixels = convert(unit_rgb(image(3, 24, 30)), space)
    found = features(pixels, 0.8)
    labels = segment(found.image, 40, 20)
    regions = describe(labels, found)
    assert len(regions.sizes) > 2
    for r in range(len(regions.sizes)):
        colors, textures = slow_histograms(pixels, labels, r)
        np.testing.assert_allclose(regions.colors[r], colors, atol=1e-12)
        np.testing.assert_allclose(regions.textures[r], textures, atol=1e-12)
        ys, xs = np.nonzero(labels == r)
        assert regions.boxes[r].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert regions.sizes[r] == len(ys)


@pytest.mark.parametrize("measures", ["CTSF", "TSF", "F", "S", "C", "CS"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grouping_equals_the_slow_one(image: Image, measures: str, seed: int) -> None:
    found = features(convert(unit_rgb(image(seed)), "Lab"), 0.8)
    regions = describe(segment(found.image, 20, 15), found)
    assert 8 < len(regions.sizes) < 200
    boxes = group(regions, measures)
    assert boxes.tolist() == [list(box) for box in slow_group(regions, measures)]
    assert boxes[-1].tolist() == [0, 0, 48, 40]


def test_neighbors_touch_at_corners_too() -> None:
    labels = np.array([[0, 0, 1], [0, 2, 1], [3, 2, 2]])
    assert neighbors(labels, 4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]


def test_one_region_is_a_hierarchy_of_one() -> None:
    found = features(np.full((6, 9, 3), 0.5, np.float32), 0.8)
    regions = describe(np.zeros((6, 9), np.int64), found)
    assert group(regions, "CTSF").tolist() == [[0, 0, 9, 6]]


@pytest.mark.parametrize("space", SPACES)
def test_color_spaces_stay_in_0_to_1(space: str) -> None:
    corners = np.array(np.meshgrid([0, 128, 255], [0, 128, 255], [0, 128, 255])).reshape(3, -1).T
    found = convert(unit_rgb(corners.astype(np.uint8)[None]), space)
    assert found.dtype == np.float32
    assert found.shape[:2] == (1, 27)
    assert np.isfinite(found).all()
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    assert len(np.unique(found.round(5).reshape(27, -1), axis=0)) > 2


def test_color_spaces_that_ignore_brightness() -> None:
    bright = np.array([[[200, 100, 40], [100, 50, 20]]], np.uint8)
    for space in ("rgb", "C", "H"):
        found = convert(unit_rgb(bright), space)
        np.testing.assert_allclose(found[0, 0], found[0, 1], atol=1e-6)
