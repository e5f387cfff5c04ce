"""RetinaNet: equal to torchvision's on copied weights, the paper's numbers, a slow loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cvtrain.layers.boxes import pairwise
from cvtrain.losses.box_regression import IoULoss, SmoothL1
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.detection.retinanet import RetinaNet
from cvtrain.structures import Target


@pytest.fixture
def make() -> Callable[..., RetinaNet]:
    """A RetinaNet on ResNet-18, its last layers away from the calm start."""

    def build(num_classes: int = 3, loss: Any = None, **keywords: Any) -> RetinaNet:
        torch.manual_seed(0)
        model = RetinaNet(
            TimmBackbone("resnet18"), loss or SmoothL1(beta=0.0), num_classes, **keywords
        )
        with torch.no_grad():
            for p in (*model.class_logits.parameters(), *model.box_codes.parameters()):
                p.add_(torch.randn_like(p) * 0.02)
            model.class_logits.bias.add_(torch.randn_like(model.class_logits.bias))
        return model.eval()

    return build


def theirs(model: RetinaNet, num_classes: int, size: tuple[int, int]) -> TorchvisionRetinaNet:
    """torchvision's RetinaNet with the same weights, which leaves the size of images alone."""
    body = resnet18()
    features = _resnet_fpn_extractor(
        body, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(512, 256)
    )
    other = TorchvisionRetinaNet(
        features,
        num_classes,
        min_size=min(size),
        max_size=max(size),
        score_thresh=0.05,
        detections_per_img=100,
    )
    mine = model.state_dict()
    renamed = {}
    for name, value in mine.items():
        for old, new in (
            ("backbone.body.", "backbone.body."),
            ("neck.pyramid.", "backbone.fpn."),
            ("neck.convs.0.", "backbone.fpn.extra_blocks.p6."),
            ("neck.convs.1.", "backbone.fpn.extra_blocks.p7."),
            ("class_logits.", "head.classification_head.cls_logits."),
            ("box_codes.", "head.regression_head.bbox_reg."),
        ):
            if name.startswith(old):
                renamed[new + name[len(old) :]] = value
        for old, new in (("class_tower.", "classification"), ("box_tower.", "regression")):
            if name.startswith(old):
                layer, kind = name[len(old) :].split(".")
                renamed[f"head.{new}_head.conv.{int(layer) // 2}.0.{kind}"] = value
    other.load_state_dict(renamed)
    return other.eval()


def scene(size: tuple[int, int]) -> tuple[Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, *size, generator=generator)
    boxes = torch.tensor([[10.0, 20.0, 90.0, 70.0], [60.0, 50.0, 84.0, 100.0], [5, 5, 12, 11]])
    targets = [
        Target(boxes=boxes, labels=torch.tensor([0, 2, 1])),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]
    return images, targets


def test_equal_to_torchvision_on_copied_weights(make: Callable[..., RetinaNet]) -> None:
    size = (128, 256)
    model = make(min_score=0.05)
    other = theirs(model, 3, size)
    images, targets = scene(size)
    with torch.no_grad():
        outputs = model(images)
        detections = other(list(images))
        other.train()
        for module in other.backbone.modules():  # batch norms as in eval
            module.training = False
        losses = other(list(images), [{"boxes": t.boxes, "labels": t.labels} for t in targets])
    mine = model.compute_loss(outputs, targets)
    torch.testing.assert_close(mine["classes"], losses["classification"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine["boxes"], losses["bbox_regression"], rtol=1e-4, atol=1e-4)
    for a, b in zip(model.decode(outputs), detections, strict=True):
        alive = (b["boxes"][:, 2:] > b["boxes"][:, :2]).all(1)  # theirs keeps boxes of no area
        count = int(alive.sum())
        assert count > 10
        torch.testing.assert_close(a.boxes[:count], b["boxes"][alive], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a.scores[:count], b["scores"][alive], rtol=1e-4, atol=1e-4)
        assert torch.equal(a.labels[:count], b["labels"][alive])


def test_the_papers_numbers(build_model: Any) -> None:
    with torch.device("meta"):
        model = build_model(
            "task=detection", "model=retinanet", "backbone=resnet50", "data=shapes", num_classes=80
        )
    # torchvision's retinanet_resnet50_fpn for 91 classes has 34,014,999; its P6 grows from P5 (256
    # channels), ours from C5 (2048), and its batch norms are frozen.
    parameters = sum(p.numel() for p in model.parameters())
    norms = sum(
        m.weight.numel() * 2 for m in model.backbone.modules() if hasattr(m, "running_mean")
    )
    parameters += 11 * 9 * (256 * 9 + 1) - (2048 - 256) * 256 * 9
    assert parameters - norms == 34_014_999
    assert model.neck.strides == [8, 16, 32, 64, 128]
    assert model.anchors.per_place == [9] * 5
    logits = model.class_logits.bias
    assert logits.shape == (9 * 80,)
    assert (model.alpha, model.gamma) == (0.25, 2.0)


def test_outputs_at_600_pixels_and_the_prior(make: Callable[..., RetinaNet]) -> None:
    torch.manual_seed(0)
    model = RetinaNet(TimmBackbone("resnet18"), SmoothL1(), 5, channels=32, convs=1).eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 600, 601, dtype=torch.uint8))
    places = [76 * 76, 38 * 38, 19 * 19, 10 * 10, 5 * 5]  # padded to 608
    assert out.counts == [9 * p for p in places]
    assert out.logits.shape == (1, sum(out.counts), 5)
    assert out.codes.shape == (1, sum(out.counts), 4)
    torch.testing.assert_close(out.logits.sigmoid().mean(), torch.tensor(0.01), rtol=0.1, atol=0)
    sides = (out.anchors[:, 2:] - out.anchors[:, :2]).prod(dim=1).sqrt()
    assert sides.min() == pytest.approx(32, abs=1)
    assert sides.max() == pytest.approx(512 * 2 ** (2 / 3), abs=2)


def test_the_loss_equals_a_slow_one_and_leaves_ignored_regions_out(
    make: Callable[..., RetinaNet],
) -> None:
    model = make(channels=32, convs=1, loss=IoULoss("giou"))
    images, targets = scene((128, 128))
    targets[0].ignore = torch.tensor([False, True, False])
    with torch.no_grad():
        out = model(images)
        terms = model.compute_loss(out, targets)
    keep = targets[0].boxes[[0, 2]]
    labels = [0, 1]
    iou = pairwise(keep, out.anchors)
    best, classes, regressed, positives = iou.max(1).values, 0.0, 0.0, 0
    crowd = targets[0].boxes[1]
    probability = out.logits.sigmoid()
    for a in range(len(out.anchors)):
        anchor, most = out.anchors[a], int(iou[:, a].argmax())
        positive = bool(iou[most, a] >= 0.5) or bool((iou[:, a] == best).any())
        low, high = torch.maximum(anchor[:2], crowd[:2]), torch.minimum(anchor[2:], crowd[2:])
        inside = (high - low).clamp(min=0).prod() / (anchor[2:] - anchor[:2]).prod()
        if not positive and (iou[most, a] >= 0.4 or inside > 0.5):
            continue
        positives += positive
        for k in range(3):
            p = float(probability[0, a, k])
            hit = positive and labels[most] == k
            pt, weight = (p, 0.25) if hit else (1 - p, 0.75)
            classes -= weight * (1 - pt) ** 2 * float(torch.tensor(pt).log())
        if positive:
            box = model.coder.decode(out.codes[0, a : a + 1], anchor[None])
            term = model.criterion.codes(
                model.coder.encode(box, anchor[None]), keep[most][None], anchor[None], model.coder
            )
            regressed += float(term)
    empty = -(0.75 * probability[1] ** 2 * (1 - probability[1]).log()).sum()
    expected = (classes / positives + float(empty)) / 2
    assert int(terms["num_positives"]) == positives
    assert int(terms["num_objects"]) == 2
    assert float(terms["classes"]) == pytest.approx(expected, rel=1e-3)
    assert float(terms["boxes"]) == pytest.approx(regressed / positives / 2, rel=1e-3)


def test_the_loss_and_the_boxes_agree(make: Callable[..., RetinaNet]) -> None:
    """Outputs of little loss decode to the boxes they were made from."""
    model = make(channels=32, convs=1)
    images, targets = scene((128, 128))
    with torch.no_grad():
        out = model(images)
    boxes, labels = targets[0].boxes, targets[0].labels
    index, _ = model.matcher(out.anchors, boxes)
    logits = torch.full_like(out.logits, -12.0)
    codes = torch.zeros_like(out.codes)
    positive = (index >= 0).nonzero().flatten()
    logits[0, positive, labels[index[positive]]] = 12.0
    codes[0, positive] = model.coder.encode(boxes[index[positive]], out.anchors[positive])
    made = out._replace(logits=logits, codes=codes)
    assert sum(v for k, v in model.compute_loss(made, targets).items() if k[:3] != "num") < 1e-2
    found, nothing = model.decode(made)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    order = [found.labels.tolist().index(k) for k in labels.tolist()]
    torch.testing.assert_close(found.boxes[order], boxes, atol=1e-2, rtol=0)
    assert len(nothing.boxes) == 0


def test_a_thousand_objects_and_other_bad_scenes(make: Callable[..., RetinaNet]) -> None:
    model = make(channels=32, convs=1)
    corner = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 120
    crowd = Target(
        boxes=torch.cat([corner, corner + 3], dim=1), labels=torch.zeros(1000, dtype=torch.int64)
    )
    long = torch.zeros(1, 3, 1, 500, dtype=torch.uint8)
    for images, target in (
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), crowd),
        (long, Target()),
    ):
        terms, found = model.loss_and_predict(images, [target])
        assert all(torch.isfinite(v) for v in terms.values())
        assert (found[0].boxes[:, 3] <= images.shape[-2]).all()


def test_bad_keys_are_refused() -> None:
    for keywords, text in (
        ({"alpha": 2.0}, "alpha=2.0"),
        ({"prior": 0.0}, "prior=0.0"),
        ({"positive_iou": 0.3}, "low=0.4 high=0.3"),
    ):
        with pytest.raises(ValueError, match=text):
            RetinaNet(TimmBackbone("resnet18"), SmoothL1(), 3, **keywords)
