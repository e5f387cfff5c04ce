"""Sizes of training batches: the paper's, whole strides, the same for all who ask."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.multi_scale import MultiScale, resize_batch
from cvtrain.structures import Target


def test_the_papers_sizes_and_those_of_small_images() -> None:
    paper = MultiScale((0.77, 1.46), stride=32)
    assert paper.sizes(416, 416) == [(s, s) for s in range(320, 609, 32)]
    small = MultiScale((0.77, 1.46), stride=16)
    assert small.sizes(128, 128) == [(s, s) for s in range(96, 193, 16)]
    assert paper.sizes(128, 256) == [(96, 192), (128, 256), (160, 320), (192, 384)]
    assert paper.sizes(1, 500) == [(32, 512)]
    assert MultiScale((1, 1), stride=32).sizes(416, 416) == [(416, 416)]


def test_a_new_size_every_ten_batches_from_seed_epoch_and_batch_alone() -> None:
    scales = MultiScale((0.77, 1.46), every=10, stride=32, seed=3)
    drawn = [scales.size(2, batch, 416, 416) for batch in range(400)]
    assert all(len(set(drawn[i : i + 10])) == 1 for i in range(0, 400, 10))
    assert set(drawn) == set(scales.sizes(416, 416))
    again = MultiScale((0.77, 1.46), every=10, stride=32, seed=3)
    assert [again.size(2, batch, 416, 416) for batch in (399, 0, 55)] == [
        drawn[399],
        drawn[0],
        drawn[55],
    ]
    assert [scales.size(3, batch, 416, 416) for batch in range(400)] != drawn
    other = MultiScale((0.77, 1.46), every=10, stride=32, seed=4)
    assert [other.size(2, batch, 416, 416) for batch in range(400)] != drawn


def test_boxes_go_with_their_pixels() -> None:
    images = torch.zeros(2, 1, 64, 32)
    images[0, :, 16:48, 8:24] = 1
    boxes = torch.tensor([[8.0, 16.0, 24.0, 48.0]])
    targets = [Target(boxes=boxes), Target(label=torch.tensor(1))]
    larger, moved = resize_batch(images, targets, (128, 96))
    assert larger.shape == (2, 1, 128, 96)
    assert moved[0].boxes is not None
    assert moved[0].boxes.tolist() == [[24.0, 32.0, 72.0, 96.0]]
    assert moved[1].boxes is None
    assert float(larger[0, 0, 34:94, 26:70].min()) == 1
    assert float(larger[0, 0, :30].max()) == 0
    assert targets[0].boxes is boxes
    same, unmoved = resize_batch(images, targets, (64, 32))
    assert same is images
    assert unmoved == targets


@pytest.mark.parametrize(
    ("shares", "every", "said"),
    [((1.2, 0.8), 10, "smallest and the largest"), ((0.5,), 1, "0.77"), ((1, 1), 0, "at least 1")],
)
def test_values_out_of_range(shares: tuple[float, ...], every: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MultiScale(shares, every)
