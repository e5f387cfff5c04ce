"""The network that proposes: its anchors, a slow loss, draws that validation repeats."""

from __future__ import annotations

import math

import pytest
import torch

from cvtrain.layers.boxes import pairwise
from cvtrain.layers.rpn import RPN, RPNOutputs
from cvtrain.structures import Target


@pytest.fixture
def rpn() -> RPN:
    torch.manual_seed(0)
    net = RPN(8, [16], scales=(2, 4, 8), sample=40)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return net


@pytest.fixture
def outputs(rpn: RPN) -> RPNOutputs:
    maps = torch.randn(2, 8, 8, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return rpn([maps])


def targets() -> list[Target]:
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [80.0, 30.0, 140.0, 120.0], [0, 90, 60, 128]])
    ignore = torch.tensor([False, False, True])
    return [Target(boxes=boxes, labels=torch.tensor([0, 2, 1]), ignore=ignore), Target()]


def test_nine_anchors_a_place(outputs: RPNOutputs) -> None:
    assert outputs.counts == [8 * 10 * 9]
    assert outputs.logits.shape == (2, 720)
    assert outputs.codes.shape == (2, 720, 4)
    sides = (outputs.anchors[:9, 2:] - outputs.anchors[:9, :2]).prod(dim=1).sqrt()
    assert sides.view(3, 3).mean(dim=0).tolist() == pytest.approx([32, 64, 128], rel=0.02)


def test_the_loss_equals_a_slow_one(rpn: RPN, outputs: RPNOutputs) -> None:
    rpn.sample, rpn.positive_fraction = 10_000, 1.0  # all that may be drawn
    terms = rpn.loss(outputs, targets())
    objects = targets()[0].boxes[:2]  # type: ignore[index]
    crowd = targets()[0].boxes[2]  # type: ignore[index]
    iou = pairwise(objects, outputs.anchors)
    entropy, regressed, count, positives = 0.0, 0.0, 0, 0
    for a, anchor in enumerate(outputs.anchors):
        nearest = int(iou[:, a].argmax())
        best = float(iou[nearest, a])
        positive = best >= 0.7 or bool((iou[:, a] == iou.amax(dim=1)).any())
        low, high = torch.maximum(anchor[:2], crowd[:2]), torch.minimum(anchor[2:], crowd[2:])
        hidden = (high - low).clamp(min=0).prod() / (anchor[2:] - anchor[:2]).prod() > 0.5
        if not positive and (best >= 0.3 or hidden):
            continue
        count += 1
        p = 1 / (1 + math.exp(-float(outputs.logits[0, a])))
        entropy -= math.log(p if positive else 1 - p)
        if positive:
            positives += 1
            side = anchor[2:] - anchor[:2]
            center = (anchor[2:] + anchor[:2]) / 2
            box = objects[nearest]
            shift = ((box[2:] + box[:2]) / 2 - center) / side
            wanted = torch.cat([shift, ((box[2:] - box[:2]) / side).log()])
            for d in (outputs.codes[0, a] - wanted).abs().tolist():
                regressed += 4.5 * d * d if d < 1 / 9 else d - 0.5 / 9
    assert positives >= 2
    for logit in outputs.logits[1].tolist():  # nothing there: all negative
        entropy += math.log1p(math.exp(logit))
        count += 1
    assert float(terms["objectness"]) == pytest.approx(entropy / count, rel=1e-4)
    assert float(terms["proposals"]) == pytest.approx(regressed / count, rel=1e-4)


def test_validation_draws_the_same_and_takes_nothing_from_training(
    rpn: RPN, outputs: RPNOutputs
) -> None:
    torch.manual_seed(5)
    rpn.eval()
    state = torch.get_rng_state()
    first, second = rpn.loss(outputs, targets()), rpn.loss(outputs, targets())
    assert torch.equal(state, torch.get_rng_state())
    assert first == second
    alone = RPNOutputs(outputs.logits[:1], outputs.codes[:1], outputs.anchors, outputs.counts)
    rest = RPNOutputs(outputs.logits[1:], outputs.codes[1:], outputs.anchors, outputs.counts)
    parts = [rpn.loss(alone, targets()[:1]), rpn.loss(rest, targets()[1:])]
    mean = sum(p["objectness"] for p in parts) / 2  # 40 drawn of each image
    torch.testing.assert_close(first["objectness"], mean)
    rpn.train()
    assert rpn.loss(outputs, targets()) != rpn.loss(outputs, targets())


def test_proposals_are_inside_ordered_and_apart(rpn: RPN, outputs: RPNOutputs) -> None:
    rpn.candidates, rpn.proposals = (50, 300), (5, 20)
    for training, most in ((True, 5), (False, 20)):
        found = rpn.train(training).propose(outputs, (100, 150))
        for boxes in found:
            assert 1 <= len(boxes) <= most
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([150.0, 100, 150, 100])).all()
            assert (pairwise(boxes, boxes) - torch.eye(len(boxes)) <= 0.7).all()
    decoded = rpn.coder.decode(outputs.codes[0], outputs.anchors)
    best = decoded[outputs.logits[0].argmax()].clamp(min=0)
    best = best.minimum(torch.tensor([150.0, 100, 150, 100]))
    torch.testing.assert_close(rpn.propose(outputs, (100, 150))[0][0], best)


def test_where_nothing_is_left_the_image_is_proposed(rpn: RPN, outputs: RPNOutputs) -> None:
    broken = outputs._replace(codes=torch.full_like(outputs.codes, torch.nan))
    for boxes in rpn.propose(broken, (100, 150)):
        assert boxes.tolist() == [[0, 0, 150, 100]]


def test_bad_keys_are_refused() -> None:
    for keywords, text in (
        ({"proposals": (0, 5)}, r"rpn.proposals=\[0, 5\]"),
        ({"sample": 0}, "rpn.sample=0"),
        ({"scales": ()}, r"rpn.scales=\[\]"),
        ({"positive_iou": 0.2}, "low=0.3 high=0.2"),
    ):
        with pytest.raises(ValueError, match=text):
            RPN(8, [16], **keywords)  # type: ignore[arg-type]
