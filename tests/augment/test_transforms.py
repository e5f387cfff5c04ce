"""Our albumentations transforms: pixels and boxes move together, colors as HSV says."""

from __future__ import annotations

import colorsys
import random

import albumentations as A
import numpy as np
import pytest

from cvtrain.augment import HSV, Affine, Resize, ResizedCrop
from cvtrain.augment.transforms import scale_saturation_and_value, turn_hue
from cvtrain.errors import UsageError


def placed(transform, image, boxes, masks=None, seed=0, keypoints=None):
    """One call in a plain ``Compose``, as any user of albumentations would make it."""
    compose = A.Compose(
        [transform],
        bbox_params=A.BboxParams(format="pascal_voc", clip=True),
        keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
    )
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    data = {"image": image, "bboxes": boxes, "keypoints": keypoints or []}
    return compose(**data) if masks is None else compose(**data, masks=masks)


TRANSFORMS = {
    "letterbox": lambda: Resize(),
    "zoom": lambda: Affine(scale=[0.5, 1.5], translate=0.2, hflip=0.5, vflip=0.5),
    "crop": lambda: ResizedCrop(scale=[0.3, 1.0], hflip=0.5, vflip=0.5),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("seed", range(6))
def test_a_box_stays_around_its_object(name, resize, seed):
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 40:90] = 255
    transform = TRANSFORMS[name]()
    transform.bind(128, 128, resize)
    mask = (image[None, :, :, 0] > 0).astype(np.uint8)
    out = placed(transform, image, np.array([[40.0, 30, 90, 60]]), mask, seed)
    assert out["image"].shape == (128, 128, 3)
    ys, xs = np.nonzero(out["image"][:, :, 0] > 190)
    if not len(xs):
        assert not len(out["bboxes"])
        return
    # Half of the edge pixel may be blended: within a pixel and a half (of the enlarged image).
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert np.abs(np.array(found) - out["bboxes"][0][:4]).max() <= 2.0
    ys, xs = np.nonzero(out["masks"][0])
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert np.abs(np.array(found) - out["bboxes"][0][:4]).max() <= 1.0


@pytest.mark.parametrize("seed", range(6))
def test_a_turned_box_holds_its_turned_object(seed):
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 30:70] = 255
    out = placed(
        Affine(scale=[0.8, 1.2], translate=0.1, rotate=40.0, shear=10.0, hflip=0.5),
        image,
        np.array([[30.0, 40, 70, 60]]),
        seed=seed,
    )
    ys, xs = np.nonzero(out["image"][:, :, 0] > 190)
    x0, y0, x1, y1 = out["bboxes"][0][:4]
    assert xs.min() >= x0 - 1
    assert xs.max() + 1 <= x1 + 1
    assert ys.min() >= y0 - 1
    assert ys.max() + 1 <= y1 + 1
    # And it is the smallest such: each side touches a corner of the object.
    assert abs(xs.min() - x0) < 3
    assert abs(xs.max() + 1 - x1) < 3


def test_keypoints_follow_and_mirror():
    transform = Affine(hflip=1.0)
    transform.bind(200, 200, "stretch")
    out = placed(
        transform, np.zeros((100, 100, 3), np.uint8), np.zeros((0, 4)), keypoints=[[9.5, 4.5]]
    )
    # Pixel centers in, pixel centers out: 10 of 100 from the left is 180 of 200.
    assert np.allclose(out["keypoints"], [[179.5, 9.5]])


def test_nothing_random_means_the_plain_fit():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    outputs = []
    for transform in (Affine(), Affine(scale=[0.5, 0.6], rotate=20.0, p=0.0), Resize()):
        transform.bind(96, 96, "letterbox")
        outputs.append(transform(image=image)["image"])
    assert np.array_equal(outputs[0], outputs[2])
    assert np.array_equal(outputs[1], outputs[2])


def test_the_draws_cover_the_ranges_asked_for():
    transform = Affine(scale=[0.8, 1.2], translate=0.2, hflip=0.5)
    transform.bind(1000, 1000, "stretch")
    transform.set_random_state(np.random.default_rng(0), random.Random(0))
    places = [transform.draw(1000, 1000) for _ in range(400)]
    zooms = np.array([p.height for p in places]) / 1000
    shifts = np.array([p.left + p.width / 2 - 500 for p in places]) / 1000
    assert 0.8 <= zooms.min() < 0.82
    assert 1.18 < zooms.max() <= 1.2
    assert -0.2005 <= shifts.min() < -0.19
    assert 0.19 < shifts.max() <= 0.2005
    assert 0.4 < np.mean([p.hflip for p in places]) < 0.6
    assert not any(p.vflip for p in places)


def hsv_slowly(image: np.ndarray, saturation: float, exposure: float, hue: float = 0) -> np.ndarray:
    """Pixel by pixel through the standard library's HSV, clipped once at the end."""
    out = np.empty(image.shape, np.float64)
    for at in np.ndindex(*image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255.0))
        out[at] = colorsys.hsv_to_rgb((h + hue / 360) % 1.0, s * saturation, v * exposure)
    return np.clip(np.rint(out * 255), 0, 255)


@pytest.mark.parametrize("saturation", [1.5, 1 / 1.5, 1.0])
@pytest.mark.parametrize("exposure", [1.5, 1 / 1.5, 1.0])
def test_saturation_and_exposure_equal_hsv_pixel_by_pixel(saturation, exposure):
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    out = scale_saturation_and_value(image, saturation, exposure)
    assert np.abs(out - hsv_slowly(image, saturation, exposure)).max() <= 1


@pytest.mark.parametrize("degrees", [-30.0, 7.0, 180.0])
def test_hue_turns_as_in_hsv(degrees):
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    error = np.abs(turn_hue(image, degrees) - hsv_slowly(image, 1.0, 1.0, degrees))
    assert error.mean() < 2
    assert error.max() <= 12
    deep = turn_hue(image.astype(np.uint16) * 257, degrees) / 257.0
    assert np.abs(deep - hsv_slowly(image, 1.0, 1.0, degrees)).max() < 1


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_that_are_not_rgb_get_the_exposure_alone(channels):
    image = np.full((8, 8, channels), 30_000, np.uint16)
    out = HSV().apply(image, hue=20.0, saturation=1.5, exposure=1.5)
    assert out.shape == image.shape
    assert (out == 45_000).all()


def test_hsv_does_not_change_its_input():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    before = image.copy()
    image.flags.writeable = False
    out = HSV(hue=10.0, saturation=1.5, exposure=1.5)(image=image)["image"]
    assert np.array_equal(image, before)
    assert not np.array_equal(out, before)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Affine(scale=[1.2, 0.8]), "Affine scale=[1.2, 0.8]"),
        (lambda: Affine(scale=0.5), "Affine scale=0.5"),
        (lambda: Affine(scale=[0.0, 1.0]), "0 < low"),
        (lambda: Affine(translate=-0.1), "Affine translate=-0.1"),
        (lambda: Affine(hflip=2), "Affine hflip=2"),
        (lambda: Affine(rotate="lots"), "Affine rotate=lots"),
        (lambda: ResizedCrop(scale=[0.5, 1.5]), "<= 1"),
        (lambda: HSV(saturation=0.5), "HSV saturation=0.5"),
        (lambda: HSV(hue=-1), "HSV hue=-1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, named):
    with pytest.raises(UsageError) as caught:
        make()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
