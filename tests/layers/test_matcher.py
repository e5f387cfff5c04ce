"""Anchors matched to objects: by hand, against torchvision's matchers and a greedy loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.models.detection._utils import SSDMatcher

from cvtrain.layers import matcher as module
from cvtrain.layers.boxes import pairwise
from cvtrain.layers.matcher import IGNORED, NEGATIVE, Matcher, _one_each

ANCHORS = torch.tensor(
    [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0], [30.0, 0.0, 40.0, 10.0], [60.0, 0, 70.0, 10]]
)


def test_thresholds_by_hand() -> None:
    """IoU 1 and 0.5 with the first object, 0.45 with the second, nothing with the fourth."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [30.0, 0.0, 40.0, 4.5]])
    index, iou = Matcher(0.5, 0.4)(ANCHORS, boxes)
    assert index.tolist() == [0, 0, IGNORED, NEGATIVE]
    torch.testing.assert_close(iou, torch.tensor([1.0, 0.5, 0.45, 0.0]))
    assert Matcher(0.6)(ANCHORS, boxes)[0].tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE]
    assert Matcher(0.6, rescue="ties")(ANCHORS, boxes)[0].tolist() == [0, NEGATIVE, 1, NEGATIVE]
    assert Matcher(0.6, rescue="one")(ANCHORS, boxes)[0].tolist() == [0, NEGATIVE, 1, NEGATIVE]


@pytest.mark.parametrize("rescue", ["none", "ties", "one"])
def test_nothing_to_match(rescue: Any) -> None:
    none = torch.zeros(0, 4)
    index, iou = Matcher(0.5, rescue=rescue)(ANCHORS, none)
    assert index.tolist() == [NEGATIVE] * 4
    assert iou.tolist() == [0] * 4
    index, _ = Matcher(0.5, rescue=rescue)(none, ANCHORS)
    assert index.shape == (0,)
    far = torch.tensor([[500.0, 500.0, 510.0, 510.0]])  # no anchor sees it: none is made positive
    assert Matcher(0.5, rescue=rescue)(ANCHORS, far)[0].tolist() == [NEGATIVE] * 4


def test_anchors_in_ignored_regions_are_neither() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    crowd = torch.tensor([[0.0, 0.0, 36.0, 30.0], [68.0, 0.0, 99.0, 99.0]])
    index, _ = Matcher(0.6)(ANCHORS, boxes, crowd)
    # A positive stays one; 60 % of the third anchor is inside, 20 % of the fourth.
    assert index.tolist() == [0, IGNORED, IGNORED, NEGATIVE]
    assert Matcher(0.6, ignore_share=0.6)(ANCHORS, boxes, crowd)[0].tolist() == [0, -2, -1, -1]
    assert Matcher(0.6)(ANCHORS, boxes[:0], crowd)[0].tolist() == [-2, -2, -2, -1]


@pytest.mark.parametrize("pairs", [8_000_000, 1000])
@pytest.mark.parametrize(("high", "low"), [(0.5, 0.4), (0.7, 0.3), (0.3, 0.3)])
def test_equal_to_torchvision(
    high: float, low: float, pairs: int, random_boxes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAIRS", pairs)  # objects in one piece, or a few at a time
    anchors, boxes = random_boxes(300, seed=1), random_boxes(12, seed=2)
    boxes[3] = anchors[7]
    iou = pairwise(boxes, anchors)
    for rescue in ("none", "ties"):
        theirs = TorchvisionMatcher(high, low, allow_low_quality_matches=rescue == "ties")
        found, best = Matcher(high, low, rescue=rescue)(anchors, boxes)
        assert torch.equal(found, theirs(iou.clone()))
        torch.testing.assert_close(best, iou.amax(0))


def test_one_each_equals_torchvision_where_no_two_want_the_same() -> None:
    generator = torch.Generator().manual_seed(5)
    anchors = torch.rand(200, 2, generator=generator) * 200
    anchors = torch.cat([anchors, anchors + 20], dim=1)
    boxes = anchors[::20] + torch.rand(10, 4, generator=generator) * 4
    iou = pairwise(boxes, anchors)
    assert len(set(iou.argmax(1).tolist())) == 10
    for high in (0.5, 0.99):
        found, _ = Matcher(high, rescue="one")(anchors, boxes)
        assert torch.equal(found, SSDMatcher(high)(iou.clone()))


def greedy(iou: Tensor) -> list[int]:
    """Highest IoU of all first, again and again."""
    mine = [-1] * len(iou)
    iou = iou.clone()
    while iou.max() > 0:
        best = int(iou.argmax())
        row, column = best // iou.shape[1], best % iou.shape[1]
        mine[row] = column
        iou[row], iou[:, column] = 0, 0
    return mine


@pytest.mark.parametrize("seed", range(5))
def test_one_each_is_the_greedy_assignment(seed: int, random_boxes: Any) -> None:
    iou = pairwise(random_boxes(25, seed=seed), random_boxes(40, seed=100 + seed))
    found = _one_each(iou)
    assert found.tolist() == greedy(iou)
    taken = found[found >= 0]
    assert len(taken.unique()) == len(taken)


def test_equal_objects_share_the_anchors_in_order() -> None:
    boxes = ANCHORS[:1].repeat(3, 1)
    found, _ = Matcher(0.9, rescue="one")(ANCHORS, boxes)
    assert found.tolist() == [0, 1, NEGATIVE, NEGATIVE]  # the third finds both taken


def test_half_floats() -> None:
    index, iou = Matcher(0.5)(ANCHORS.half() * 100, ANCHORS[:1].half() * 100)
    assert index.tolist() == [0, 0, -1, -1]
    assert iou.dtype == torch.float32


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low=0.6 high=0.5"):
        Matcher(0.5, 0.6)
    with pytest.raises(ValueError, match="rescue=all"):
        Matcher(0.5, rescue="all")  # type: ignore[arg-type]
