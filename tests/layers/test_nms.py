"""Suppression in its variants against loops, and what is left of bad boxes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cvtrain.layers.boxes import pairwise
from cvtrain.layers.nms import Selection, select, suppress

BOXES = torch.tensor(
    [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 5.0], [50.0, 50.0, 60.0, 60.0]]
)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])
SAME = torch.zeros(4, dtype=torch.int64)


def slow_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> list[int]:
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        rivals = [k for k in kept if labels[k] == labels[i]]
        if all(pairwise(boxes[i : i + 1], boxes[k : k + 1]).item() <= iou for k in rivals):
            kept.append(i)
    return kept


def test_hard_by_hand() -> None:
    """IoU 0.8 with the second, 0.5 with the third; the fourth stands alone."""
    assert suppress(BOXES, SCORES, SAME, iou=0.5)[0].tolist() == [0, 2, 3]
    assert suppress(BOXES, SCORES, SAME, iou=0.49)[0].tolist() == [0, 3]
    other = torch.tensor([0, 1, 0, 0])
    assert suppress(BOXES, SCORES, other, iou=0.4)[0].tolist() == [0, 1, 3]
    assert suppress(BOXES, SCORES, other, iou=0.4, method="agnostic")[0].tolist() == [0, 3]


@pytest.mark.parametrize("count", [0, 1, 60, 1500])
def test_hard_equals_a_loop(count: int, random_boxes: Any) -> None:
    boxes = random_boxes(count, size=300 if count > 100 else 60)
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(count, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    if count > 100:  # more than torchvision handles in one piece; three classes one by one
        keep, _, _ = suppress(boxes, scores, labels, iou=0.4)
        for k in range(3):
            mine = (labels == k).nonzero().flatten()
            part, _, _ = suppress(boxes[mine], scores[mine], labels[mine], iou=0.4)
            assert sorted(mine[part].tolist()) == sorted(i for i in keep.tolist() if labels[i] == k)
    else:
        expected = slow_nms(boxes, scores, labels, 0.4)
        assert suppress(boxes, scores, labels, iou=0.4)[0].tolist() == expected


def test_soft_by_hand() -> None:
    keep, boxes, scores = suppress(BOXES, SCORES, SAME, iou=0.5, method="linear")
    # 0.8 (1 - 0.8), 0.7 (IoU 0.5 is not above); then the third, 0.625 with the second.
    assert keep.tolist() == [0, 2, 3, 1]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.6, 0.8 * 0.2 * 0.375]))
    assert torch.equal(boxes, BOXES[keep])
    keep, _, scores = suppress(BOXES, SCORES, SAME, method="gaussian", sigma=0.5)
    first = [0.8 * math.exp(-0.64 / 0.5), 0.7 * math.exp(-0.25 / 0.5)]
    assert keep.tolist() == [0, 3, 2, 1]
    last = first[0] * math.exp(-(0.625**2) / 0.5)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6, first[1], last]))
    keep, _, _ = suppress(BOXES, SCORES, SAME, method="gaussian", min_score=0.3)
    assert keep.tolist() == [0, 3, 2]
    assert suppress(BOXES, SCORES, SAME, method="linear", max_detections=2)[0].tolist() == [0, 2]
    labels = torch.arange(4)
    torch.testing.assert_close(suppress(BOXES, SCORES, labels, method="gaussian")[2], SCORES)


def test_weighted_by_hand() -> None:
    keep, boxes, scores = suppress(BOXES, SCORES, SAME, iou=0.6, method="weighted")
    assert keep.tolist() == [0, 2, 3]
    assert scores.tolist() == SCORES[keep].tolist()
    # The second joins the first (0.8), not the third (0.625), which was chosen later.
    merged = (0.9 * BOXES[0] + 0.8 * BOXES[1]) / 1.7
    torch.testing.assert_close(boxes, torch.stack([merged, BOXES[2], BOXES[3]]))
    apart = suppress(BOXES, SCORES, torch.arange(4), iou=0.6, method="weighted")[1]
    torch.testing.assert_close(apart, BOXES)


@pytest.mark.parametrize("method", ["hard", "agnostic", "linear", "gaussian", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_and_half_floats(method: Any, dtype: torch.dtype) -> None:
    none = suppress(torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype), SAME[:0])
    assert [tuple(t.shape) for t in none] == [(0,), (0, 4), (0,)]
    keep, boxes, scores = suppress(BOXES.to(dtype), SCORES.to(dtype), SAME, method=method)
    assert len(keep) == len(boxes) == len(scores) >= 2
    assert boxes.dtype == scores.dtype == torch.float32
    found = select(torch.zeros(0, 4), torch.zeros(0, 3), method=method)
    assert found.boxes is not None
    assert found.boxes.shape == (0, 4)


def test_select_takes_every_class_of_every_box() -> None:
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.0], [0.0, 0.7], [1.5, 0.1]])
    found = select(BOXES, scores, iou=0.5, min_score=0.05)
    assert found.labels is not None
    assert found.scores is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([1.0, 0.9, 0.7, 0.3, 0.1]))
    assert select(BOXES, scores, max_detections=2).scores.tolist() == pytest.approx([1.0, 0.9])
    few = select(BOXES, scores, candidates=3, iou=1.0)
    assert few.scores.tolist() == pytest.approx([1.0, 0.9, 0.8])


def test_select_takes_boxes_of_each_class() -> None:
    boxes = torch.stack([BOXES, BOXES + 20], dim=1)  # (4, 2, 4)
    scores = torch.tensor([[0.9, 0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.2]])
    found = select(boxes, scores)
    assert found.boxes is not None
    assert torch.equal(found.boxes, torch.stack([BOXES[0], BOXES[0] + 20, BOXES[3] + 20]))


def test_select_drops_what_is_no_box() -> None:
    boxes = torch.tensor(
        [[0, 0, 5, 5], [5, 5, 5, 9], [9, 9, 3, 3], [0, 0, torch.nan, 5], [-9, -9, torch.inf, 8]]
    )
    found = select(boxes, torch.tensor([0.5, 0.9, 0.9, 0.9, 0.4]), SAME.new_zeros(5))
    assert found.boxes.tolist() == [[0, 0, 5, 5]]
    found = select(boxes, torch.full((5,), 0.5), SAME.new_zeros(5), image_size=(8, 8), iou=1.0)
    assert found.boxes.tolist() == [[0, 0, 5, 5], [0, 0, 8, 8]]
    found = select(boxes[:1], torch.tensor([torch.nan]), SAME[:1])
    assert len(found.boxes) == 0


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="method best: expected hard"):
        suppress(BOXES, SCORES, SAME, method="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"iou=1.5"):
        suppress(BOXES, SCORES, SAME, iou=1.5)
    with pytest.raises(ValueError, match="sigma=0"):
        suppress(BOXES, SCORES, SAME, sigma=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.5, "soft", 0.0, 10), "nms method soft"),
        ((1.5, "hard", 0.0, 10), "nms iou=1.5"),
        ((0.5, "hard", 0.0, 0), "max_detections=0"),
    ],
)
def test_a_selection_refuses_what_it_cannot_do(values: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Selection(*values)


def test_a_selection_selects() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1])
    labels = torch.zeros(4, dtype=torch.int64)
    chosen = Selection(0.5, "hard", 0.2, 10)(boxes, scores, labels, image_size=(100, 25))
    assert chosen.boxes is not None
    assert chosen.boxes.tolist() == [[0, 0, 10, 10], [20, 20, 25, 30]]
    first = Selection(0.5, "hard", 0.2, 1)(boxes, scores, labels)
    assert first.scores is not None
    assert first.scores.tolist() == pytest.approx([0.9])
