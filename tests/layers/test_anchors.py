"""Anchors, default boxes and points against torchvision and by hand; k-means on known clusters."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from cvtrain.layers.anchors import (
    GridAnchors,
    default_box_sizes,
    default_boxes,
    flatten_map,
    kmeans_sizes,
    points,
    shape_iou,
)
from cvtrain.layers.boxes import center_size

CPU = torch.device("cpu")
SSD_SCALES = [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
SSD_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD_MAPS = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]


def test_grid_anchors_by_hand() -> None:
    anchors = GridAnchors([[8, 16]], [1.0, 4.0], [10])
    assert anchors.per_place == [4]
    (found,) = anchors([(2, 3)], CPU)
    assert found.shape == (2 * 3 * 4, 4)
    # Row 1, column 2: around (20, 10); ratio 1 first, its two scales, then twice as high as wide.
    assert found[-4:].tolist() == [
        [16, 6, 24, 14],
        [12, 2, 28, 18],
        [18, 2, 22, 18],
        [16, -6, 24, 26],
    ]


def test_grid_anchors_equal_torchvision() -> None:
    sizes, ratios = ((32, 40, 50), (64, 80, 101)), (0.5, 1.0, 2.0)
    maps = [torch.zeros(2, 8, 6, 8), torch.zeros(2, 8, 3, 4)]
    images = ImageList(torch.zeros(2, 3, 48, 64), [(48, 64)] * 2)
    expected = AnchorGenerator(sizes, (ratios,) * 2)(images, maps)[0]
    found = GridAnchors(sizes, ratios, [8, 16])([(6, 8), (3, 4)], CPU)
    assert torch.equal(torch.cat(found), expected)
    with pytest.raises(ValueError, match="anchors for 2 maps, there are 1"):
        GridAnchors(sizes, ratios, [8])


def test_ssd300_has_8732_default_boxes() -> None:
    sizes = default_box_sizes(SSD_SCALES, SSD_RATIOS)
    assert [len(s) for s in sizes] == [4, 6, 6, 6, 4, 4]
    assert sizes[0][0] == (0.1, 0.1)
    assert sizes[0][1] == pytest.approx((0.02**0.5,) * 2)
    assert sizes[1][2] == pytest.approx((0.2 * 2**0.5, 0.2 / 2**0.5))
    boxes = default_boxes(sizes, SSD_MAPS, (300, 300), CPU)
    assert boxes.shape == (8732, 4)
    first = center_size(boxes[:1])[0]
    torch.testing.assert_close(first, torch.tensor([300 / 76, 300 / 76, 30, 30]))


@pytest.mark.parametrize("steps", [None, [8, 16, 32, 64, 100, 300]])
@pytest.mark.parametrize("size", [(300, 300), (300, 450)])
def test_default_boxes_equal_torchvision(steps: list[int] | None, size: tuple[int, int]) -> None:
    maps = [torch.zeros(1, 1, *m) for m in SSD_MAPS]
    theirs = DefaultBoxGenerator(SSD_RATIOS, scales=SSD_SCALES, steps=steps)
    expected = theirs(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]
    sizes = default_box_sizes(SSD_SCALES, SSD_RATIOS)
    found = default_boxes(sizes, SSD_MAPS, size, CPU, steps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_a_scale_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="2 scales for 2 maps"):
        default_box_sizes([0.1, 0.2], [[2], [2]])


def test_points_by_hand() -> None:
    first, second = points([(2, 2), (1, 3)], [8, 16], CPU)
    assert first.tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]
    assert second.tolist() == [[8, 8], [24, 8], [40, 8]]
    assert points([(1, 2)], [8], CPU, offset=0)[0].tolist() == [[0, 0], [8, 0]]


def test_flattened_maps_come_in_the_order_of_the_anchors() -> None:
    x = torch.arange(2 * 6 * 2 * 3).view(2, 6, 2, 3)  # 3 anchors of 2 numbers on 2 x 3 places
    flat = flatten_map(x, 2)
    assert flat.shape == (2, 18, 2)
    for row in range(2):
        for column in range(3):
            for a in range(3):
                expected = x[1, 2 * a : 2 * a + 2, row, column]
                assert torch.equal(flat[1, (row * 3 + column) * 3 + a], expected)


def test_kmeans_finds_clusters_and_more_of_them_fit_better() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[10.0, 12.0], [60.0, 30.0], [90.0, 150.0]])
    noise = 1 + 0.02 * torch.randn(300, 2, generator=generator)
    sizes = truth.repeat(100, 1) * noise
    found, mean = kmeans_sizes(sizes, 3)
    torch.testing.assert_close(found, truth, rtol=0.02, atol=0)
    assert mean == pytest.approx(float(shape_iou(sizes, found).amax(1).mean()), abs=1e-5)
    assert mean > 0.95
    curve = [kmeans_sizes(sizes, k)[1] for k in (1, 2, 3, 6)]
    assert curve == sorted(curve)
    assert torch.equal(kmeans_sizes(sizes, 3)[0], found)  # the seed decides


def test_kmeans_refuses_what_it_cannot_do_and_takes_equal_boxes() -> None:
    with pytest.raises(ValueError, match="k=3 clusters from 2 boxes"):
        kmeans_sizes(torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="without area"):
        kmeans_sizes(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 1)
    found, mean = kmeans_sizes(torch.full((4, 2), 7.0), 2)
    assert found.tolist() == [[7, 7], [7, 7]]
    assert mean == pytest.approx(1.0)
