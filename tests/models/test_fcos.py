"""FCOS: equal to torchvision's on copied weights, who answers for what, a slow loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cvtrain.layers.boxes import area, elementwise
from cvtrain.layers.matcher import IGNORED, NEGATIVE
from cvtrain.losses.box_regression import IoULoss, SmoothL1
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.detection.fcos import FCOS, centreness
from cvtrain.structures import Target


@pytest.fixture
def make() -> Callable[..., FCOS]:
    """An FCOS on ResNet-18, its heads away from the calm start."""

    def build(num_classes: int = 3, **keywords: Any) -> FCOS:
        torch.manual_seed(0)
        model = FCOS(TimmBackbone("resnet18"), IoULoss("giou"), num_classes, **keywords)
        with torch.no_grad():
            for head in (model.class_logits, model.box_distances, model.box_centreness):
                for p in head.parameters():
                    p.add_(torch.randn_like(p) * 0.1)
        return model.eval()

    return build


def theirs(model: FCOS, num_classes: int, size: tuple[int, int]) -> TorchvisionFCOS:
    """torchvision's FCOS with the same weights, which leaves the size of images alone."""
    features = _resnet_fpn_extractor(
        resnet18(), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    other = TorchvisionFCOS(features, num_classes, min_size=min(size), max_size=max(size))
    renamed = {}
    for name, value in model.state_dict().items():
        for old, new in (
            ("backbone.body.", "backbone.body."),
            ("neck.pyramid.", "backbone.fpn."),
            ("neck.convs.0.", "backbone.fpn.extra_blocks.p6."),
            ("neck.convs.1.", "backbone.fpn.extra_blocks.p7."),
            ("class_tower.", "head.classification_head.conv."),
            ("class_logits.", "head.classification_head.cls_logits."),
            ("box_tower.", "head.regression_head.conv."),
            ("box_distances.", "head.regression_head.bbox_reg."),
            ("box_centreness.", "head.regression_head.bbox_ctrness."),
        ):
            if name.startswith(old):
                renamed[new + name[len(old) :]] = value
    other.load_state_dict(renamed)
    return other.eval()


def scene(size: tuple[int, int]) -> tuple[Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, *size, generator=generator)
    boxes = torch.tensor([[10.0, 20.0, 90.0, 70.0], [60.0, 50.0, 84.0, 100.0], [0, 0, 125, 120]])
    targets = [
        Target(boxes=boxes, labels=torch.tensor([0, 2, 1])),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]
    return images, targets


def test_equal_to_torchvision_on_copied_weights(make: Callable[..., FCOS]) -> None:
    size = (128, 256)
    model = make(distances="relu", point_offset=0.0, min_score=0.2)
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
    for a, b in (("classes", "classification"), ("boxes", "bbox_regression")):
        torch.testing.assert_close(mine[a], losses[b], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine["centreness"], losses["bbox_ctrness"], rtol=1e-4, atol=1e-4)
    assert sum(len(d["boxes"]) for d in detections) > 10
    for a, b in zip(model.decode(outputs), detections, strict=True):
        alive = (b["boxes"][:, 2:] > b["boxes"][:, :2]).all(1)  # theirs keeps boxes of no area
        count = int(alive.sum())
        torch.testing.assert_close(a.boxes[:count], b["boxes"][alive], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a.scores[:count], b["scores"][alive], rtol=1e-4, atol=1e-4)
        assert torch.equal(a.labels[:count], b["labels"][alive])


def test_who_answers_for_what_equals_a_loop(make: Callable[..., FCOS]) -> None:
    model = make(channels=32, convs=1)
    images, targets = scene((128, 256))
    with torch.no_grad():
        out = model(images)
    boxes = targets[0].boxes
    crowd = torch.tensor([[150.0, 0.0, 200.0, 60.0]])
    index = model.assign(out, boxes, crowd)
    ranges = {8: (0, 64), 16: (64, 128), 32: (128, 256), 64: (256, 512), 128: (512, 1e9)}
    for a, (x, y) in enumerate(out.points.tolist()):
        stride = int(out.strides[a])
        low, high = ranges[stride]
        fitting = []
        for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            away = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
            if min(sides) > 0 and low < max(sides) < high and away < 1.5 * stride:
                fitting.append((float(area(boxes[n])), n))
        hidden = 150 < x < 200 and y < 60
        expected = min(fitting)[1] if fitting else (IGNORED if hidden else NEGATIVE)
        assert int(index[a]) == expected
    assert {0, 1, 2, IGNORED, NEGATIVE} == set(index.tolist())
    everywhere = make(channels=32, convs=1, center_radius=None).assign(out, boxes, crowd)
    assert (everywhere >= 0).sum() > (index >= 0).sum()


def test_the_loss_by_hand(make: Callable[..., FCOS]) -> None:
    model = make(channels=32, convs=1)
    images, targets = scene((128, 128))
    with torch.no_grad():
        out = model(images)
        terms = model.compute_loss(out, targets)
    index = model.assign(out, targets[0].boxes, torch.zeros(0, 4))
    positive = (index >= 0).nonzero().flatten().tolist()
    overlap = centered = 0.0
    for a in positive:
        x, y = out.points[a].tolist()
        box = targets[0].boxes[index[a]]
        left, top, right, bottom = (out.distances[0, a] * out.strides[a]).tolist()
        mine = torch.tensor([x - left, y - top, x + right, y + bottom])
        overlap += 1 - float(elementwise(mine, box, "giou"))
        l, t, r, b = x - box[0], y - box[1], box[2] - x, box[3] - y  # noqa: E741
        aim = torch.sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))
        centered += float(nn.functional.binary_cross_entropy_with_logits(out.centreness[0, a], aim))
    assert float(terms["boxes"]) == pytest.approx(overlap / len(positive), rel=1e-4)
    assert float(terms["centreness"]) == pytest.approx(centered / len(positive), rel=1e-4)
    assert int(terms["num_positives"]) == len(positive)
    assert int(terms["num_objects"]) == 3


def test_centreness_by_hand() -> None:
    sides = torch.tensor([[5.0, 5.0, 5.0, 5.0], [2.0, 1.0, 8.0, 4.0]])
    torch.testing.assert_close(centreness(sides), torch.tensor([1.0, 0.25]))


def test_the_papers_numbers(build_model: Any) -> None:
    with torch.device("meta"):
        model = build_model(
            "task=detection", "model=fcos", "backbone=resnet50", "data=shapes", num_classes=80
        )
    # torchvision's fcos_resnet50_fpn for 91 classes has 32,269,600; ours 5 scales more, 11 classes
    # fewer, and batch norms that train.
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    parameters = sum(p.numel() for p in model.parameters()) - 5
    parameters -= sum(m.weight.numel() * 2 for m in norms)
    assert parameters + 11 * (256 * 9 + 1) == 32_269_600
    assert model.scales.shape == (5,)


@pytest.mark.parametrize("distances", ["exp", "relu"])
def test_the_loss_and_the_boxes_agree(distances: Any, make: Callable[..., FCOS]) -> None:
    """Outputs of little loss decode to the boxes they were made from."""
    model = make(channels=32, convs=1, distances=distances)
    images, targets = scene((128, 128))
    with torch.no_grad():
        out = model(images)
    assert (out.distances >= 0).all()
    boxes, labels = targets[0].boxes, targets[0].labels
    index = model.assign(out, boxes, torch.zeros(0, 4))
    positive = (index >= 0).nonzero().flatten()
    x, y = out.points[positive].unbind(1)
    x0, y0, x1, y1 = boxes[index[positive]].unbind(1)
    sides = torch.stack([x - x0, y - y0, x1 - x, y1 - y], dim=1)
    logits = torch.full_like(out.logits, -12.0)
    logits[0, positive, labels[index[positive]]] = 12.0
    spread, middle = out.distances.clone(), torch.full_like(out.centreness, -12.0)
    spread[0, positive] = sides / out.strides[positive, None]
    middle[0, positive] = torch.logit(centreness(sides).clamp(max=0.999))
    made = out._replace(logits=logits, distances=spread, centreness=middle)
    terms = model.compute_loss(made, targets)
    assert float(terms["classes"]) < 1e-2
    assert float(terms["boxes"]) < 1e-4
    found, nothing = model.decode(made)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    order = [found.labels.tolist().index(k) for k in labels.tolist()]
    torch.testing.assert_close(found.boxes[order], boxes, atol=1e-2, rtol=0)
    assert len(nothing.boxes) == 0


def test_a_thousand_objects_and_other_bad_scenes(make: Callable[..., FCOS]) -> None:
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
    backbone = TimmBackbone("resnet18")
    with pytest.raises(ValueError, match="FCOS regresses sides: loss=giou"):
        FCOS(backbone, SmoothL1(), 3)  # type: ignore[arg-type]
    for keywords, text in (
        ({"gamma": -1.0}, "gamma=-1"),
        ({"distances": "abs"}, "distances=abs: expected exp"),
        ({"center_radius": 0.0}, "center_radius=0"),
        ({"channels": 50}, "channels=50 must be a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=text):
            FCOS(backbone, IoULoss(), 3, **keywords)
