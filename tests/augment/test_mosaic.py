"""Four images in one: pixels, boxes and masks agree."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.augment.mosaic import mosaic
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import Scene


def scenes(dtype=np.uint8):
    made = []
    for k in range(4):
        image = np.zeros((60, 80 + 10 * k, 3), dtype)
        image[15:45, 20:60] = 50 * (k + 1)
        mask = (image[:, :, 0] > 0).astype(np.uint8) * (k + 1)
        made.append(
            Scene(
                image=image,
                boxes=np.array([[20.0, 15, 60, 45]]),
                labels=np.array([k]),
                ignore=np.array([k == 3]),
                areas=np.array([1200.0]),
                mask=mask,
                masks=Masks.of(mask[None]),
            )
        )
    return made


@pytest.mark.parametrize("seed", range(8))
def test_every_box_is_around_its_pixels(seed):
    out = mosaic(scenes(), np.random.default_rng(seed), 128, 160)
    assert out.image.shape == (128, 160, 3)
    assert out.mask.shape == (128, 160)
    assert out.masks.shape == (len(out.boxes), 128, 160)
    assert len(out.boxes) >= 1
    for box, label, ignore, one in zip(out.boxes, out.labels, out.ignore, out.masks, strict=True):
        assert ignore == (label == 3)
        y, x = ((box[1] + box[3]) / 2, (box[0] + box[2]) / 2)
        assert out.image[int(y), int(x), 0] == 50 * (label + 1)
        for pixels in (out.mask == label + 1, one > 0):
            ys, xs = np.nonzero(pixels)
            found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(found - box).max() <= 1.5
    # Nothing but the four scenes and void.
    assert set(np.unique(out.mask)) <= {0, 1, 2, 3, 4, 255}


def test_the_same_generator_gives_the_same_mosaic():
    one, two = (mosaic(scenes(), np.random.default_rng(5), 96, 96) for _ in range(2))
    three = mosaic(scenes(), np.random.default_rng(6), 96, 96)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.boxes, two.boxes)
    assert not np.array_equal(one.image, three.image)


def test_slivers_are_dropped_with_their_masks():
    strict = mosaic(scenes(), np.random.default_rng(1), 128, 128, min_visibility=0.999)
    loose = mosaic(scenes(), np.random.default_rng(1), 128, 128, min_visibility=0.0)
    assert len(strict.boxes) == len(strict.masks) == len(strict.labels) < len(loose.boxes)


def test_depths_may_differ():
    mixed = scenes()
    mixed[1].image = mixed[1].image.astype(np.uint16) * 257
    out = mosaic(mixed, np.random.default_rng(0), 96, 96)
    assert out.image.dtype == np.uint16
    assert set(np.unique(out.image)) >= {50 * 257 * 2}
