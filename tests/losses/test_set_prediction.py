"""The loss of a set, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cvtrain.losses.box_regression import IoULoss
from cvtrain.losses.set_prediction import Pairs, set_terms, varifocal


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_varifocal_is_the_papers_formula() -> None:
    logits = torch.tensor([-3.0, 0.2, 4.0, -1.0, 60.0, -60.0])
    quality = torch.tensor([0.7, 0.0, 0.0, 1.0, 0.0, 0.3])
    found = varifocal(logits, quality, alpha=0.6, gamma=1.5)
    for x, q, value in zip(logits.tolist()[:4], quality.tolist(), found.tolist(), strict=False):
        p = sigmoid(x)
        if q > 0:
            want = -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
        else:
            want = -0.6 * p**1.5 * math.log(1 - p)
        assert value == pytest.approx(want, rel=1e-5)
    assert found[4:].tolist() == pytest.approx([0.6 * 60, 0.3 * 0.3 * 60])


def test_certain_and_wrong_still_has_a_gradient() -> None:
    logits = torch.tensor([100.0, -100.0, 0.0], requires_grad=True)
    varifocal(logits, torch.tensor([0.0, 0.9, 0.0]), gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:2].abs() > 0.5).all()


def test_the_terms_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 2, generator=generator)
    boxes = torch.rand(2, 3, 4, generator=generator) * 0.4 + 0.2
    scale = torch.tensor([80.0, 40.0, 80.0, 40.0])
    pairs = Pairs(
        row=torch.tensor([0, 0, 1]),
        query=torch.tensor([2, 0, 1]),
        boxes=torch.tensor([[20.0, 8, 60, 30], [10.0, 5, 50, 25], [70.0, 30, 79, 39]]),
        labels=torch.tensor([1, 0, 1]),
    )
    counted = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])  # one of them has an object
    found = set_terms(logits, boxes, pairs, counted, scale, IoULoss("giou"), 0.75, 2.0)
    want = torch.zeros(3, 2)
    qualities = torch.zeros(2, 3, 2)
    for r, q, box, label in zip(*(part.tolist() for part in pairs), strict=True):
        cx, cy, w, h = boxes[r, q].tolist()
        x0, y0, x1, y1 = box
        want[1, r] += abs(cx - (x0 + x1) / 160) + abs(cy - (y0 + y1) / 80)
        want[1, r] += abs(w - (x1 - x0) / 80) + abs(h - (y1 - y0) / 40)
        a = [(cx - w / 2) * 80, (cy - h / 2) * 40, (cx + w / 2) * 80, (cy + h / 2) * 40]
        shared = max(0, min(a[2], x1) - max(a[0], x0)) * max(0, min(a[3], y1) - max(a[1], y0))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (x1 - x0) * (y1 - y0) - shared
        hull = (max(a[2], x1) - min(a[0], x0)) * (max(a[3], y1) - min(a[1], y0))
        want[2, r] += 1 - shared / union + (hull - union) / hull
        qualities[r, q, label] = shared / union
    assert float(qualities[1].max()) == 0  # a match that does not overlap: a negative as yet
    for r in range(2):
        for q in range(3):
            if (r, q) == (1, 0):  # in a region to ignore
                continue
            for k in range(2):
                p, t = sigmoid(float(logits[r, q, k])), float(qualities[r, q, k])
                if t > 0:
                    want[0, r] -= t * (t * math.log(p) + (1 - t) * math.log(1 - p))
                else:
                    want[0, r] -= 0.75 * p**2 * math.log(1 - p)
    for term, value in zip(found, want, strict=True):
        torch.testing.assert_close(term, value, rtol=1e-4, atol=1e-5)


def test_no_pairs_leave_the_boxes_without_a_loss_but_with_a_gradient() -> None:
    logits = torch.randn(1, 3, 2, requires_grad=True)
    boxes = torch.rand(1, 3, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    pairs = Pairs(none, none, torch.zeros(0, 4), none)
    terms = set_terms(logits, boxes, pairs, torch.ones(1, 3), torch.ones(4), IoULoss("giou"))
    assert [float(t.detach()) > 0 for t in terms] == [True, False, False]
    torch.stack(terms).sum().backward()
    assert boxes.grad is not None
    assert not boxes.grad.any()
