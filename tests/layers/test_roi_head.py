"""The second stage: a slow loss, what is drawn, hard examples, decoding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cvtrain.layers.boxes import pairwise
from cvtrain.layers.roi_head import BoxHead, HardRoIs, RandomRoIs, RoIStage
from cvtrain.structures import Target

OBJECTS = torch.tensor(
    [[10.0, 10.0, 50.0, 50.0], [60.0, 20.0, 90.0, 80.0], [0.0, 80.0, 40.0, 99.0]]
)


def scene() -> tuple[list[Tensor], list[Target]]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 4, generator=generator) * 6
    around = (OBJECTS.repeat(20, 1) + noise).clamp(0, 100)
    corner = torch.rand(60, 2, generator=generator) * 60
    far = torch.cat([corner, corner + 5 + 30 * torch.rand(60, 2, generator=generator)], dim=1)
    proposals = [torch.cat([around, far]), far]
    ignore = torch.tensor([False, False, True])
    target = Target(boxes=OBJECTS, labels=torch.tensor([1, 0, 2]), ignore=ignore)
    return proposals, [target, Target()]


class Fixed:
    """Logits and codes as a function of the boxes; remembers the boxes it was asked for."""

    def __init__(self, classes: int = 3, agnostic: bool = False) -> None:
        generator = torch.Generator().manual_seed(4)
        self.classes = torch.randn(4, 1 + classes, generator=generator) / 60
        self.codes = torch.randn(4, 4 * (1 if agnostic else classes), generator=generator) / 60
        self.asked: list[Tensor] = []

    def __call__(self, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        self.asked = boxes
        rows = torch.cat(boxes)
        return rows @ self.classes, (rows @ self.codes).unflatten(1, (-1, 4))


def slow(boxes: Tensor, target: Target, fixed: Fixed, low: float, beta: float) -> list[list[float]]:
    """[entropy, box loss] of every region that may be drawn."""
    objects = OBJECTS[:2] if target.boxes is not None else OBJECTS[:0]
    rows = []
    for box in torch.cat([boxes, objects]):
        iou = pairwise(box[None], objects)[0].tolist() or [0.0]
        best = max(range(len(iou)), key=iou.__getitem__)
        foreground = iou[best] >= 0.5
        if not foreground and len(objects):
            a, b = torch.maximum(box[:2], OBJECTS[2, :2]), torch.minimum(box[2:], OBJECTS[2, 2:])
            hidden = (b - a).clamp(min=0).prod() / (box[2:] - box[:2]).prod() > 0.5
            if hidden or iou[best] < low:
                continue
        logits, codes = fixed([box[None]])
        label = [2, 1][best] if foreground else 0
        entropy = math.log(sum(math.exp(v) for v in logits[0].tolist())) - float(logits[0, label])
        distance = 0.0
        if foreground:
            side, center = box[2:] - box[:2], (box[2:] + box[:2]) / 2
            other = objects[best]
            shift = 10 * ((other[2:] + other[:2]) / 2 - center) / side
            wanted = torch.cat([shift, 5 * ((other[2:] - other[:2]) / side).log()])
            message = codes[0, label - 1 if codes.shape[1] > 1 else 0]
            for d in (message - wanted).abs().tolist():
                distance += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
        rows.append([entropy, distance])
    return rows


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("low", [0.0, 0.1])
def test_the_loss_equals_a_slow_one(agnostic: bool, low: float) -> None:
    stage = RoIStage(RandomRoIs(10_000, 1.0), background_iou=low)
    proposals, targets = scene()
    fixed = Fixed(agnostic=agnostic)
    terms = stage.loss(fixed, proposals, targets, training=True)
    rows = slow(proposals[0], targets[0], fixed, low, 1.0)
    # Without objects no region comes near one: all are background there.
    rows += slow(proposals[1], targets[1], fixed, 0.0, 1.0)
    entropy, distance = (sum(r[i] for r in rows) / len(rows) for i in range(2))
    assert sum(r[1] > 0 for r in rows) == int(terms["num_positives"]) > 10
    assert float(terms["classes"]) == pytest.approx(entropy, rel=1e-4)
    assert float(terms["boxes"]) == pytest.approx(distance, rel=1e-4)
    assert int(terms["num_objects"]) == 2


def test_a_quarter_of_64_is_foreground_and_objects_are_added() -> None:
    stage, fixed = RoIStage(RandomRoIs(64, 0.25)), Fixed()
    proposals, targets = scene()
    stage.loss(fixed, proposals, targets, training=True)
    first, second = fixed.asked
    assert len(first) == 64
    assert int((pairwise(first, OBJECTS[:2]).amax(dim=1) >= 0.5).sum()) == 16
    assert len(second) == 60  # all there are
    stage.loss(fixed, [proposals[1][:1]] * 2, targets, training=True)
    assert any(torch.equal(box, OBJECTS[0]) for box in fixed.asked[0])


def test_hard_regions_are_those_of_highest_loss() -> None:
    proposals, targets = scene()
    fixed = Fixed()
    every = [slow(b, t, fixed, 0.0, 1.0) for b, t in zip(proposals, targets, strict=True)]
    terms = RoIStage(HardRoIs(10, None)).loss(fixed, proposals, targets, training=True)
    worst = [sorted(map(sum, rows), reverse=True)[:10] for rows in every]
    total = float(terms["classes"] + terms["boxes"])
    assert total == pytest.approx(sum(map(sum, worst)) / 20, rel=1e-4)
    apart = RoIStage(HardRoIs(10, 0.3)).loss(fixed, proposals, targets, training=True)
    assert float(apart["classes"] + apart["boxes"]) < total


def test_validation_draws_the_same_for_an_image_in_any_batch() -> None:
    stage, fixed = RoIStage(RandomRoIs(16)), Fixed()
    proposals, targets = scene()
    state = torch.get_rng_state()
    stage.loss(fixed, proposals, targets, training=False)
    both = fixed.asked
    assert torch.equal(state, torch.get_rng_state())
    stage.loss(fixed, proposals[1:], targets[1:], training=False)
    assert torch.equal(fixed.asked[0], both[1])
    stage.loss(fixed, proposals[1:], targets[1:], training=True)
    assert not torch.equal(fixed.asked[0], both[1])


def test_only_regions_to_ignore_cost_nothing() -> None:
    whole = Target(
        boxes=torch.tensor([[0.0, 0.0, 100.0, 100.0]]),
        labels=torch.tensor([0]),
        ignore=torch.tensor([True]),
    )
    proposals, _ = scene()
    head = BoxHead(4, 0, 3, (8,))

    def classify(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        return head(torch.cat(boxes)[:, :, None, None])

    terms = RoIStage().loss(classify, proposals[1:], [whole], training=True)
    assert terms["classes"] == terms["boxes"] == terms["num_positives"] == 0
    (terms["classes"] + terms["boxes"]).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("agnostic", [False, True])
def test_what_was_encoded_is_decoded(agnostic: bool) -> None:
    stage = RoIStage(min_score=0.5)
    proposals = OBJECTS + torch.tensor([2.0, -3.0, 4.0, 1.0])
    codes = torch.zeros(3, 1 if agnostic else 3, 4)
    labels = torch.tensor([1, 0, 2])
    wanted = stage.coder.encode(OBJECTS, proposals)
    codes[torch.arange(3), torch.zeros(3, dtype=torch.int64) if agnostic else labels] = wanted
    logits = torch.zeros(3, 4)
    logits[torch.arange(3), labels + 1] = torch.tensor([9.0, 8.0, 7.0])
    first, second = stage.decode(
        lambda _: (logits, codes), [proposals[:2], proposals[2:]], (100, 100)
    )
    torch.testing.assert_close(torch.cat([first.boxes, second.boxes]), OBJECTS, rtol=0, atol=1e-3)  # type: ignore[list-item]
    assert first.labels.tolist() == [1, 0]  # type: ignore[union-attr]
    assert second.labels.tolist() == [2]  # type: ignore[union-attr]


def test_bad_keys_are_refused() -> None:
    for make, text in (
        (lambda: RandomRoIs(0), "count=0"),
        (lambda: HardRoIs(8, 2.0), "nms_iou=2.0"),
        (lambda: RoIStage(foreground_iou=0.5, background_iou=0.6), "background_iou=0.6"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
