"""Masks of many objects in few planes: equal to dense ones, whatever is done to them."""

from __future__ import annotations

import albumentations as A
import cv2
import numpy as np
import pytest

from cvtrain.augment import Affine
from cvtrain.augment.pipeline import Pipeline
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import Scene
from cvtrain.data.masks import from_mask, mask_box, to_masks, to_planes
from cvtrain.data.table import Blobs


@pytest.fixture
def dense():
    """Twelve masks of 33 x 41 pixels, some of which overlap, one empty, one in pieces."""
    rng = np.random.default_rng(0)
    masks = np.zeros((12, 33, 41), np.uint8)
    for mask in masks[1:]:
        y, x = rng.integers(0, 25, 2)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 16)] = 1
    masks[5, 30:, :3] = 1
    masks[6, :, 20] = 1
    return masks


def test_packed_masks_are_the_dense_ones(dense):
    masks = Masks.of(dense)
    assert masks.shape == dense.shape
    assert 1 < len(masks.planes) < len(dense)
    assert np.array_equal(masks.dense(), dense > 0)
    assert np.array_equal(np.stack(list(masks)), dense)
    assert masks.areas.tolist() == dense.sum(axis=(1, 2)).tolist()
    assert [tuple(box) for box in masks.boxes.tolist()] == [mask_box(m) for m in dense]
    assert np.array_equal(masks.union(), dense.any(axis=0))


def test_parts_of_them(dense):
    masks, rows = Masks.of(dense), np.array([7, 2, 9])
    some = masks.take(rows)
    assert np.array_equal(some.dense(), dense[rows] > 0)
    assert np.array_equal(some.union(), dense[rows].any(axis=0))
    assert np.array_equal(some.take(np.array([True, False, True])).dense(), dense[[7, 9]] > 0)
    cover = np.zeros((33, 41), bool)
    cover[10:20] = True
    left = np.where(cover, 0, dense)
    assert np.array_equal(masks.without(cover).dense(), left > 0)
    assert masks.without(cover).areas.tolist() == left.sum(axis=(1, 2)).tolist()
    both = Masks.joined([some, Masks.empty(33, 41), masks])
    assert np.array_equal(both.dense(), np.concatenate([dense[rows], dense]) > 0)
    assert np.array_equal(masks.apart().dense(), dense > 0)
    assert masks.apart().planes.shape == dense.shape


def test_no_object():
    none = Masks.empty(4, 5)
    assert none.dense().shape == none.shape == (0, 4, 5)
    assert not none.union().any()
    assert none.areas.shape == (0,)
    assert none.take(np.zeros(0, np.int64)).boxes.shape == (0, 4)


def test_more_objects_than_a_plane_holds():
    dense = np.zeros((600, 30, 30), np.uint8)
    dense.reshape(600, 900)[np.arange(600), np.arange(600)] = 1
    masks = Masks.of(dense)
    assert len(masks.planes) == 3
    assert np.array_equal(masks.dense(), dense > 0)


def test_segments_become_planes_as_they_become_masks(dense):
    polygons = b"[[2.5, 3, 30, 4.2, 12, 28.7], [33, 1, 39, 1, 39, 9]]"
    blobs = Blobs([*(from_mask(m) for m in dense), polygons, b"[[-5, -5, 60, -5, 60, 60, -5, 60]]"])
    rows = slice(0, len(blobs))
    planes = to_planes(blobs, rows, 33, 41)
    assert np.array_equal(planes.dense(), to_masks(blobs, rows, 33, 41) > 0)
    assert to_planes(blobs, slice(3, 3), 33, 41).shape == (0, 33, 41)


@pytest.mark.parametrize(
    "transform",
    [
        lambda: Affine(scale=[0.5, 1.5], translate=0.2, rotate=30.0, shear=5.0, hflip=0.5),
        lambda: A.ElasticTransform(p=1.0),
        lambda: A.Perspective(p=1.0),
        lambda: A.Morphological(p=1.0),
        lambda: A.Rotate(p=1.0, mask_interpolation=cv2.INTER_LINEAR),
    ],
)
def test_a_pipeline_moves_planes_as_it_moves_each_mask(dense, transform):
    boxes = np.array([mask_box(m) for m in dense[1:]])
    image = np.random.default_rng(1).integers(0, 256, (33, 41, 3), np.uint8)

    def scene(masks):
        none = np.zeros(len(boxes))
        return Scene(image, boxes, none.astype(np.int64), none > 0, none, masks=masks)

    pipeline = Pipeline([transform()], height=48, width=40, resize="letterbox", targets=["masks"])
    packed = Masks.of(dense[1:])
    for seed in range(6):
        one, each = (
            pipeline(scene(m), np.random.default_rng(seed)) for m in (packed, packed.apart())
        )
        assert np.array_equal(one.masks.dense(), each.masks.dense())
        assert np.array_equal(one.boxes, each.boxes)
        assert [tuple(b) for b in one.boxes.tolist()] == [mask_box(m) for m in one.masks]
