"""Box geometry by hand, against torchvision, and where it breaks: nothing, no area, half floats."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torchvision import ops

from cvtrain.layers.boxes import (
    Overlap,
    area,
    center_size,
    clip,
    corners,
    covered,
    elementwise,
    objects_of,
    pairwise,
)
from cvtrain.structures import Target

KINDS = get_args(Overlap)
PAIRWISE = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}
A = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
B = torch.tensor([[2.0, 0.0, 6.0, 4.0]])


def test_overlaps_by_hand() -> None:
    """4 shared, 8 + 16 - 4 in the union, a hull of 6 x 4, centers (2, 1) and (4, 2)."""
    iou = 4 / 20
    assert elementwise(A, B).item() == pytest.approx(iou)
    assert elementwise(A, B, "giou").item() == pytest.approx(iou - 4 / 24)
    diou = iou - 5 / 52
    assert elementwise(A, B, "diou").item() == pytest.approx(diou)
    v = 4 / torch.pi**2 * (torch.atan(torch.tensor(1.0)) - torch.atan(torch.tensor(2.0))) ** 2
    expected = diou - v * v / (1 - iou + v)
    torch.testing.assert_close(elementwise(A, B, "ciou")[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_equal_torchvision(kind: Any, random_boxes: Any) -> None:
    a, b = random_boxes(30, seed=1), random_boxes(30, seed=2)
    expected = PAIRWISE[kind](a, b)
    torch.testing.assert_close(pairwise(a, b, kind), expected)
    torch.testing.assert_close(elementwise(a, b, kind), expected.diagonal(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_empties_and_boxes_without_area(kind: Any) -> None:
    none, flat = torch.zeros(0, 4), torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise(none, A, kind).shape == (0, 1)
    assert pairwise(A, none, kind).shape == (1, 0)
    assert elementwise(none, none, kind).shape == (0,)
    assert torch.isfinite(pairwise(flat, flat, kind)).all()
    assert pairwise(flat, flat).item() == 0
    assert torch.isfinite(elementwise(flat, flat, kind)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "box", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 4.0, 0.0], [50.0, 50.0, 60.0, 60.0], [4.0, 2.0, 0, 0]]
)
def test_gradients_are_finite(kind: Any, box: list[float]) -> None:
    predicted = torch.tensor([box], requires_grad=True)
    elementwise(predicted, A, kind).sum().backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_floats_do_not_overflow(dtype: torch.dtype, kind: Any) -> None:
    """512 x 512 is more than float16 holds."""
    box = torch.tensor([[0.0, 0.0, 512.0, 512.0]], dtype=dtype)
    for value in (pairwise(box, box, kind), elementwise(box, box, kind)):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.flatten(), torch.ones(1), atol=1e-5, rtol=0)
    assert area(box).item() == 512 * 512


def test_area_clip_and_the_two_spellings() -> None:
    boxes = torch.tensor([[-5.0, 2.0, 5.0, torch.inf], [8.0, 8.0, 6.0, 9.0]])
    clipped = clip(boxes, (10, 4))
    assert clipped.tolist() == [[0, 2, 4, 10], [4, 8, 4, 9]]
    assert area(clipped).tolist() == [32, 0]
    assert area(boxes[1:]).tolist() == [0]
    assert center_size(A).tolist() == [[2, 1, 4, 2]]
    assert torch.equal(corners(center_size(B)), B)


def test_covered_by_hand() -> None:
    regions = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 2.0, 2.0], [90.0, 90.0, 99.0, 99.0]])
    boxes = torch.cat([A, B, torch.tensor([[1.0, 1.0, 1.0, 1.0]])])
    torch.testing.assert_close(covered(boxes, regions), torch.tensor([0.5, 0.0, 0.0]))
    assert covered(boxes, torch.zeros(0, 4)).tolist() == [0, 0, 0]
    assert covered(boxes[:0], regions).shape == (0,)


def test_objects_are_told_from_what_is_ignored() -> None:
    target = Target(
        boxes=torch.cat([A, B]),
        labels=torch.tensor([3, 1]),
        ignore=torch.tensor([True, False]),
    )
    boxes, labels, ignored = objects_of(target)
    assert (boxes.tolist(), labels.tolist(), ignored.tolist()) == (B.tolist(), [1], A.tolist())
    boxes, labels, ignored = objects_of(Target(boxes=B, labels=torch.tensor([2])))
    assert (len(boxes), labels.tolist(), ignored.shape) == (1, [2], (0, 4))
    assert [tuple(t.shape) for t in objects_of(Target())] == [(0, 4), (0,), (0, 4)]
