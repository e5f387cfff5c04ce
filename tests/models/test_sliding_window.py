"""Sliding window: windows against convolution, which windows it learns from, and what is mined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.boxes import pairwise
from cvtrain.layers.windows import WindowPyramid
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.base import total_loss
from cvtrain.models.detection.sliding_window import SlidingWindow
from cvtrain.structures import Target

FEW = {"sides": [0.4, 0.8], "ratios": [0.5, 1.0, 2.0]}


def small(padded: bool = False, **options: Any) -> SlidingWindow:
    torch.manual_seed(0)
    backbone = DarknetTiny([8, 12], [1, 3], None, padded)
    model = SlidingWindow(backbone, 2, **{**FEW, "hidden": [16], **options}).eval()
    with torch.no_grad():
        model.classifier.last.weight.mul_(100)  # it starts at nearly nothing
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.uniform_(-0.3, 0.3)
    return model


def pictures(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def target(*rows: tuple[float, ...], ignore: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows).view(-1, 5)
    hidden = torch.zeros(len(table), dtype=torch.bool)
    hidden[list(ignore)] = True
    return Target(boxes=table[:, :4], labels=table[:, 4].long(), ignore=hidden)


# Windows and convolution -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (64, 150), (31, 40), (1, 60)])
@torch.no_grad()
def test_convolution_gives_what_the_windows_give(size: tuple[int, int]) -> None:
    model = small()
    images = pictures(2, *size)
    dense = model(images)
    model.dense = False
    alone = model(images)
    assert dense.logits.std() > 0.1  # there is something to compare
    torch.testing.assert_close(dense.logits, alone.logits, rtol=1e-4, atol=1e-4)
    windows = len(dense.windows)
    assert dense.logits.shape == (2, windows, 3)
    assert sum(dense.counts) == windows
    assert dense.forwards == 2 * len(dense.counts)
    assert alone.forwards == 2 * windows


@torch.no_grad()
def test_a_network_that_pads_gives_something_else() -> None:
    model = small(padded=True)
    dense = model(pictures(1, 96, 96))
    model.dense = False
    assert (dense.logits - model(pictures(1, 96, 96)).logits).abs().max() > 1e-2


@torch.no_grad()
def test_a_window_is_the_image_cut_where_its_box_says() -> None:
    """Of a level without resizing, a box's pixels are what the network is shown."""
    pyramid = WindowPyramid(32, 4, [0.5], [1.0])
    x = torch.rand(1, 3, 64, 64)
    [resized] = pyramid.resized(x)
    torch.testing.assert_close(resized, x)
    boxes = pyramid.boxes(64, 64)
    every = pyramid.all_crops(resized).flatten(0, 2)
    assert len(boxes) == len(every) == 9 * 9
    for box, crop in zip(boxes.int().tolist(), every, strict=True):
        assert torch.equal(crop, x[0, :, box[1] : box[3], box[0] : box[2]])
    some = torch.tensor([80, 0, 17])
    assert torch.equal(pyramid.crops([resized], torch.zeros(3).long(), some), every[some])


def test_windows_have_the_sizes_and_shapes_asked_for_and_cover_the_image() -> None:
    pyramid = WindowPyramid(32, 4, [0.25, 0.5], [0.5, 1.0, 2.0])
    levels, boxes = pyramid.levels(128, 160), pyramid.boxes(128, 160)
    assert len(boxes) == sum(level.count for level in levels)
    side, place = [], 0
    for level in levels:
        part = boxes[place : place + level.count]
        place += level.count
        assert part[:, :2].amin() == 0
        torch.testing.assert_close(part[:, 2:].amax(dim=0), torch.tensor([160.0, 128.0]))
        width, height = (part[0, 2:] - part[0, :2]).tolist()
        side.append(((width * height) ** 0.5, height / width))
    wanted = [(s * 128, r) for s in (0.25, 0.5) for r in (0.5, 1.0, 2.0)]
    for (found, shape), (pixels, ratio) in zip(side, wanted, strict=True):
        assert found == pytest.approx(pixels, rel=0.1)
        assert shape == pytest.approx(ratio, rel=0.2)


def test_the_default_costs_28030_windows_whatever_the_size_of_the_image(build_model: Any) -> None:
    with torch.device("meta"):
        model = build_model("task=detection", "model=sliding_window", "data=shapes")
        found = [model(torch.zeros(1, 3, n, n, dtype=torch.uint8)) for n in (128, 320)]
    assert [f.logits.shape[1] for f in found] == [28030, 28030]
    assert [f.forwards for f in found] == [35, 35]


# Learning --------------------------------------------------------------------------------------


def test_drawn_windows_are_what_their_labels_say() -> None:
    model = small(positives=500, negatives=10)  # as many as there are
    images = pictures(2, 96, 96)
    targets = [target((8, 8, 50, 52, 1), (60, 60, 66, 65, 0)), target()]
    outputs = model(images)
    drawn = model._draw(outputs.windows, outputs.counts, targets, outputs, training=True)
    for i, truth in enumerate(targets):
        mine = drawn.images == i
        windows, labels = outputs.windows[drawn.windows[mine]], drawn.labels[mine]
        assert len(labels) <= 500 + 10 + 16
        assert len(drawn.windows[mine].unique()) == len(labels)
        if i == 1:
            assert (labels == 2).all()
            continue
        assert truth.boxes is not None
        iou = pairwise(windows, truth.boxes)  # (n, 2)
        assert (iou[labels == 2].amax(dim=1) < 0.4).all()
        assert (iou[labels == 1, 0] >= 0.5).all()
        # Too small for any window: one that overlaps it most stands for it.
        best = pairwise(outputs.windows, truth.boxes)[:, 1].max()
        assert iou[labels == 0, 1].tolist() == [best.item()]
        assert int((labels == 1).sum()) == int(
            (pairwise(outputs.windows, truth.boxes)[:, 0] >= 0.5).sum()
        )


def test_what_is_mined_are_the_surest_false_positives_one_a_place() -> None:
    model = small(hard_negatives=5)
    windows = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30], [40, 40, 50, 50], [60, 0, 70, 9]]
    )
    message = torch.tensor([0.6, 0.9, 0.7, 0.01, 0.0])
    assert model._hardest(windows, message).tolist() == [1, 2]
    model.hard_negatives = 1
    assert model._hardest(windows, message).tolist() == [1]


def test_a_region_to_ignore_is_neither() -> None:
    model = small()
    images = pictures(1, 96, 96)
    whole = target((0, 0, 96, 96, 1), ignore=(0,))
    outputs = model(images)
    drawn = model._draw(outputs.windows, outputs.counts, [whole], outputs, training=True)
    assert len(drawn.labels) == 0
    terms = model.train().loss(images, [whole])
    assert terms["classes"] == terms["num_objects"] == terms["num_positives"] == 0
    total_loss(terms).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_loss_is_the_mean_entropy_of_the_windows_drawn() -> None:
    model = small()
    images, targets = pictures(2, 96, 96), [target((8, 8, 50, 52, 1)), target()]
    with torch.no_grad():
        outputs = model(images)
    drawn = model._draw(outputs.windows, outputs.counts, targets, outputs, training=False)
    slow = []
    for i, v, label in zip(*(part.tolist() for part in drawn), strict=True):
        slow.append(float(-outputs.logits[i, v].log_softmax(dim=0)[label]))
    terms, _ = model.loss_and_predict(images, targets)
    assert float(terms["classes"]) == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    assert terms["num_windows"] == 2 * len(outputs.windows)
    assert terms["num_forwards"] == outputs.forwards
    # Cut out, in eval mode, the same windows have the same loss.
    crops = model.pyramid.crops(
        model.pyramid.resized(model.normalize(images)), drawn.images, drawn.windows
    )
    with torch.no_grad():
        cut = F.cross_entropy(model._classified(crops).flatten(1), drawn.labels)
    torch.testing.assert_close(cut, terms["classes"], rtol=1e-4, atol=1e-4)


def test_mining_begins_when_it_is_said_to_and_shows_in_the_counts() -> None:
    model = small(mine_from=0.5)
    images, targets = pictures(1, 96, 96), [target((8, 8, 50, 52, 1))]
    model.on_epoch_start(1, 4)
    assert model.loss(images, targets)["num_windows"] <= 16 + 32
    model.on_epoch_start(2, 4)
    assert model.loss(images, targets)["num_windows"] > len(model.pyramid.boxes(96, 96))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 9}, "window=9 is too small for darknet_tiny: give 23 or more"),
        ({"window": "wide"}, "window=wide: give a whole number"),
        ({"sides": [0.5, 0.0]}, r"sides=\[0.5, 0.0\]"),
        ({"positives": 0}, "positives=0"),
        ({"mine_from": 2.0}, "mine_from=2.0"),
        ({"hidden": []}, r"hidden=\[\]"),
        ({"negative_iou": 0.9}, "low=0.9"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)
