"""Box losses by hand, against torchvision, and safe in half floats and on nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision import ops

from cvtrain.layers.box_coder import BoxCoder
from cvtrain.losses.box_regression import IoULoss, SmoothL1, iou_loss, smooth_l1
from cvtrain.losses.focal import sigmoid_focal

BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 25.0, 15.0]])
ANCHORS = torch.tensor([[0.0, 0.0, 10.0, 20.0], [4.0, 6.0, 20.0, 18.0]])


def test_smooth_l1_by_hand() -> None:
    predicted, target = torch.tensor([[0.0, 0.5, 2.0, -3.0]]), torch.zeros(1, 4)
    assert smooth_l1(predicted, target).item() == pytest.approx(0.125 + 1.5 + 2.5)
    assert smooth_l1(predicted, target, beta=0).item() == pytest.approx(5.5)
    assert smooth_l1(predicted.half(), target).dtype == torch.float32
    assert smooth_l1(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("giou", ops.generalized_box_iou_loss),
        ("diou", ops.distance_box_iou_loss),
        ("ciou", ops.complete_box_iou_loss),
    ],
)
def test_overlap_losses_equal_torchvision(kind: Any, theirs: Any) -> None:
    a = BOXES.clone().requires_grad_()
    b = BOXES.clone().requires_grad_()
    mine, expected = iou_loss(a, ANCHORS, kind), theirs(b, ANCHORS)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    mine.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_modules_measure_codes_and_boxes() -> None:
    coder = BoxCoder((10, 10, 5, 5))
    codes = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = SmoothL1(beta=0.5, weight=2.0).codes(codes, BOXES, ANCHORS, coder)
    torch.testing.assert_close(found, 2 * smooth_l1(codes, coder.encode(BOXES, ANCHORS), 0.5))
    loss = IoULoss("ciou", weight=3.0)
    found = loss.codes(codes, BOXES, ANCHORS, coder)
    torch.testing.assert_close(found, 3 * iou_loss(coder.decode(codes, ANCHORS), BOXES, "ciou"))
    found.sum().backward()
    assert torch.isfinite(codes.grad).all()
    exact = coder.encode(BOXES, ANCHORS)
    for module in (SmoothL1(), *(IoULoss(k) for k in ("iou", "giou", "diou", "ciou"))):
        zero = module.codes(exact, BOXES, ANCHORS, coder)
        torch.testing.assert_close(zero, torch.zeros(2), atol=1e-4, rtol=0)
        assert module.codes(exact[:0], BOXES[:0], ANCHORS[:0], coder).sum() == 0


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="beta=-1"):
        SmoothL1(beta=-1)
    with pytest.raises(ValueError, match="kind=l3: expected iou"):
        IoULoss("l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight=-1"):
        IoULoss(weight=-1)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.0), (0.25, 3.5)])
def test_sigmoid_focal_equals_torchvision(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = (torch.randn(200, 3, generator=generator) * 4).requires_grad_()
    b = a.detach().clone().requires_grad_()
    targets = (torch.rand(200, 3, generator=generator) < 0.3).float()
    mine = sigmoid_focal(a, targets, alpha, gamma)
    expected = ops.sigmoid_focal_loss(b, targets, alpha, gamma)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
    mine.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_sigmoid_focal_by_hand() -> None:
    """p = 0.9 of a positive: 0.25 x 0.1^2 x -log 0.9; of a negative: 0.75 x 0.9^2 x -log 0.1."""
    logit = torch.logit(torch.tensor([0.9, 0.9]))
    found = sigmoid_focal(logit, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([2.634e-4, 1.39882]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sigmoid_focal_is_finite_at_the_extremes(gamma: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([-6e4, -80.0, 0.0, 80.0, 6e4] * 2, dtype=dtype).requires_grad_()
    targets = torch.tensor([0.0] * 5 + [1.0] * 5)
    loss = sigmoid_focal(logits, targets, gamma=gamma)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
