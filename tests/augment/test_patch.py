"""SSD's sampling: boxes follow their objects, patches keep their promises."""

from __future__ import annotations

import random

import albumentations as A
import numpy as np
import pytest

from cvtrain.augment import SampledPatch
from cvtrain.augment.patch import _iou
from cvtrain.errors import UsageError

BOXES = np.array([[40.0, 30, 90, 60], [5, 70, 25, 85]])


def call(transform, seed, boxes=BOXES, size=(90, 120), resize="stretch"):
    """The output of one call on an image whose objects are white and gray; and the region."""
    image = np.zeros((*size, 3), np.uint8)
    for value, (x0, y0, x1, y1) in zip((255, 190), boxes.astype(int), strict=False):
        image[y0:y1, x0:x1] = value
    transform.bind(128, 128, resize)
    params = A.BboxParams(format="pascal_voc", clip=True, filter_invalid_bboxes=True)
    compose = A.Compose([transform], bbox_params=params)
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    rows = np.concatenate([boxes, np.arange(len(boxes))[:, None]], axis=1)
    return compose(image=image, bboxes=rows), transform._region


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_boxes_stay_around_what_is_left_of_their_objects(resize):
    seen = set()
    for seed in range(60):
        out, region = call(SampledPatch(), seed, resize=resize)
        assert out["image"].shape == (128, 128, 3)
        for x0, y0, x1, y1, row in out["bboxes"]:
            low, high = ((210, 255), (150, 209))[int(row)]
            area = (out["image"][..., 0] >= low) & (out["image"][..., 0] <= high)
            ys, xs = np.nonzero(area)
            if (x1 - x0) * (y1 - y0) < 60:
                continue  # a few blended pixels
            found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            if row == 0:
                slack = 2.0 + 128 / (region[2:] - region[:2]).min()  # a pixel of the original
                assert np.abs(np.array(found) - [x0, y0, x1, y1]).max() <= slack
            seen.add(int(row))
        centers = (BOXES[:, :2] + BOXES[:, 2:]) / 2
        held = ((centers >= region[:2]) & (centers < region[2:])).all(axis=1)
        assert out["bboxes"][:, 4].astype(int).tolist() == np.flatnonzero(held).tolist()
        assert held.any()
    assert seen == {0, 1}


@pytest.mark.parametrize("least", [0.1, 0.3, 0.7, 0.9])
def test_a_patch_overlaps_an_object_as_much_as_asked_for(least):
    big = np.array([[10.0, 8, 110, 80]])
    patches = 0
    for seed in range(60):
        transform = SampledPatch(overlaps=[least], expand=1.0)
        _, region = call(transform, seed, big)
        if "IoU" in transform.said:
            patches += 1
            assert _iou(region[None], big).max() >= least
            w, h = (region[2:] - region[:2]) / [120, 90]
            assert 0.09 <= w * h <= 1.001
            assert 0.48 <= w / h <= 2.1
    assert patches >= 2  # few of 50 draws reach 0.9


def test_a_canvas_makes_objects_small_and_holds_the_whole_image():
    areas = []
    for seed in range(40):
        transform = SampledPatch(overlaps=[], expand=4.0, expand_p=1.0, hflip=0.0)
        out, region = call(transform, seed)
        if "patch" in transform.said:
            continue
        assert (region[:2] <= 0).all()
        assert (region[2:] >= [120, 90]).all()
        assert (out["image"] == 114).any()
        areas.append((128 / (region[2] - region[0])) * (128 / (region[3] - region[1])))
        x0, y0, x1, y1, _ = out["bboxes"][0]
        assert (x1 - x0) * (y1 - y0) == pytest.approx(1500 * areas[-1], rel=0.1)
    assert min(areas) < 0.15
    assert max(areas) > 0.6


def test_images_without_objects_and_of_one_pixel():
    none = np.zeros((0, 4))
    for seed in range(40):
        out, region = call(SampledPatch(), seed, none)
        assert (out["image"] != 114).any()  # some of the image is in it
        assert (region[2:] > 0).all()
        out, _ = call(SampledPatch(), seed, none, size=(1, 300))
        assert out["image"].shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"overlaps": [1.5]}, "overlaps=1.5"),
        ({"area": [0.5]}, "area="),
        ({"area": [0.5, 1.5]}, "high <= 1"),
        ({"ratio": [1.5, 2.0]}, "1 must lie between"),
        ({"expand": 0.5}, "expand=0.5"),
        ({"expand_p": 2}, "expand_p=2"),
        ({"hflip": -1}, "hflip=-1"),
    ],
)
def test_wrong_ranges_are_one_line(keywords, message):
    with pytest.raises(UsageError, match=message):
        SampledPatch(**keywords)
