"""Elastic deformation: the paper's field, and everything annotated follows it."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.augment.elastic import Elastic, fetched_from, goes_to, weights
from cvtrain.augment.pipeline import Pipeline
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import Scene
from cvtrain.errors import UsageError


def deform(scene, seed=0, **options):
    pipeline = Pipeline(
        [Elastic(**options)], height=96, width=120, resize="stretch", targets=["boxes", "masks"]
    )
    return pipeline(scene, np.random.default_rng(seed))


def scene(channels=3):
    """A bright rectangle with a keypoint in its middle, on gray."""
    image = np.full((96, 120, channels), 60, np.uint8)
    image[30:70, 40:90] = 250
    masks = (image[None, :, :, 0] == 250).astype(np.uint8)
    return Scene(
        image=image,
        boxes=np.array([[40.0, 30, 90, 70]]),
        labels=np.zeros(1, np.int64),
        ignore=np.zeros(1, bool),
        areas=np.array([2000.0]),
        mask=masks[0] * np.uint8(7),
        masks=Masks.of(masks),
        keypoints=np.array([[[65.0, 50, 2]]]),
    )


def test_the_vectors_are_the_papers() -> None:
    """10 pixels of 512, one for each point of a 3 x 3 grid and direction."""
    elastic = Elastic()
    params = {"shape": (512, 700, 3)}
    drawn = [elastic.get_params_dependent_on_data(params, {})["coarse"] for _ in range(400)]
    assert drawn[0].shape == (2, 3, 3)
    assert np.std(drawn) == pytest.approx(10.24, rel=0.05)
    assert abs(np.mean(drawn)) < 0.5


def test_between_the_points_cubic_convolution() -> None:
    """It meets the points, is exact for quadratics, and sums to 1."""
    share = np.linspace(0, 1, 41)
    for grid in (3, 5):
        points = np.linspace(0, 1, grid)
        table = weights(grid, share)
        np.testing.assert_allclose(weights(grid, points), np.eye(grid), atol=1e-12)
        np.testing.assert_allclose(table.sum(axis=1), 1.0)
        np.testing.assert_allclose(table @ points**2, share**2, atol=1e-12)
        np.testing.assert_array_equal(weights(grid, np.array([-0.3])), weights(grid, np.zeros(1)))


def test_the_field_is_that_of_a_slow_loop() -> None:
    coarse = np.random.default_rng(0).normal(0, 3, (2, 3, 3))
    x, y = fetched_from(coarse, 20, 31)
    for row, column in ((0, 0), (7, 30), (19, 12)):
        down, along = weights(3, np.array([(row + 0.5) / 20, (column + 0.5) / 31]))
        sums = [
            sum(down[i] * along[j] * plane[i, j] for i in range(3) for j in range(3))
            for plane in coarse
        ]
        assert x[row, column] == pytest.approx(column + sums[0], abs=1e-4)
        assert y[row, column] == pytest.approx(row + sums[1], abs=1e-4)


def test_a_point_goes_where_its_pixel_is_fetched_to() -> None:
    coarse = np.random.default_rng(1).normal(0, 2, (2, 3, 3))
    points = np.random.default_rng(2).uniform(10, 80, (50, 2))
    at = goes_to(points, coarse, 96, 96)
    rows, columns = weights(3, at[:, 1] / 96), weights(3, at[:, 0] / 96)
    back = at + np.einsum("pi,kij,pj->pk", rows, coarse, columns)
    np.testing.assert_allclose(back, points, atol=1e-6)
    assert np.abs(at - points).max() > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_everything_follows_the_pixels(seed: int, channels: int) -> None:
    out = deform(scene(channels), seed, std=0.05)
    assert out.image.shape == (96, 120, channels)
    bright = out.image[..., 0] > 155
    assert (bright != (out.masks[0] > 0)).mean() < 0.01
    ys, xs = np.nonzero(out.masks[0])
    around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(out.boxes[0] - around).max() <= 2
    assert set(np.unique(out.mask)) <= {0, 7, 255}  # void where nothing was
    assert ((out.mask == 7) == (out.masks[0] > 0)).all()
    x, y, _ = out.keypoints[0, 0]
    assert np.hypot(x - (xs.mean() + 0.5), y - (ys.mean() + 0.5)) < 4
    assert not np.array_equal(out.image, scene(channels).image)


def test_no_displacement_changes_nothing_and_a_seed_repeats() -> None:
    still, data = deform(scene(), std=0.0), scene()
    assert np.array_equal(still.image, data.image)
    assert np.array_equal(still.mask, data.mask)
    np.testing.assert_allclose(still.boxes, data.boxes, atol=1e-4)
    one, two, other = deform(scene(), 3), deform(scene(), 3), deform(scene(), 4)
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("options", [{"std": 0.2}, {"std": -1}, {"grid": 2}, {"grid": 3.5}])
def test_numbers_out_of_range(options) -> None:
    with pytest.raises(UsageError, match="Elastic"):
        Elastic(**options)
