"""Masks of a few pixels a box, put into the original's pixels."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cvtrain.augment.geometry import fit, placement
from cvtrain.data.masks import decode_rle, rle_ious, rles_from_masks
from cvtrain.data.table import Classes
from cvtrain.errors import RunError
from cvtrain.metrics import metrics_for
from cvtrain.models.base import Model
from cvtrain.structures import ImageInfo, Prediction, Target
from cvtrain.tasks import paste_masks as pasting
from cvtrain.tasks.instance_segmentation import InstanceSegmentationTask
from cvtrain.tasks.paste_masks import paste, paste_rles


def slow_value(grid, box, row, column):
    """What a grid over a box says at the center of a pixel, cell by cell."""
    m, n = grid.shape
    left, top, right, bottom = box
    y = (row + 0.5 - top) / (bottom - top) * m - 0.5
    x = (column + 0.5 - left) / (right - left) * n - 0.5
    value = 0.0
    for i in range(m):
        for j in range(n):
            value += max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j)) * float(grid[i, j])
    return value


BOXES = [
    (2.0, 3.0, 12.0, 15.0),
    (1.3, 0.2, 17.9, 6.6),
    (-5.5, -3.2, 9.4, 30.0),  # beyond the image on three sides
    (8.2, 8.2, 8.9, 9.7),  # between two columns of centers but for one
    (4.6, 4.6, 5.4, 5.4),  # no center inside
    (7.0, 7.0, 7.0, 12.0),  # without width
    (40.0, 2.0, 50.0, 9.0),  # outside
]


@pytest.mark.parametrize("m", [1, 4, 7])
@pytest.mark.parametrize("box", BOXES)
def test_pasting_agrees_with_a_slow_reference(m, box, monkeypatch) -> None:
    height, width = 16, 20
    grid = np.random.default_rng(m).random((m, m)).astype(np.float32)
    part, top, left = paste(grid, np.array(box), height, width)
    got = np.zeros((height, width), bool)
    got[top : top + part.shape[0], left : left + part.shape[1]] = part
    values = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            inside = box[1] <= row + 0.5 < box[3] and box[0] <= column + 0.5 < box[2]
            values[row, column] = slow_value(grid, box, row, column) if inside else 0.0
    sure = np.abs(values - 0.5) > 1e-5
    assert np.array_equal(got[sure], (values >= 0.5)[sure])
    monkeypatch.setattr(pasting, "_STRIPE", 1)  # a row at a time
    assert np.array_equal(paste(grid, np.array(box), height, width)[0], part)
    (rle,) = paste_rles(grid[None], np.array([box]), height, width)
    assert np.array_equal(decode_rle(rle), got)


def test_ones_fill_the_box_and_nothing_else() -> None:
    ones = np.ones((1, 28, 28), np.float32)
    for box in ((3, 4, 9, 11), (0, 0, 30, 20), (2.2, 2.3, 4.6, 3.7)):
        (rle,) = paste_rles(ones, np.array([box]), 20, 30)
        mask = decode_rle(rle).astype(bool)
        y, x = np.mgrid[:20, :30] + 0.5
        expected = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        assert np.array_equal(mask, expected)


def test_large_boxes_agree_with_torchvision_nearly_everywhere() -> None:
    """It rounds the box to whole pixels: of a large one the outline alone may differ."""
    y, x = np.mgrid[:28, :28]
    disc = 1 / (1 + np.exp((np.hypot(y - 13.5, x - 13.5) - 10) * 1.5))
    boxes = torch.tensor([[20.0, 30.0, 320.0, 260.0], [101.0, 7.0, 140.0, 399.0]])
    probs = torch.from_numpy(disc).float().expand(2, 1, 28, 28).contiguous()
    theirs = paste_masks_in_image(probs, boxes, (400, 400)) >= 0.5
    expected = rles_from_masks(theirs[:, 0].numpy())
    ours = paste_rles(probs[:, 0].numpy(), boxes.numpy(), 400, 400)
    assert (np.diag(rle_ious(ours, expected)) > [0.99, 0.95]).all()  # the second is 39 wide


def test_a_disc_is_placed_better_than_by_whole_pixels() -> None:
    """A true disc, its mask as exact as 28 x 28 cells say: the IoU is nearly one."""
    center, radius = (50.3, 41.7), 22.6
    y, x = np.mgrid[:100, :90] + 0.5
    true = np.hypot(y - center[0], x - center[1]) < radius
    box = np.array([[center[1] - radius, center[0] - radius] * 2])
    box[:, 2:] += 2 * radius
    cells = (np.mgrid[:28, :28] + 0.5) / 28 * 2 - 1
    soft = 1 / (1 + np.exp((np.hypot(*cells) - 1) * 28))
    ours = paste_rles(soft[None].astype(np.float32), box, 100, 90)
    assert rle_ious(ours, rles_from_masks(true[None]))[0, 0] > 0.96


@pytest.fixture
def task():
    class Nothing(Model):
        def forward(self, images):
            return images

        def compute_loss(self, outputs, targets):
            return {}

        def decode(self, outputs):
            return []

    classes = Classes(("nucleus",), (7,))
    metrics = metrics_for("instance_segmentation", classes)
    words = ({"name": "sgd", "lr": 0.1}, None, "mask_mAP50", "max", "instance_segmentation")
    return InstanceSegmentationTask(Nothing(), classes, metrics, *words)


def one(boxes, probs) -> Prediction:
    return Prediction(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.5, len(probs)),
        labels=torch.zeros(len(probs), dtype=torch.int64),
        mask_probs=torch.as_tensor(probs, dtype=torch.float32),
    )


def info_of(height, width, net=64, resize="letterbox") -> ImageInfo:
    place = placement(fit(height, width, net, net, resize), height, width)
    return ImageInfo(0, "a.png", "a.png", height, width, place)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_masks_come_back_at_the_originals_size(task, resize) -> None:
    info = info_of(100, 200, resize=resize)
    scale = info.placement.boxes_to_network(torch.tensor([[20.0, 10.0, 120.0, 60.0]]))
    (message,) = task.to_original_batch([one(scale.tolist(), np.ones((1, 28, 28)))], [info])
    assert message.mask_probs is None
    assert message.rles[0]["size"] == [100, 200]
    mask = decode_rle(message.rles[0])
    corners = mask[[10, 10, 59, 59], [20, 119, 20, 119]]  # cells of 3.6 x 1.8 pixels round them off
    assert (int(mask.sum()), corners.tolist()) == (100 * 50 - 4, [0] * 4)
    assert mask[11:59, 20:120].all()
    assert pickle.loads(pickle.dumps(message.rles)) == message.rles


def test_a_box_in_the_border_keeps_the_place_of_its_mask(task) -> None:
    """Of a box that reaches into the letterbox border the mask is cut off, not squeezed."""
    info = info_of(50, 100, net=100)  # a border of 25 above and below
    half = np.zeros((1, 28, 28))
    half[0, 14:] = 1.0  # the lower half of the box
    (message,) = task.to_original_batch([one([[10, 5, 50, 65]], half)], [info])
    assert message.boxes.tolist() == [[10, 0, 50, 40]]
    rows = np.flatnonzero(decode_rle(message.rles[0]).any(axis=1))
    assert (rows[0], rows[-1]) == (10, 39)  # 35..65 in the network


def test_nothing_found(task) -> None:
    info = info_of(100, 200)
    (message,) = task.to_original_batch([one([], np.zeros((0, 28, 28)))], [info])
    assert message.rles == []


def test_what_is_no_prediction_of_masks_is_refused(task) -> None:
    info = info_of(100, 200)
    with pytest.raises(ValueError, match=r"a\.png: boxes, mask_probs and the image's placement"):
        task.to_original(Prediction(boxes=torch.zeros(0, 4)), info)
    with pytest.raises(ValueError, match=r"mask_probs of shape \(2, 4\) for 1 boxes"):
        task.to_original(one([[0, 0, 9, 9]], np.zeros((2, 4))), info)
    bad = one([[0, 0, 9, 9]], np.full((1, 4, 4), math.nan))
    with pytest.raises(RunError, match=r"the model's masks for a\.png are not finite"):
        task.to_original(bad, info)
    bad = one([[0, math.inf, 9, 9]], np.ones((1, 4, 4)))
    with pytest.raises(RunError, match=r"the model's boxes for a\.png are not finite"):
        task.to_original(bad, info)


def test_a_perfect_network_scores_nearly_one_at_another_size(task) -> None:
    """Discs seen at a quarter of their size; their masks as the network's cells say them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320] + 0.5
    info = info_of(240, 320, net=80)
    centers = np.stack(np.meshgrid([40, 120, 200, 280], [40, 120, 200]), -1).reshape(-1, 2)
    centers = centers + rng.uniform(-8, 8, centers.shape)
    radii = rng.uniform(14, 30, len(centers))
    true = [np.hypot(x - c[0], y - c[1]) < r for c, r in zip(centers, radii, strict=True)]
    boxes = np.concatenate([centers - radii[:, None], centers + radii[:, None]], axis=1)
    cells = (np.mgrid[:28, :28] + 0.5) / 28 * 2 - 1
    soft = 1 / (1 + np.exp((np.hypot(*cells) - 1) * 28))
    net = info.placement.boxes_to_network(torch.from_numpy(boxes))
    truth = Target(
        boxes=torch.from_numpy(boxes).float(),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        rles=rles_from_masks(np.array(true)),
    )
    message = task.to_original_batch(
        [one(net.tolist(), np.repeat(soft[None], len(boxes), 0))], [info]
    )
    task.metrics.update(message, [truth], [info])
    scores = task.metrics.compute()
    assert scores["mask_mAP"] > 0.95
    assert scores["mAP"] > 0.99
