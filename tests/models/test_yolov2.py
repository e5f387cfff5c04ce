"""YOLOv2: the paper's numbers, the pass-through's order, a slow loss, many sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cvtrain.layers.conv import ConvBlock
from cvtrain.losses.yolov2 import Grid, YOLOv2Loss
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.darknet19 import Darknet19
from cvtrain.models.base import total_loss
from cvtrain.models.detection.yolov2 import YOLOv2, reorg
from cvtrain.structures import Target

ANCHORS = ((0.1, 0.15), (0.3, 0.3), (0.6, 0.4))
Make = Callable[..., YOLOv2]


@pytest.fixture
def make() -> Make:
    """A YOLOv2 of a few channels and stride 8, its last layer away from the calm start."""

    def build(loss: Any = None, image_size: Any = 64, **keywords: Any) -> YOLOv2:
        torch.manual_seed(0)
        model = YOLOv2(
            DarknetTiny(widths=(4, 8, 8), blocks=(1, 1, 1), narrow=None),
            loss or YOLOv2Loss(),
            3,
            image_size,
            **{"anchors": ANCHORS, "channels": 16, "passthrough": 4, **keywords},
        )
        with torch.no_grad():
            model.out.weight.add_(torch.randn_like(model.out.weight) * 0.5)
            model.out.bias.add_(torch.randn_like(model.out.bias))
        return model.eval()

    return build


def scene(size: int = 64) -> tuple[Tensor, list[Target]]:
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor(
        [[10.0, 20.0, 50.0, 60.0], [12.0, 23.0, 49.0, 58.0], [40.0, 1.0, 46.0, 9.0], [0, 0, 30, 64]]
    )
    full = Target(
        boxes=boxes,
        labels=torch.tensor([0, 2, 1, 1]),
        ignore=torch.tensor([False, False, False, True]),
    )
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return images, [full, empty, Target(label=torch.tensor(2))]


def test_the_papers_numbers() -> None:
    for passthrough, stacked, parameters in ((64, 256, 50_655_389), (None, 2048, 67_137_565)):
        with torch.device("meta"):
            model = YOLOv2(
                Darknet19(), YOLOv2Loss(), 20, 416, [[0.1, 0.1]] * 5, passthrough=passthrough
            ).eval()
            out = model(torch.zeros(1, 3, 416, 416))
        assert out.raw.shape == (1, 13, 13, 5, 25)  # 13 x 13 x 125
        assert out.cell == (32.0, 32.0)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert isinstance(model.join, ConvBlock)
        assert model.join.conv.in_channels == stacked + 1024
        convolutions = [m for m in model.modules() if isinstance(m, ConvBlock)]
        assert all(isinstance(c.norm, torch.nn.BatchNorm2d) for c in convolutions)


def test_the_pass_through_stacks_neighbors_row_by_row() -> None:
    x = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    out = reorg(x)
    assert out.shape == (1, 8, 2, 3)
    for c in range(2):
        for row in range(2):
            for column in range(3):
                block = x[0, c, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(out[0, 4 * c : 4 * c + 4, row, column], block.flatten())


def test_the_shipped_anchors_are_those_of_the_released_network(compose_config: Any) -> None:
    anchors = compose_config("task=detection", "model=yolov2")["model"]["anchors"]
    cells = [[1.3221, 1.73145], [3.19275, 4.00944], [5.05587, 8.09892], [9.47112, 4.84053]]
    cells.append([11.2364, 10.0071])
    torch.testing.assert_close(torch.tensor(anchors) * 13, torch.tensor(cells), atol=1e-3, rtol=0)


def test_boxes_by_hand(make: Make) -> None:
    model = make()
    raw = torch.zeros(1, 8, 8, 3, 8)
    raw[0, 2, 5, 1, :5] = torch.tensor([0.0, math.log(3), math.log(0.5), math.log(2), 9.0])
    raw[0, 2, 5, 1, 7] = 9.0
    raw[..., 4] += -9.0
    raw[0, 2, 5, 1, 4] = 9.0
    found = model.decode(Grid(raw, model.anchors, (8.0, 8.0), (64, 64)))[0]
    width, height = 0.3 * 64 * 0.5, 0.3 * 64 * 2
    x, y = (5 + 0.5) * 8, (2 + 0.75) * 8  # sigmoid(log 3) = 0.75
    expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    torch.testing.assert_close(found.boxes[0], torch.tensor(expected), atol=1e-4, rtol=0)
    assert int(found.labels[0]) == 2
    assert float(found.scores[0]) == pytest.approx(1, abs=1e-3)


def slow_loss(grid: Grid, targets: list[Target], early: bool) -> dict[str, float]:
    """The loss of the module's text, box by box in plain Python."""
    sums = dict.fromkeys(("coord", "objectness", "no_object", "classes", "prior"), 0.0)
    batch, rows, columns, count, _ = grid.raw.shape
    anchors = grid.anchors.tolist()

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    def overlap(a: list[float], b: list[float]) -> float:
        w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
        return w * h / union

    def surprise(numbers: list[float], label: int) -> float:
        return math.log(sum(math.exp(v) for v in numbers)) - numbers[label]

    for i, target in enumerate(targets):
        places = [(r, c, k) for r in range(rows) for c in range(columns) for k in range(count)]
        boxes, message = {}, {}
        for place in places:
            t = message[place] = grid.raw[i][place].tolist()
            x, y = (place[1] + sigmoid(t[0])) * 8, (place[0] + sigmoid(t[1])) * 8
            w, h = (anchors[place[2]][n] * math.exp(t[2 + n]) for n in (0, 1))
            boxes[place] = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        if target.boxes is None:
            label = int(target.label)
            best = max(
                places,
                key=lambda p: sigmoid(message[p][4]) * math.exp(-surprise(message[p][5:], label)),
            )
            sums["classes"] += surprise(message[best][5:], label)
            sums["objectness"] += 5 * max(0.0, 0.3 - sigmoid(message[best][4])) ** 2
            continue
        truth = target.boxes.tolist()
        ignore = [False] * len(truth) if target.ignore is None else target.ignore.tolist()
        taken = set()
        for n, (x0, y0, x1, y1) in enumerate(truth):
            if ignore[n]:
                continue
            w, h = x1 - x0, y1 - y0
            cx, cy = (x0 + x1) / 2 / 8, (y0 + y1) / 2 / 8
            shapes = [overlap([0, 0, w, h], [0, 0, *a]) for a in anchors]
            k = shapes.index(max(shapes))
            place = (int(cy), int(cx), k)
            if place in taken:
                continue
            taken.add(place)
            t = message[place]
            errors = [sigmoid(t[0]) - cx % 1, sigmoid(t[1]) - cy % 1]
            errors += [t[2] - math.log(w / anchors[k][0]), t[3] - math.log(h / anchors[k][1])]
            sums["coord"] += (2 - w * h / 64**2) * sum(e * e for e in errors)
            sums["objectness"] += 5 * (sigmoid(t[4]) - overlap(boxes[place], truth[n])) ** 2
            sums["classes"] += surprise(t[5:], int(target.labels[n]))
        for place in places:
            if place in taken:
                continue
            t, box = message[place], boxes[place]
            if early:
                near = [sigmoid(t[0]) - 0.5, sigmoid(t[1]) - 0.5, t[2], t[3]]
                sums["prior"] += 0.01 * sum(v * v for v in near)
            if any(overlap(box, b) > 0.6 for b, out in zip(truth, ignore) if not out):
                continue
            hidden, box = 0.0, [min(max(v, 0.0), 64.0) for v in box]
            for b, out in zip(truth, ignore):
                w = min(box[2], b[2]) - max(box[0], b[0])
                h = min(box[3], b[3]) - max(box[1], b[1])
                if out and w > 0 and h > 0:
                    hidden = max(hidden, w * h / ((box[2] - box[0]) * (box[3] - box[1])))
            if hidden <= 0.5:
                sums["no_object"] += sigmoid(t[4]) ** 2
    return {name: value / batch for name, value in sums.items()}


@pytest.mark.parametrize("early", [True, False])
def test_the_loss_equals_a_slow_one(make: Make, early: bool) -> None:
    model = make()
    images, targets = scene()
    with torch.no_grad():
        grid = model(images)
        # An object's box twice, well enough placed to be let off by its IoU.
        truth = targets[0].boxes[2]
        grid.raw[0, 0, 5, 0, :4] = torch.tensor([-2.0, 0.5, -0.1, -0.1])
        grid.raw[0, 0, 4, 0, :4] = torch.tensor([9.0, 0.5, -0.1, -0.1])
        assert truth.tolist() == [40, 1, 46, 9]
        terms = model.criterion(grid, targets, model.class_loss, 0 if early else 12800)
    expected = slow_loss(grid, targets, early)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4), name
    assert (terms["prior"] > 0) == early
    counts = {k: float(v) for k, v in terms.items() if k.startswith("num_")}
    # The first two objects want one anchor of one cell.
    assert counts == {"num_objects": 3, "num_lost_objects": 1, "num_labeled_images": 1}


def test_ignored_regions_and_good_boxes_need_not_say_nothing(make: Make) -> None:
    model = make()
    images, targets = scene()
    with torch.no_grad():
        grid = model(images)
    everything = Target(
        boxes=torch.tensor([[-999.0, -999.0, 999.0, 999.0]]),
        labels=torch.tensor([0]),
        ignore=torch.tensor([True]),
    )
    hidden = model.compute_loss(grid, [everything] * 3)
    assert hidden["no_object"] == hidden["objectness"] == hidden["num_objects"] == 0
    assert model.compute_loss(grid, [targets[1]] * 3)["no_object"] > 1


def test_perfect_numbers_have_no_loss_and_decode_to_the_truth(make: Make) -> None:
    model = make()
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0], [40.0, 1.0, 46.0, 9.0]])
    target = Target(boxes=boxes, labels=torch.tensor([2, 0]))
    raw = torch.full((1, 8, 8, 3, 8), -12.0)
    raw[..., :4] = 0.0
    for n, (row, column, k) in enumerate([(5, 3, 2), (0, 5, 0)]):
        center = (boxes[n, :2] + boxes[n, 2:]) / 16
        inside = (center - torch.tensor([column, row])).clamp(1e-4, 1 - 1e-4)
        raw[0, row, column, k, :2] = inside.logit()
        raw[0, row, column, k, 2:4] = ((boxes[n, 2:] - boxes[n, :2]) / model.anchors[k]).log()
        raw[0, row, column, k, 4] = 12.0
        raw[0, row, column, k, 5 + int(target.labels[n])] = 12.0
    grid = Grid(raw, model.anchors, (8.0, 8.0), (64, 64))
    assert float(total_loss(model.compute_loss(grid, [target]))) < 1e-2
    found = model.decode(grid)[0]
    order = found.labels[:2].sort(descending=True).indices
    torch.testing.assert_close(found.boxes[:2][order], boxes, atol=1e-2, rtol=0)


def test_training_counts_images_and_resizes_what_validation_does_not(make: Make) -> None:
    model = make(YOLOv2Loss(prior_images=7), multi_scale=(0.5, 2.0), resize_every=1).train()
    images, targets = scene()
    seen: list[tuple[int, int]] = []
    model.backbone.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    priors = []
    for batch in range(6):
        model.on_batch_start(1, batch)
        priors.append(bool(model.loss(images, targets)["prior"] > 0))
    assert priors == [True, True, True, False, False, False]
    assert int(model.state_dict()["seen"]) == 18
    assert len(set(seen)) > 2
    assert seen == [model.scales.size(1, batch, 64, 64) for batch in range(6)]  # type: ignore[union-attr]
    seen.clear()
    terms, _ = model.loss_and_predict(images, targets)
    model.predict(images)
    assert seen == [(64, 64)] * 2
    assert terms["prior"] == 0
    assert int(model.seen) == 18


def test_a_thousand_objects_and_other_bad_scenes(make: Make) -> None:
    model = make()
    corner = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 60
    crowd = Target(
        boxes=torch.cat([corner, corner + 2], dim=1), labels=torch.zeros(1000, dtype=torch.int64)
    )
    point = Target(boxes=torch.tensor([[64.0, 64.0, 64.0, 64.0]]), labels=torch.tensor([1]))
    long = torch.zeros(1, 3, 1, 500, dtype=torch.uint8)
    square = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        model.out.bias.view(3, -1)[:, 2:4] = 200.0  # exponents are cut
    for images, target in ((square, crowd), (square, point), (long, Target())):
        terms, found = model.loss_and_predict(images, [target])
        assert all(torch.isfinite(v) for v in terms.values())
        assert torch.isfinite(found[0].boxes).all()
        assert (found[0].boxes[:, 3] <= images.shape[-2]).all()
    lost = model.loss_and_predict(square, [crowd])[0]
    assert lost["num_objects"] == 1000
    assert 900 < lost["num_lost_objects"] < 1000


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"anchors": []}, "anchors"),
        ({"anchors": [[0.1, 0.0]]}, r"anchors=\[\[0.1, 0.0\]\]: give \[width, height\]"),
        ({"anchors": [0.1, 0.2]}, "give"),
        ({"passthrough": 0}, "passthrough=0"),
        ({"multi_scale": (2, 1)}, "multi_scale"),
    ],
)
def test_bad_keys_are_refused(make: Make, keywords: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**keywords)


@pytest.mark.parametrize("keywords", [{"ignore_iou": 2}, {"coord": -1}, {"prior_images": -1}])
def test_bad_weights_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keywords))):
        YOLOv2Loss(**keywords)


def test_a_backbone_of_one_map_has_no_pass_through(build_model: Any) -> None:
    words = ("task=detection", "model=yolov2", "data=shapes", "data.image_size=64")
    model = build_model(*words, "backbone=vit_small")
    assert model.fine is None
    assert model.predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].boxes is not None


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    """The shipped configuration on real images, from scratch."""
    assert learn_photographs(real_data / "raccoon", "model=yolov2") >= 0.9
