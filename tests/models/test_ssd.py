"""SSD: equal to torchvision's ssd300_vgg16 on copied weights, 8,732 boxes, a slow loss; SSDLite."""

from __future__ import annotations

from itertools import pairwise as neighbors
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block

from cvtrain.layers.boxes import pairwise
from cvtrain.layers.normalize import IMAGENET_MEAN, IMAGENET_STD
from cvtrain.losses.box_regression import SmoothL1, smooth_l1
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.detection.ssd import SSD, L2Norm
from cvtrain.models.detection.ssdlite import NORM, SSDLite
from cvtrain.structures import Target

COCO_SCALES = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
STEPS = [8, 16, 32, 64, 100, 300]


@pytest.fixture(scope="module")
def vgg() -> SSD:
    """SSD300 on VGG-16, with torchvision's scales and steps."""
    torch.manual_seed(0)
    model = SSD(TimmBackbone("vgg16"), SmoothL1(), 3, scales=COCO_SCALES, steps=STEPS)
    with torch.no_grad():
        for module in model.backbone.modules():  # a plain start lets the signal fade
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return model.eval()


def scene(size: int) -> tuple[Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, size, size, generator=generator)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.5, 0.4, 0.6, 0.8], [0.02, 0.02, 0.95, 0.9]])
    more = torch.tensor([[0.7, 0.7, 0.8, 0.8]])
    return images, [
        Target(boxes=boxes * size, labels=torch.tensor([0, 2, 1])),
        Target(boxes=more * size, labels=torch.tensor([2])),
    ]


def test_equal_to_torchvision_on_copied_weights(vgg: SSD) -> None:
    other = ssd300_vgg16(
        weights_backbone=None,
        num_classes=4,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        score_thresh=0.3,
    ).eval()
    mine = vgg.state_dict()
    state = other.state_dict()
    assert vgg.fc is not None
    # Convolution after convolution, in the order of the network.
    names = [n for n in mine if n.startswith("backbone.body.features.")]
    ours = [mine[n] for n in names]
    ours += [mine[n] for part in ("fc.", "extras.") for n in mine if n.startswith(part)]
    theirs = [n for n in state if n.startswith(("backbone.features.", "backbone.extra."))]
    assert len(ours) == len(theirs)
    state |= dict(zip(theirs, ours, strict=True))
    state["backbone.scale_weight"] = mine["l2_norm.scale"]
    for kind, head in (("classification", "class_heads."), ("regression", "box_heads.")):
        for n in mine:
            if n.startswith(head):
                state[f"head.{kind}_head.module_list.{n[len(head) :]}"] = mine[n]
    other.load_state_dict(state)

    images, targets = scene(300)
    truth = [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]
    with torch.no_grad():
        outputs = vgg(images)
        features = list(other.backbone(vgg.normalize(images)).values())
        raw = other.head(features)
        detections = other(list(images))
        other.train()
        losses = other(list(images), truth)
    torch.testing.assert_close(outputs.logits, raw["cls_logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.codes, raw["bbox_regression"], rtol=1e-4, atol=1e-4)
    terms = vgg.compute_loss(outputs, targets)
    torch.testing.assert_close(terms["classes"], losses["classification"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["boxes"], losses["bbox_regression"], rtol=1e-4, atol=1e-4)
    assert sum(len(d["boxes"]) for d in detections) > 10
    vgg.select.min_score = 0.3
    for a, b in zip(vgg.decode(outputs), detections, strict=True):
        torch.testing.assert_close(a.boxes, b["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(a.scores, b["scores"], rtol=1e-4, atol=1e-4)
        assert torch.equal(a.labels, b["labels"] - 1)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18", "darknet_tiny", "vit_small"])
def test_8732_boxes_at_300_pixels_with_any_backbone(backbone: str, build_model: Any) -> None:
    overrides = ["task=detection", "model=ssd", f"backbone={backbone}", "data=shapes"]
    model = build_model(*overrides, "data.image_size=300").eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 300, 300, dtype=torch.uint8))
    assert out.anchors.shape == (8732, 4)
    assert out.logits.shape == (1, 8732, 4)
    assert out.codes.shape == (1, 8732, 4)


def test_the_papers_network_has_its_number_of_parameters(build_model: Any) -> None:
    """torchvision's, for 91 classes with the background: 35,641,826."""
    with torch.device("meta"):
        overrides = ["task=detection", "model=ssd", "backbone=vgg16", "data=shapes"]
        model = build_model(*overrides, num_classes=90)
    assert sum(p.numel() for p in model.parameters()) == 35_641_826


@pytest.mark.parametrize("size", [64, 128, 300, 512, (96, 320)])
def test_maps_shrink_at_any_size(size: Any, build_model: Any) -> None:
    model = build_model("task=detection", "model=ssd", "backbone=darknet_tiny", "data=shapes")
    height, width = (size, size) if isinstance(size, int) else size
    out = model.eval()(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    sides = [(out.anchors[:, 2] - out.anchors[:, 0]), (out.anchors[:, 3] - out.anchors[:, 1])]
    assert float(sides[0].max()) <= width + 1e-3
    assert float(sides[1].max()) <= height + 1e-3
    center = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
    assert (center > 0).all()
    assert (center < torch.tensor([width, height])).all()


def test_l2_norm_by_hand() -> None:
    norm = L2Norm(2)
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([12.0, 16.0]))
    large = torch.full((1, 2, 1, 1), 3e4, dtype=torch.float16)  # whose square float16 cannot hold
    torch.testing.assert_close(norm(large).flatten(), torch.full((2,), 200.0**0.5))


def test_the_loss_equals_a_slow_one(build_model: Any) -> None:
    model = build_model(
        "task=detection", "model=ssd", "backbone=darknet_tiny", "data=shapes"
    ).eval()
    images, targets = scene(128)
    targets[0].ignore = torch.tensor([False, True, False])
    targets.append(Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)))
    with torch.no_grad():
        out = model(torch.cat([images, images[:1]]))
        terms = model.compute_loss(out, targets)
    total = boxes_loss = 0.0
    positives = 0
    kept = [targets[0].boxes[[0, 2]], targets[1].boxes, targets[2].boxes]
    labels = [[0, 1], [2], []]
    for image, (boxes, names) in enumerate(zip(kept, labels, strict=True)):
        iou = pairwise(boxes, out.anchors)
        answer = {}
        for a in range(len(out.anchors)):
            if len(boxes) and iou[:, a].max() >= 0.5:
                answer[a] = int(iou[:, a].argmax())
        for n in range(len(boxes)):
            answer[int(iou[n].argmax())] = n
        entropy = -out.logits[image].log_softmax(1)
        crowd = targets[0].boxes[1]
        candidates = []
        for a, anchor in enumerate(out.anchors):
            low, high = torch.maximum(anchor[:2], crowd[:2]), torch.minimum(anchor[2:], crowd[2:])
            inside = (high - low).clamp(min=0).prod() / (anchor[2:] - anchor[:2]).prod()
            if a not in answer and not (image == 0 and inside > 0.5):
                candidates.append(float(entropy[a, 0]))
        hardest = sorted(candidates, reverse=True)[: max(3, 3 * len(answer))]
        total += sum(hardest) + sum(float(entropy[a, names[n] + 1]) for a, n in answer.items())
        for a, n in answer.items():
            code = model.coder.encode(boxes[n], out.anchors[a])
            boxes_loss += float(smooth_l1(out.codes[image, a], code))
        positives += len(answer)
    assert int(terms["num_positives"]) == positives
    assert int(terms["num_objects"]) == 3
    assert float(terms["classes"]) == pytest.approx(total / positives, rel=1e-4)
    assert float(terms["boxes"]) == pytest.approx(boxes_loss / positives, rel=1e-4)


@pytest.mark.parametrize("name", ["ssd", "ssd_mobilenet"])
def test_the_loss_and_the_boxes_agree(name: str, build_model: Any) -> None:
    """Outputs of little loss decode to the boxes they were made from."""
    model = build_model("task=detection", f"model={name}", "data=shapes").eval()
    images, targets = scene(128)
    with torch.no_grad():
        out = model(images)
    logits, codes = torch.zeros_like(out.logits), torch.zeros_like(out.codes)
    logits[..., 0] = 12.0
    for i, target in enumerate(targets):
        index, _ = model.matcher(out.anchors, target.boxes)
        positive = (index >= 0).nonzero().flatten()
        logits[i, positive, 0] = 0.0
        logits[i, positive, target.labels[index[positive]] + 1] = 12.0
        codes[i, positive] = model.coder.encode(
            target.boxes[index[positive]], out.anchors[positive]
        )
    made = out._replace(logits=logits, codes=codes)
    assert sum(v for k, v in model.compute_loss(made, targets).items() if k[:3] != "num") < 1e-2
    for target, found in zip(targets, model.decode(made), strict=True):
        assert sorted(found.labels.tolist()) == sorted(target.labels.tolist())
        order = [found.labels.tolist().index(k) for k in target.labels.tolist()]
        torch.testing.assert_close(found.boxes[order], target.boxes, atol=1e-2, rtol=0)


def test_objects_too_many_and_images_too_thin(build_model: Any) -> None:
    model = build_model("task=detection", "model=ssd", "backbone=darknet_tiny", "data=shapes")
    corner = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 120
    crowd = Target(
        boxes=torch.cat([corner, corner + 3], dim=1), labels=torch.zeros(1000, dtype=torch.int64)
    )
    square = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    long = torch.zeros(1, 3, 1, 500, dtype=torch.uint8)
    for images, target in ((square, crowd), (long, Target())):
        terms, found = model.loss_and_predict(images, [target])
        assert all(torch.isfinite(v) for v in terms.values())
        assert (found[0].boxes[:, 3] <= images.shape[-2]).all()


def test_numbers_of_maps_that_differ_are_refused() -> None:
    with pytest.raises(
        ValueError, match="default boxes for 8 maps; 3 come from the backbone and 4"
    ):
        SSD(TimmBackbone("resnet18"), SmoothL1(), 3, scales=[0.1] * 9, ratios=[[2]] * 8)


# SSDLite ------------------------------------------------------------------------------------------


def test_ssdlite_has_3234_boxes_at_320_pixels(build_model: Any) -> None:
    model = build_model("task=detection", "model=ssd_mobilenet", "data=shapes").eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 320, 320, dtype=torch.uint8))
    assert out.anchors.shape == (3234, 4)
    assert sum(p.numel() for p in model.parameters()) < 4e6


def test_ssdlite_layers_equal_torchvisions(build_model: Any) -> None:
    model: SSDLite = build_model("task=detection", "model=ssd_mobilenet", "data=shapes")
    widths = [112, 960, 512, 256, 256, 128]
    head = SSDLiteHead(widths, [6] * 6, 4, NORM).eval()
    extras = nn.ModuleList(_extra_block(a, b, NORM) for a, b in neighbors(widths[1:]))
    mine = model.eval().state_dict()
    for part, other in (
        ("class_heads.", head.classification_head.module_list),
        ("box_heads.", head.regression_head.module_list),
        ("extras.", extras.eval()),
    ):
        other.load_state_dict({n[len(part) :]: v for n, v in mine.items() if n.startswith(part)})
    images = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(images)
        maps = model.backbone(model.normalize(images))[-2:]
        for extra in extras:
            maps.append(extra(maps[-1]))
        expected = head(maps)
    torch.testing.assert_close(out.logits, expected["cls_logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.codes, expected["bbox_regression"], rtol=1e-4, atol=1e-4)


def test_ssdlite_trains_on_one_image_whose_last_map_is_a_pixel(build_model: Any) -> None:
    model = build_model("task=detection", "model=ssd_mobilenet", "data=shapes").train()
    images, targets = scene(128)
    terms = model.loss(images[:1], targets[:1])
    assert all(torch.isfinite(v) for v in terms.values())
    lone, plain = NORM(4), nn.BatchNorm2d(4, eps=0.001, momentum=0.1)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(lone(x), plain(x))
    torch.testing.assert_close(lone.running_var, plain.running_var)
    pixel = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(
        lone(pixel), F.batch_norm(pixel, plain.running_mean, plain.running_var, eps=0.001)
    )
