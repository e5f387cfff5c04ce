"""The loss of YOLO 2015 against a worked example, a slow version, and its own promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cvtrain.losses.yolo import YOLOLoss, assign
from cvtrain.models.base import total_loss
from cvtrain.structures import Target

PARTS = ("coord", "obj", "noobj", "classes")


def slow_loss(
    outputs: Tensor, targets: list[Target], image_size: tuple[int, int], num_classes: int
) -> dict[str, float]:
    """Equation 3 of the paper, one cell and one box at a time, in Python floats."""
    n, s, _, depth = outputs.shape
    b = (depth - num_classes) // 5
    values = outputs.double().tolist()
    height, width = image_size
    out = dict.fromkeys((*PARTS, "num_objects", "num_lost_objects"), 0.0)
    for image, target in zip(values, targets, strict=True):
        owner: dict[tuple[int, int], tuple[list[float], int]] = {}
        assert target.boxes is not None
        assert target.labels is not None
        for i, (x0, y0, x1, y1) in enumerate(target.boxes.tolist()):
            if target.ignore is not None and target.ignore[i]:
                continue
            out["num_objects"] += 1
            cx, cy = (x0 + x1) / 2 / width * s, (y0 + y1) / 2 / height * s
            column, row = min(int(cx), s - 1), min(int(cy), s - 1)
            if (row, column) in owner:
                out["num_lost_objects"] += 1
                continue
            truth = [cx - column, cy - row, (x1 - x0) / width, (y1 - y0) / height]
            owner[row, column] = (truth, int(target.labels[i]))
        for row in range(s):
            for column in range(s):
                cell = image[row][column]
                boxes = [cell[5 * j : 5 * j + 5] for j in range(b)]
                if (row, column) not in owner:
                    out["noobj"] += 0.5 * sum(box[4] ** 2 for box in boxes)
                    continue
                truth, label = owner[row, column]
                ious = [iou(box, truth, s) for box in boxes]
                errors = [rmse(box, truth, s) for box in boxes]
                if max(ious) > 0:
                    best = ious.index(max(ious))
                else:
                    best = errors.index(min(errors))
                for j, box in enumerate(boxes):
                    if j != best:
                        out["noobj"] += 0.5 * box[4] ** 2
                        continue
                    out["coord"] += 5 * ((box[0] - truth[0]) ** 2 + (box[1] - truth[1]) ** 2)
                    out["coord"] += 5 * (box[2] - math.sqrt(truth[2])) ** 2
                    out["coord"] += 5 * (box[3] - math.sqrt(truth[3])) ** 2
                    out["obj"] += (box[4] - ious[j]) ** 2
                for k in range(num_classes):
                    out["classes"] += (cell[5 * b + k] - (k == label)) ** 2
    return {k: v / n if k in PARTS else v for k, v in out.items()}


def edges(box: list[float], s: int, squared: bool) -> tuple[float, float, float, float]:
    w, h = (box[2] ** 2, box[3] ** 2) if squared else (box[2], box[3])
    return box[0] / s - w / 2, box[1] / s - h / 2, box[0] / s + w / 2, box[1] / s + h / 2


def iou(box: list[float], truth: list[float], s: int) -> float:
    a, b = edges(box, s, squared=True), edges(truth, s, squared=False)
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (areas - w * h)


def rmse(box: list[float], truth: list[float], s: int) -> float:
    mine = [box[0] / s, box[1] / s, box[2] ** 2, box[3] ** 2]
    true = [truth[0] / s, truth[1] / s, truth[2], truth[3]]
    return math.sqrt(sum((m - t) ** 2 for m, t in zip(mine, true, strict=True)))


def random_case(
    seed: int, n: int, s: int, b: int, c: int, spread: float
) -> tuple[Tensor, list[Target], tuple[int, int]]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, s, s, 5 * b + c, generator=generator) * spread + 0.3
    height, width = 120, 200
    targets = []
    for i in range(n):
        count = [0, 1, 6, 30][i % 4]
        corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        targets.append(
            Target(
                boxes=boxes,
                labels=torch.randint(0, c, (count,), generator=generator),
                ignore=torch.rand(count, generator=generator) < 0.2,
            )
        )
    return outputs, targets, (height, width)


@pytest.mark.parametrize(
    ("seed", "s", "b", "c"),
    [(0, 7, 2, 20), (1, 7, 2, 1), (2, 3, 1, 4), (3, 5, 3, 2), (4, 1, 4, 3), (5, 7, 2, 4)],
)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_equals_the_slow_version(seed: int, s: int, b: int, c: int, spread: float) -> None:
    outputs, targets, size = random_case(seed, 8, s, b, c, spread)
    got = YOLOLoss()(outputs, targets, size, c)
    want = slow_loss(outputs, targets, size, c)
    assert got.keys() == want.keys()
    assert want["num_lost_objects"] > 0
    for key, value in want.items():
        assert float(got[key]) == pytest.approx(value, rel=1e-5), key


def test_worked_example() -> None:
    """S = 2, B = 2, C = 2, one object; image of 100 x 100 pixels; every number by hand.

    The object [20, 10, 60, 50] has its center at (40, 30): cell row 0, column 0, x = 0.8, y = 0.6,
    w = h = 0.4. Box 0 predicts x = y = 0.5, w = h = 0.25 (roots 0.5): pixels [12.5, 12.5, 37.5,
    37.5], overlap 17.5 x 25 = 437.5, union 1600 + 625 - 437.5 = 1787.5, IoU 0.24476.
    Box 1 predicts x = 0.8, y = 0.6, w = 0.64, h = 0.16 (roots 0.8, 0.4): pixels [8, 22, 72, 38],
    overlap 40 x 16 = 640, union 1600 + 1024 - 640 = 1984, IoU 0.32258: responsible.
    """
    outputs = torch.zeros(1, 2, 2, 12)
    outputs[0, 0, 0] = torch.tensor(
        [0.5, 0.5, 0.5, 0.5, 0.2, 0.8, 0.6, 0.8, 0.4, 0.7, 0.9, 0.3]  # box 0, box 1, classes
    )
    outputs[0, 1, 1, 4] = 0.6  # a confidence where there is nothing
    target = Target(boxes=torch.tensor([[20.0, 10.0, 60.0, 50.0]]), labels=torch.tensor([0]))
    terms = YOLOLoss()(outputs, [target], (100, 100), 2)
    root = math.sqrt(0.4)
    assert float(terms["coord"]) == pytest.approx(5 * ((0.8 - root) ** 2 + (0.4 - root) ** 2))
    assert float(terms["obj"]) == pytest.approx((0.7 - 640 / 1984) ** 2)
    assert float(terms["noobj"]) == pytest.approx(0.5 * (0.2**2 + 0.6**2))
    assert float(terms["classes"]) == pytest.approx(0.1**2 + 0.3**2)
    assert int(terms["num_objects"]) == 1
    assert int(terms["num_lost_objects"]) == 0


def test_a_perfect_answer_costs_nothing() -> None:
    outputs = torch.zeros(1, 7, 7, 11)
    target = Target(boxes=torch.tensor([[64.0, 128.0, 256.0, 320.0]]), labels=torch.tensor([0]))
    # Center (160, 224) of 448: 2.5 and 3.5 cells of 64 pixels; w = h = 192 / 448.
    side = math.sqrt(192 / 448)
    outputs[0, 3, 2] = torch.tensor([0.5, 0.5, side, side, 1.0, 0, 0, 0, 0, 0, 1.0])
    assert float(total_loss(YOLOLoss()(outputs, [target], (448, 448), 1))) == pytest.approx(0)


def test_weights_multiply_their_parts() -> None:
    outputs, targets, size = random_case(0, 4, 7, 2, 3, 1.0)
    plain = YOLOLoss(1, 1, 1, 1)(outputs, targets, size, 3)
    weighted = YOLOLoss(2, 3, 4, 5)(outputs, targets, size, 3)
    for part, factor in zip(PARTS, (2, 3, 4, 5), strict=True):
        torch.testing.assert_close(weighted[part], factor * plain[part])


def test_loss_is_the_mean_over_the_batch() -> None:
    outputs, targets, size = random_case(0, 4, 7, 2, 3, 1.0)
    loss = YOLOLoss()
    whole = loss(outputs, targets, size, 3)
    alone = [loss(outputs[i : i + 1], targets[i : i + 1], size, 3) for i in range(4)]
    for part in PARTS:
        torch.testing.assert_close(whole[part], torch.stack([a[part] for a in alone]).mean())
    assert int(whole["num_objects"]) == sum(int(a["num_objects"]) for a in alone)


def test_no_gradient_flows_through_the_iou_target() -> None:
    """The coordinates get their gradient from the coordinate part alone."""
    outputs, targets, size = random_case(0, 4, 7, 2, 3, 0.3)
    outputs.requires_grad_()
    terms = YOLOLoss()(outputs, targets, size, 3)
    assert terms["obj"].item() > 0
    (gradient,) = torch.autograd.grad(terms["obj"], outputs)
    per_box = gradient[..., :10].unflatten(-1, (2, 5))
    assert per_box[..., 4].any()
    assert not per_box[..., :4].any()
    assert not gradient[..., 10:].any()


def test_objects_of_one_cell_are_counted_and_the_first_keeps_it() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [2.0, 2, 18, 18], [50, 50, 90, 90]])
    target = Target(boxes=boxes, labels=torch.tensor([2, 1, 0]))
    found = assign([target], 7, (140, 140), torch.device("cpu"))
    assert found.kept.tolist() == [True, False, True]
    assert found.cell.tolist() == [0, 0, 3 * 7 + 3]
    terms = YOLOLoss()(torch.zeros(1, 7, 7, 13), [target], (140, 140), 3)
    assert int(terms["num_objects"]) == 3
    assert int(terms["num_lost_objects"]) == 1


def test_ignored_targets_are_no_objects_and_take_no_cell() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [2.0, 2, 18, 18]])
    both = Target(boxes=boxes, labels=torch.tensor([0, 1]), ignore=torch.tensor([True, False]))
    second = Target(boxes=boxes[1:], labels=torch.tensor([1]))
    outputs = torch.randn(1, 7, 7, 12, generator=torch.Generator().manual_seed(0))
    loss = YOLOLoss()
    a, b = (loss(outputs, [t], (140, 140), 2) for t in (both, second))
    assert {k: float(v) for k, v in a.items()} == {k: float(v) for k, v in b.items()}


def test_a_center_on_the_far_edge_belongs_to_the_last_cell() -> None:
    boxes = torch.tensor([[140.0, 140, 140, 140], [0, 0, 0, 0]])
    target = Target(boxes=boxes, labels=torch.tensor([0, 0]))
    found = assign([target], 7, (140, 140), torch.device("cpu"))
    assert found.cell.tolist() == [48, 0]
    assert found.xywh[0].tolist() == [1, 1, 0, 0]


def test_without_any_overlap_the_nearest_box_is_responsible() -> None:
    outputs = torch.zeros(1, 1, 1, 11)
    outputs[0, 0, 0, :10] = torch.tensor([9.0, 9, 0.1, 0.1, 0, 3, 3, 0.1, 0.1, 0])
    outputs.requires_grad_()
    target = Target(boxes=torch.tensor([[40.0, 40, 60, 60]]), labels=torch.tensor([0]))
    YOLOLoss()(outputs, [target], (100, 100), 1)["coord"].backward()
    assert outputs.grad is not None
    assert not outputs.grad[0, 0, 0, :5].any()
    assert outputs.grad[0, 0, 0, 5:9].all()


def test_empty_targets_cost_confidence_alone() -> None:
    outputs = torch.randn(2, 7, 7, 12, generator=torch.Generator().manual_seed(0))
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    terms = YOLOLoss()(outputs, [empty, empty], (100, 100), 2)
    confidences = outputs[..., :10].unflatten(-1, (2, 5))[..., 4]
    torch.testing.assert_close(terms["noobj"], 0.5 * confidences.square().sum() / 2)
    assert [float(terms[k]) for k in ("coord", "obj", "classes")] == [0, 0, 0]


def test_half_precision_outputs_are_summed_in_single() -> None:
    outputs, targets, size = random_case(0, 4, 7, 2, 3, 1.0)
    coarse = outputs.bfloat16()
    terms = YOLOLoss()(coarse, targets, size, 3)
    want = YOLOLoss()(coarse.float(), targets, size, 3)
    assert all(torch.equal(terms[k], want[k]) for k in want)
