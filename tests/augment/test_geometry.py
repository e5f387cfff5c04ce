"""Placing images: against step-by-step and analytic references."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from cvtrain.augment.geometry import (
    Box2Box,
    fit,
    map_boxes,
    map_points,
    pad_value,
    placement,
    put,
    warp,
    widen,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def step_by_step(image: np.ndarray, place: Box2Box, height: int, width: int) -> np.ndarray:
    """Crop, resize, mirror, paste on a canvas with room around, cut out: one after another."""
    if place.crop:
        y, x, h, w = place.crop
        image = image[y : y + h, x : x + w]
    shrinks = place.height < image.shape[0] / 2 or place.width < image.shape[1] / 2
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = cv2.resize(image, (place.width, place.height), interpolation=method)
    if place.hflip:
        image = image[:, ::-1]
    if place.vflip:
        image = image[::-1]
    room = 500
    canvas = np.full((height + 2 * room, width + 2 * room, 3), 114, np.uint8)
    top, left = place.top + room, place.left + room
    canvas[top : top + place.height, left : left + place.width] = image
    return canvas[room : room + height, room : room + width]


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
@pytest.mark.parametrize(
    ("size", "corner"),
    [((90, 120), (3, 5)), ((90, 120), (-20, -31)), ((20, 25), (70, 80)), ((60, 80), (0, 0))],
)
@pytest.mark.parametrize("crop", [None, (7, 11, 40, 50)])
def test_one_step_equals_step_by_step(size, corner, hflip, vflip, crop):
    place = Box2Box(*size, corner[1], corner[0], hflip, vflip, crop)
    assert np.array_equal(
        put(IMAGE, place, 96, 110, 114, False), step_by_step(IMAGE, place, 96, 110)
    )


def test_what_lies_outside_the_canvas_leaves_only_gray():
    out = put(IMAGE, Box2Box(60, 80, 500, 0), 40, 40, 114, nearest=False)
    assert (out == 114).all()
    assert out.shape == (40, 40, 3)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (1, 300), (300, 1), (33, 33)])
def test_fit_covers_the_input_and_its_placement_undoes_it(shape, resize):
    place = fit(*shape, 64, 96, resize)
    assert place.top >= 0
    assert place.top + place.height <= 64
    assert place.left >= 0
    assert place.left + place.width <= 96
    assert (place.height == 64 or place.width == 96) or resize == "letterbox"
    if resize == "letterbox":
        assert place.height == 64 or place.width == 96
        # Centerd, to the pixel.
        assert abs((64 - place.height) - 2 * place.top) <= 1
        assert abs((96 - place.width) - 2 * place.left) <= 1
    boxes = torch.tensor([[0.0, 0.0, shape[1], shape[0]], [0.25, 0.5, 1.0, 1.0]])
    where = placement(place, *shape)
    there = where.boxes_to_network(boxes)
    assert np.allclose(there.numpy(), map_boxes(boxes.numpy(), place.matrix(*shape)), atol=1e-4)
    assert torch.allclose(where.boxes_to_original(there), boxes, atol=1e-3)


def plane(height: int, width: int, matrix: np.ndarray) -> np.ndarray:
    """Values of ``20 + 2 x + 1.5 y`` at the centers of output pixels, x and y of the original."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    whole = np.vstack([matrix, [0, 0, 1]])
    x, y, _ = np.linalg.inv(whole) @ np.stack([xs.ravel(), ys.ravel(), np.ones(xs.size)])
    return (20 + 2 * x + 1.5 * y).reshape(height, width)


@pytest.mark.parametrize("angle", [0.0, 17.0, -35.0])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_warp_puts_every_value_where_its_pixel_goes(angle, mirror):
    image = np.clip(plane(50, 60, np.eye(3)[:2]), 0, 255).astype(np.float32)
    a = np.radians(angle)
    turn = 1.3 * np.array([[np.cos(a) * mirror, -np.sin(a)], [np.sin(a) * mirror, np.cos(a)]])
    matrix = np.concatenate([turn, [[40.0], [30.0]] - turn @ [[30.0], [25.0]]], axis=1)
    out = warp(image, matrix, 60, 80, -1.0, nearest=False)
    inside = warp(np.ones_like(image), matrix, 60, 80, 0.0, nearest=False) == 1.0
    assert inside.sum() > 2000
    assert np.abs(out - plane(60, 80, matrix))[inside].max() < 0.1


def test_warp_and_put_agree_where_both_can_do_it():
    smooth = cv2.GaussianBlur(IMAGE, (0, 0), 4)
    place = Box2Box(75, 100, -8, 6, hflip=True)
    fast = put(smooth, place, 90, 90, 114, nearest=False).astype(int)
    slow = warp(smooth, place.matrix(60, 80), 90, 90, 114, nearest=False).astype(int)
    inner = np.s_[8:78, 2:88]
    assert np.abs(fast - slow)[inner].max() <= 3


def test_shrinking_averages_instead_of_skipping_pixels():
    checker = (np.indices((200, 200)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    small = put(checker, Box2Box(20, 20, 0, 0), 20, 20, 0, nearest=False)
    turned = warp(checker, np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]]), 20, 20, 0, nearest=False)
    assert np.abs(small.astype(int) - 127).max() <= 2
    assert np.abs(turned.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_depth_and_number_of_channels(channels, dtype):
    image = np.full((30, 40, channels), 200, dtype)
    fill = pad_value(np.dtype(dtype))
    for out in (
        put(image, Box2Box(60, 80, 0, 10, True), 80, 80, fill, nearest=False),
        put(image, Box2Box(10, 12, 0, 10, True), 80, 80, fill, nearest=False),
        warp(image, np.array([[2.0, 0.1, 0.0], [-0.1, 2.0, 10.0]]), 80, 80, fill, nearest=False),
    ):
        assert out.shape == (80, 80, channels)
        assert out.dtype == dtype
        assert np.allclose(out[11, 5], 200)
        assert (out[79, 79] == dtype(fill)).all()


def test_nearest_invents_no_class():
    mask = np.random.default_rng(1).choice([0, 3, 255], (50, 50)).astype(np.uint8)
    for out in (
        put(mask, Box2Box(77, 91, 3, 4), 90, 99, 255, nearest=True),
        warp(mask, np.array([[1.3, 0.4, 0.0], [-0.4, 1.3, 20.0]]), 90, 99, 255, nearest=True),
    ):
        assert set(np.unique(out)) <= {0, 3, 255}


def test_boxes_follow_their_corners():
    boxes = np.array([[10.0, 20.0, 30.0, 50.0]])
    quarter = np.array([[0.0, -1.0, 100.0], [1.0, 0.0, 0.0]])  # x' = 100 - y, y' = x
    assert map_boxes(boxes, quarter).tolist() == [[50.0, 10.0, 80.0, 30.0]]
    assert map_boxes(np.zeros((0, 4)), quarter).shape == (0, 4)
    assert map_points(np.array([[10.0, 20.0]]), quarter).tolist() == [[80.0, 10.0]]


def test_white_stays_white_in_a_wider_type():
    white = np.array([0, 255], np.uint8)
    assert widen(white, np.dtype(np.uint16)).tolist() == [0, 65535]
    assert widen(white, np.dtype(np.float32)).tolist() == [0.0, 1.0]
    assert widen(white, np.dtype(np.uint8)) is white
