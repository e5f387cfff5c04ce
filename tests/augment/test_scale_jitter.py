"""Large-scale jitter: sizes, places, and that boxes follow."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.augment.pipeline import Pipeline
from cvtrain.augment.scale_jitter import ScaleJitter
from cvtrain.augment.scene import Scene
from cvtrain.errors import UsageError


def scene(height=40, width=60):
    image = np.zeros((height, width, 3), np.uint8)
    image[10:30, 20:50] = 255
    return Scene(
        image=image,
        boxes=np.array([[20.0, 10, 50, 30]]),
        labels=np.zeros(1, np.int64),
        ignore=np.zeros(1, bool),
        areas=np.array([600.0]),
    )


def jitter(**options):
    return Pipeline(
        [ScaleJitter(**options)], height=48, width=48, resize="letterbox", targets=["boxes"]
    )


def test_factors_cover_the_range_and_boxes_the_object():
    pipeline, factors = jitter(scale=[0.1, 2.0]), []
    for seed in range(60):
        out = pipeline(scene(), np.random.default_rng(seed))
        assert out.image.shape == (48, 48, 3)
        if not len(out.boxes):
            continue
        x0, y0, x1, y1 = out.boxes[0]
        inner = out.image[round(y0) + 1 : round(y1) - 1, round(x0) + 1 : round(x1) - 1]
        assert not inner.size or inner.min() > 200
        if x0 > 0 and x1 < 48:
            factors.append((x1 - x0) / (30 * 48 / 60))
    assert min(factors) < 0.3
    assert max(factors) > 1.2


def test_the_standard_range_and_the_fitted_image():
    pipeline = jitter(scale=[1.0, 1.0])
    out = pipeline(scene(), np.random.default_rng(0))
    assert out.boxes[0, [0, 2]].tolist() == pytest.approx([16, 40], abs=1e-4)
    places = {float(pipeline(scene(), np.random.default_rng(k)).boxes[0, 1]) for k in range(20)}
    assert min(places) >= 7.99  # 16 rows of padding, above or below
    assert max(places) <= 24.01
    assert len(places) > 5


def test_the_same_generator_the_same_image_and_a_mirror():
    one, two = (jitter(hflip=0.5)(scene(), np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.boxes, two.boxes)
    mirrored = jitter(scale=[1, 1], hflip=1.0)(scene(), np.random.default_rng(0))
    assert mirrored.boxes[0, [0, 2]].tolist() == pytest.approx([8, 32], abs=1e-4)


@pytest.mark.parametrize(
    "options", [{"scale": [2, 1]}, {"scale": [0, 1]}, {"hflip": 2}, {"of": "x"}]
)
def test_values_that_make_no_sense(options):
    with pytest.raises(UsageError, match="ScaleJitter"):
        ScaleJitter(**options)


def test_crops_of_the_image_at_its_own_size():
    """Scale 1 of ``original``: pixels as they are, void around images smaller than the crop."""
    data = scene(100, 30)  # taller than the crop, narrower than it
    data.image = np.random.default_rng(0).integers(0, 255, (100, 30, 3), dtype=np.uint8)
    data.mask = np.full((100, 30), 3, np.uint8)
    pipeline = Pipeline(
        [ScaleJitter(scale=[1.0, 1.0], of="original")],
        height=48,
        width=48,
        resize="letterbox",
        targets=["mask"],
    )
    tops = set()
    for seed in range(12):
        out = pipeline(data, np.random.default_rng(seed))
        known = out.mask == 3
        assert known.sum() == 48 * 30
        assert set(np.unique(out.mask)) == {3, 255}
        left = int(np.flatnonzero(known.any(axis=0))[0])
        seen = out.image[:, left : left + 30]
        found = [y for y in range(53) if np.array_equal(seen, data.image[y : y + 48])]
        assert len(found) == 1
        assert (out.image[~known] == 114).all()
        tops |= set(found)
    assert len(tops) > 5
