"""Warped crops against a slow reference, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cvtrain.layers.warp import warp, with_context


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """``(C, H, W)`` at a point in pixel units, centers at whole numbers -> ``(C,)``."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(image))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = image[:, top, left] * (1 - u) + image[:, top, right] * u
    return upper * (1 - v) + (image[:, below, left] * (1 - u) + image[:, below, right] * u) * v


def slow_warp(image: Tensor, box: Tensor, size: int, padding: int) -> Tensor:
    """The box fills the crop but for ``padding``; each pixel a mean of samples of its part."""
    inner = size - 2 * padding
    x0, y0, x1, y1 = box.tolist()
    step_x, step_y = (x1 - x0) / inner, (y1 - y0) / inner  # image pixels a pixel of the crop
    left, top = x0 - padding * step_x, y0 - padding * step_y
    across, down = math.ceil(step_x), math.ceil(step_y)
    crop = torch.zeros(len(image), size, size)
    for row in range(size):
        for column in range(size):
            total = torch.zeros(len(image))
            for i in range(down):
                for j in range(across):
                    y = top + (row + (i + 0.5) / down) * step_y
                    x = left + (column + (j + 0.5) / across) * step_x
                    total += bilinear(image, y - 0.5, x - 0.5)
            crop[:, row, column] = total / (across * down)
    return crop


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    "box",
    [
        [4.0, 5.0, 17.0, 30.0],  # stretched in one direction, averaged in the other
        [0.0, 0.0, 32.0, 24.0],  # the whole image: the context is all outside
        [29.5, 20.25, 32.0, 24.0],  # at a corner, a few pixels
        [8.1, 9.2, 9.3, 9.9],  # less than a pixel
    ],
)
def test_crops_equal_a_slow_reference(box: list[float], padding: int) -> None:
    image = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([box])
    crop = warp(image[None], [boxes], 10, padding)[0]
    torch.testing.assert_close(crop, slow_warp(image, boxes[0], 10, padding), atol=1e-4, rtol=1e-4)


def test_the_context_is_as_wide_as_the_papers() -> None:
    """227 pixels, 16 on each side: a box of 195 pixels is shown as it is, with 16 around it."""
    box = torch.tensor([[100.0, 50.0, 295.0, 245.0]])
    assert with_context(box, 227, 16).tolist() == [[84.0, 34.0, 311.0, 261.0]]
    image = torch.randn(1, 3, 300, 400, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(image, [box], 227)[0], image[0, :, 34:261, 84:311])


def test_the_context_around_a_box_at_the_edge_is_the_mean_color() -> None:
    crop = warp(torch.ones(1, 1, 64, 64), [torch.tensor([[0.0, 0.0, 64.0, 64.0]])], 32, 8)[0, 0]
    assert (crop[8:24, 8:24] == 1).all()
    assert (crop[:7] == 0).all()
    assert (crop[:, 25:] == 0).all()


def test_crops_come_image_by_image(random_boxes: Callable[..., Tensor]) -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 20, 20)
    boxes = [random_boxes(2, 20), random_boxes(0, 20), random_boxes(3, 20)]
    crops = warp(images, boxes, 8, 0)
    assert crops.shape == (5, 1, 8, 8)
    assert crops[:, 0, 4, 4].tolist() == [0, 0, 2, 2, 2]
    assert warp(images, [b[:0] for b in boxes], 8, 0).shape == (0, 1, 8, 8)
