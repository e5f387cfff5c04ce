"""OverFeat: dense outputs against single windows, its phases, its losses and its votes, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cvtrain.errors import UsageError
from cvtrain.layers.greedy_merge import greedy_merge
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.overfeat import OverFeatBackbone
from cvtrain.models.base import total_loss
from cvtrain.models.localization.overfeat import (
    BOTH,
    CLASSIFIER,
    REGRESSOR,
    SCALES,
    Dense,
    OverFeat,
)
from cvtrain.structures import Target

Make = Callable[..., OverFeat]


@pytest.fixture
def make() -> Make:
    """A small one, in eval mode; ``padded=False``: OverFeat's fast network without its padding."""

    def build(size: Any = 96, num_classes: int = 3, **options: Any) -> OverFeat:
        torch.manual_seed(0)
        backbone = options.pop("backbone", None) or DarknetTiny(narrow=None)
        heads = {"hidden": [16, 12], "regressor_hidden": [16, 12]}
        model = OverFeat(backbone, num_classes, size, **{**heads, **options}).eval()
        with torch.no_grad():  # they start at nearly nothing
            for head in (model.classifier, model.regressor):
                head.last.weight.mul_(100)
        return model

    return build


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def target(label: int, *box: float) -> Target:
    return Target(
        label=torch.tensor(label), boxes=torch.tensor([box]), labels=torch.tensor([label])
    )


# Dense = per window ----------------------------------------------------------------------------


def unpadded() -> OverFeatBackbone:
    backbone = OverFeatBackbone()
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    return backbone


def each_window(model: OverFeat, x: Tensor) -> tuple[Tensor, Tensor]:
    """The whole network on each window cut out of the images: ``(B, K', V)``, ``(B, 4P, V)``."""
    height, width = model.grid.height, model.grid.width
    classes, boxes = [], []
    _, windows = model.maps(x, 1.0)
    for left, top, right, bottom in windows.int().tolist():
        assert (bottom - top, right - left) == (height, width)
        maps = model.backbone(x[:, :, top:bottom, left:right])[-1]
        assert maps.shape[2:] == model.classifier.extent
        classes.append(model.classifier(maps).flatten(1))
        boxes.append(model.regressor(maps).flatten(1))
    return torch.stack(classes, dim=2), torch.stack(boxes, dim=2)


@torch.no_grad()
def test_without_padding_dense_outputs_are_those_of_the_windows_of_the_image(make: Make) -> None:
    """183 pixels are 3 x 3 cells of the fast network whose convolutions do not pad: one window."""
    model = make(183, backbone=unpadded())
    assert (model.classifier.extent, model.grid.height, model.grid.stride) == ((3, 3), 183, 16)
    x = model.normalize(images(1, 183 + 32, 183 + 16))
    maps, windows = model.maps(x, 1.0)
    assert len(windows) == 3 * 2
    classes, boxes = each_window(model, x)
    assert classes.std() > 0.1  # there is something to compare
    torch.testing.assert_close(model.classifier(maps).flatten(2), classes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.regressor(maps).flatten(2), boxes, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_with_padding_they_are_those_of_the_windows_of_the_map_alone(make: Make) -> None:
    """The paper's networks pad: a window cut out of the image has zeros for its neighbors."""
    model = make(167, backbone=OverFeatBackbone())
    rows, columns = model.classifier.extent
    x = model.normalize(images(1, 183, 183))
    maps, windows = model.maps(x, 1.0)
    dense = model.classifier(maps), model.regressor(maps)
    assert dense[0][0, 0].numel() == len(windows)
    for i in range(dense[0].shape[2]):
        for j in range(dense[0].shape[3]):
            window = maps[:, :, i : i + rows, j : j + columns]
            for whole, head in zip(dense, (model.classifier, model.regressor), strict=True):
                alone = head(window)[:, :, 0, 0]
                torch.testing.assert_close(whole[:, :, i, j], alone, rtol=1e-4, atol=1e-4)
    classes, _ = each_window(model, x)
    assert (dense[0].flatten(2) - classes).abs().max() > 1e-3


def test_sizes_and_positions_are_those_of_table_5() -> None:
    """Images of several sizes through the accurate network: its map, and its dense classifier."""
    with torch.device("meta"):
        model = OverFeat(OverFeatBackbone("accurate"), 1000, 221)
        assert model.classifier.extent == (15, 15)  # 5 x 5 of 3 x 3
        table = {
            (245, 245): ((17, 17), (3, 3)),
            (281, 317): ((20, 23), (6, 9)),
            (317, 389): ((23, 29), (9, 15)),
            (389, 461): ((29, 35), (15, 21)),
            # Table 5 has 32 x 35 here, whose classifier map would be 18 x 21 and not its 18 x 24.
            (425, 497): ((32, 38), (18, 24)),
            (461, 569): ((35, 44), (21, 30)),
        }
        for size, (cells, outputs) in table.items():
            maps = model.backbone(torch.zeros(1, 3, *size))[-1]
            assert maps.shape[2:] == cells
            assert model.classifier(maps).shape[1:] == (1000, *outputs)
        sides = [model._size(221, 221, scale)[0] for scale in SCALES]
    assert sides == [245, 281, 317, 389, 425, 461]
    assert model.grid.height == 221


def test_parameters_are_those_of_the_paper() -> None:
    """Table 4: 144 million of the accurate network, its classifier of 4096 and 4096 units."""
    with torch.device("meta"):
        accurate = OverFeat(OverFeatBackbone("accurate"), 1000, 221, hidden=[4096, 4096])
    parts = [accurate.backbone, accurate.classifier]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 144_656_488


@pytest.mark.parametrize("size", [96, 112, [96, 128]])
def test_windows_reach_from_edge_to_edge(make: Make, size: Any) -> None:
    """Those of scale 1 cover the whole image; larger scales see smaller parts of it."""
    model = make(size)
    height, width = [size] * 2 if isinstance(size, int) else size
    x = torch.zeros(1, 3, height, width)
    _, windows = model.maps(x, 1.0)
    assert windows.amin(0).tolist()[:2] == [0, 0]
    assert windows.amax(0).tolist()[2:] == [width, height]
    _, windows = model.maps(x, 2.0)
    assert windows.amin(0).tolist()[:2] == [0, 0]
    assert windows.amax(0).tolist()[2:] == pytest.approx([width, height])
    sides = windows[:, 2:] - windows[:, :2]
    torch.testing.assert_close(sides[0], torch.tensor([model.grid.width, model.grid.height]) / 2)


# Phases ----------------------------------------------------------------------------------------


def test_first_the_classifier_then_the_regressor(make: Make) -> None:
    model = make(classifier_epochs=0.5)
    stages = []
    for epoch in range(5):
        model.on_epoch_start(epoch, 5)
        stages.append(int(model.stage))
    assert stages == [CLASSIFIER, CLASSIFIER, REGRESSOR, REGRESSOR, REGRESSOR]
    model.on_epoch_start(0, 5)
    assert int(model.stage) == CLASSIFIER
    model.on_epoch_start(0, 1)
    assert int(model.stage) == BOTH
    counted = make(classifier_epochs=4)
    for epoch, stage in ((3, CLASSIFIER), (4, REGRESSOR)):
        counted.on_epoch_start(epoch, 5)
        assert int(counted.stage) == stage
    with pytest.raises(UsageError, match=r"model\.classifier_epochs=4 leaves the regressor none"):
        counted.on_epoch_start(0, 4)
    for share in (0.001, 0.999):  # each phase gets an epoch at least
        model = make(classifier_epochs=share)
        model.on_epoch_start(0, 3)
        assert int(model.stage) == CLASSIFIER
        model.on_epoch_start(2, 3)
        assert int(model.stage) == REGRESSOR


@pytest.mark.parametrize(
    ("stage", "terms", "trained"),
    [
        (CLASSIFIER, {"classes", "windows"}, {"backbone", "classifier"}),
        (REGRESSOR, {"boxes"}, {"regressor"}),
        (BOTH, {"classes", "windows", "boxes"}, {"backbone", "classifier", "regressor"}),
    ],
)
def test_what_each_stage_trains(make: Make, stage: int, terms: set[str], trained: set[str]) -> None:
    model = make(background=True).train()
    model.stage.fill_(stage)
    statistics = {k: v.clone() for k, v in model.backbone.state_dict().items() if "running" in k}
    targets = [target(0, 10, 10, 60, 70), target(2, 40, 5, 90, 50)]
    loss = model.loss(images(2, 96, 96), targets)
    assert loss.keys() == terms
    total_loss(loss).backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == trained
    changed = any(not torch.equal(v, model.backbone.state_dict()[k]) for k, v in statistics.items())
    assert statistics
    assert changed == (stage != REGRESSOR), (
        "batch norm's statistics are fixed with the convolutions"
    )
    assert model.backbone.training


def test_before_the_regressor_is_trained_there_is_a_class_and_no_box(make: Make) -> None:
    model = make()
    model.stage.fill_(CLASSIFIER)
    (prediction,) = model.predict(images(1, 96, 96))
    assert prediction.boxes is not None
    assert prediction.boxes.shape == (0, 4)
    assert prediction.probs is not None
    assert float(prediction.probs.sum()) == pytest.approx(1)


def test_the_stage_is_part_of_a_checkpoint(make: Make) -> None:
    model, again = make(), make()
    model.on_epoch_start(0, 4)
    again.load_state_dict(model.state_dict())
    assert int(again.stage) == CLASSIFIER


# Losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [False, True])
def test_the_regressor_learns_from_windows_with_half_the_box_or_half_box(
    make: Make, per_class: bool
) -> None:
    model = make(per_class=per_class)
    model.stage.fill_(REGRESSOR)
    targets = [target(2, 10, 14, 61, 70), target(1, 60, 5, 90, 40), Target(label=torch.tensor(0))]
    x = images(3, 96, 96)
    maps, windows = model.maps(model.normalize(x), 1.5)
    edges = model._edges(maps)
    expected, seen = 0.0, 0
    for i, t in enumerate(targets[:2]):
        left, top, right, bottom = t.boxes[0].tolist()
        for v, (x0, y0, x1, y1) in enumerate(windows.tolist()):
            common = max(0, min(right, x1) - max(left, x0)) * max(0, min(bottom, y1) - max(top, y0))
            w, h = x1 - x0, y1 - y0
            if common < 0.5 * min((right - left) * (bottom - top), w * h):
                continue
            wanted = [(left - x0) / w, (top - y0) / h, (right - x0) / w, (bottom - y0) / h]
            found = edges[i, int(t.label) if per_class else 0, v].tolist()
            expected += sum((a - b) ** 2 for a, b in zip(wanted, found, strict=True))
            seen += 1
    assert 0 < seen < 2 * len(windows)
    loss = model._terms(x, targets, 1.5)["boxes"]
    assert float(loss.detach()) == pytest.approx(expected / seen, rel=1e-4)


def test_no_window_sees_the_object(make: Make) -> None:
    model = make()
    model.stage.fill_(REGRESSOR)
    nothing = Target(label=torch.tensor(0), boxes=torch.zeros(0, 4))
    loss = model._terms(images(1, 96, 96), [nothing], 2.0)["boxes"]
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is not None for p in model.regressor.parameters())


def test_background_is_what_is_most_mistaken_with_little_of_the_object(make: Make) -> None:
    model = make(background=True, negatives=2)
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3))
    windows = torch.tensor(
        [
            [0.0, 0, 40, 40],  # the object
            [30, 0, 70, 40],  # a quarter of it: neither
            [50, 50, 90, 90],  # nothing of it
            [60, 0, 100, 40],
            [0, 60, 40, 100],
        ]
    )
    targets = [target(1, 0, 0, 40, 40), Target(label=torch.tensor(0))]
    loss = -logits.log_softmax(dim=1)
    negatives = sorted(loss[0, 3, 2:].tolist())[1:]
    expected = (float(loss[0, 1, 0]) + sum(negatives) / 2) / 2
    assert float(model._window_loss(logits, windows, targets)) == pytest.approx(expected, rel=1e-5)


def test_one_class_has_a_background(make: Make) -> None:
    model = make(num_classes=1)
    assert model.background
    assert model.classifier.last.out_channels == 2
    (prediction,) = model.predict(images(1, 96, 96))
    assert prediction.probs is not None
    assert prediction.probs.tolist() == [1.0]
    assert not make(num_classes=2).background


# Votes -----------------------------------------------------------------------------------------


def dense(probs: list[list[float]], boxes: list[list[float]] | None) -> Dense:
    """One image: probabilities ``(K, V)`` and a box a window."""
    found = None if boxes is None else torch.tensor(boxes).float()[None, None]
    return Dense(torch.tensor(probs)[None], found, 100, 200)


def test_the_votes_by_hand(make: Make) -> None:
    model = make()
    a, b = [10, 10, 50, 50], [14, 10, 54, 50]
    outputs = [
        dense([[0.6, 0.5], [0.3, 0.1], [0.1, 0.4]], [a, b]),
        dense([[0.2, 0.1, 0.1], [0.7, 0.2, 0.3], [0.1, 0.7, 0.6]], [b, [150, 60, 190, 90], a]),
    ]
    (prediction,) = model.decode(outputs)
    assert prediction.probs is not None
    peaks = torch.tensor([[0.6, 0.3, 0.4], [0.2, 0.7, 0.7]]).mean(0)  # of each class at each scale
    torch.testing.assert_close(prediction.probs, peaks / peaks.sum())
    # a, b, b, a are one box, the stray another: 1.4 of the first class's 1.5 votes, 1.4 of 1.6 of
    # the second's, 1.2 of 1.9 of the third's.
    assert prediction.scores is not None
    assert prediction.scores.tolist() == pytest.approx([1.4 / 5, 1.4 / 5, 1.2 / 5])
    assert prediction.labels is not None
    assert prediction.labels.tolist() == [0, 1, 2]
    assert prediction.boxes is not None
    assert prediction.boxes.tolist() == [[12, 10, 52, 50]] * 3


def test_mirrored_images_count_for_the_class_alone(make: Make) -> None:
    model = make(flips=True)
    outputs = [dense([[0.6], [0.3], [0.1]], [[0, 0, 9, 9]]), dense([[0.2], [0.8], [0.0]], None)]
    (prediction,) = model.decode(outputs)
    assert prediction.probs is not None
    assert prediction.probs.tolist() == pytest.approx([0.4, 0.55, 0.05])
    assert prediction.scores is not None
    assert prediction.scores.tolist() == pytest.approx([0.6, 0.3, 0.1])
    x = images(2, 96, 96)
    plain, both = make(), model
    assert len(both(x)) == 2 * len(plain(x))
    assert [d.boxes is None for d in both(x)] == [False] * len(plain(x)) + [True] * len(plain(x))


def test_by_nms_the_surest_box_of_a_class_wins(make: Make) -> None:
    model = make(merge="nms")
    boxes = [[10, 10, 50, 50], [14, 10, 54, 50], [150, 60, 190, 90]]
    outputs = [dense([[0.5, 0.5, 0.1], [0.4, 0.4, 0.2], [0.1, 0.1, 0.7]], boxes)]
    (prediction,) = model.decode(outputs)
    assert prediction.labels is not None
    assert prediction.labels.tolist() == [2, 0, 1]
    assert prediction.boxes is not None
    assert prediction.boxes.tolist() == [boxes[2], boxes[0], boxes[0]]


def test_five_classes_a_scale_vote(make: Make) -> None:
    model = make(num_classes=8)
    probs = torch.tensor([0.02, 0.03, 0.05, 0.1, 0.2, 0.25, 0.15, 0.2])[:, None]
    (prediction,) = model.decode([dense(probs.tolist(), [[0, 0, 9, 9]])])
    assert prediction.labels is not None
    assert prediction.labels.tolist() == [5, 4, 7, 6, 3]


def test_boxes_are_inside_the_image_and_each_class_has_its_own(make: Make) -> None:
    model = make(per_class=True)
    found = torch.tensor([[[-20.0, 90, 250, 40]], [[0, 0, 9, 9]], [[5, 5, 8, 8]]])[None]
    outputs = [Dense(torch.tensor([[[0.5], [0.3], [0.2]]]), found, 100, 200)]
    (prediction,) = model.decode(outputs)
    assert prediction.boxes is not None
    assert prediction.boxes.tolist() == [[0, 40, 200, 90], [0, 0, 9, 9], [5, 5, 8, 8]]


def test_the_surest_windows_of_each_scale_vote(make: Make) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
    scores = rng.random(30).astype(np.float32)
    model = make(num_classes=1, max_windows=10)
    halves = [slice(0, 12), slice(12, 30)]  # two scales, the second with more windows
    (prediction,) = model.decode([dense([scores[h].tolist()], boxes[h].tolist()) for h in halves])
    first, second = (h.start + np.argsort(-scores[h])[:10] for h in halves)
    surest = np.concatenate([first, second])
    merged, _ = greedy_merge(boxes[surest], scores[surest], 0.7)
    assert prediction.boxes is not None
    assert prediction.boxes[0].tolist() == pytest.approx(merged[0].tolist(), rel=1e-5)


# Values ----------------------------------------------------------------------------------------


def test_scales_that_come_to_the_same_pixels_count_once(make: Make) -> None:
    assert len(make(96, scales=[1.0, 1.01, 1.5, 2.0, 2.01]).scales) == 3


def test_a_small_map_is_pooled_less(make: Make) -> None:
    assert (make(96).pool, make(32).pool) == (3, 2)
    (prediction,) = make(32).predict(images(1, 32, 32))
    assert prediction.boxes is not None
    assert torch.isfinite(prediction.boxes).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 32, "pool": 3}, r"model\.pool=3: the last map of images of 32 x 32 has 2 x 2"),
        ({"pool": 0}, r"model\.pool=0"),
        ({"scales": [0.5, 1.0]}, r"model\.scales=\[0\.5, 1\.0\]: give a list of numbers from 1"),
        ({"scales": []}, r"model\.scales=\[\]"),
        ({"merge": "soft"}, r"model\.merge=soft: choose one of greedy, nms"),
        ({"merge_threshold": -1}, r"model\.merge_threshold=-1"),
        ({"hidden": 64}, r"model\.hidden=64: give a list"),
        ({"regressor_hidden": [64, 0]}, r"model\.regressor_hidden=\[64, 0\]: give a list"),
        ({"negatives": 0}, r"model\.negatives=0"),
        ({"max_windows": 2.5}, r"model\.max_windows=2\.5"),
        ({"classifier_epochs": 0}, r"model\.classifier_epochs=0"),
        ({"num_classes": 1, "background": False}, r"model\.background=false"),
    ],
)
def test_values_that_cannot_be_used(make: Make, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(**options)


def test_the_loss_needs_the_maps(make: Make) -> None:
    model = make()
    with pytest.raises(ValueError, match="call loss"):
        model.compute_loss(model(images(1, 96, 96)), [target(0, 0, 0, 9, 9)])


def test_the_start(make: Make) -> None:
    """Nearly equal probabilities and a box of half the window in its middle."""
    torch.manual_seed(0)
    model = OverFeat(OverFeatBackbone(), 4, 128, hidden=[64], regressor_hidden=[64])
    x = images(2, 128, 128)
    loss = model.eval().loss(x, [target(0, 0, 0, 90, 90)] * 2)
    assert float(loss["classes"].detach()) == pytest.approx(math.log(4), abs=0.1)
    maps, _ = model.maps(model.normalize(x), 1.0)
    torch.testing.assert_close(
        model._edges(maps)[0, 0, 0], torch.tensor([0.25, 0.25, 0.75, 0.75]), rtol=0, atol=0.1
    )
