"""Faster R-CNN: equal to torchvision's on copied weights, the papers' numbers, odd images."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.resnet import Bottleneck

from cvtrain.layers.roi_head import RandomRoIs
from cvtrain.layers.rpn import RPN
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.darknet19 import Darknet19
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.backbones.yolov1 import YOLOv1Backbone
from cvtrain.models.base import total_loss
from cvtrain.models.detection.coco_weights import translated
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.structures import Target

System = TypeVar("System", bound=FasterRCNN)

MANY = 1_000_000
DETECTIONS = 40
SIZE = (128, 192)


def reference(build: Callable[..., TorchvisionFasterRCNN]) -> TorchvisionFasterRCNN:
    """torchvision's for 3 classes, which counts every box and leaves the size of images alone."""
    torch.manual_seed(0)
    other = build(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=min(SIZE),
        max_size=max(SIZE),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=1000,
        rpn_batch_size_per_image=MANY,
        rpn_positive_fraction=1.0,
        box_batch_size_per_image=MANY,
        box_positive_fraction=1.0,
        box_detections_per_img=DETECTIONS,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in other.backbone.modules():  # untrained, it blows up what is rounded otherwise
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.1)
        for name, p in other.rpn.head.named_parameters():
            if "conv" not in name:
                p.add_(torch.randn(p.shape, generator=generator) * 0.004)
        for p in other.roi_heads.box_predictor.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.01)
    return other.eval()


def copied(system: type[System], theirs: TorchvisionFasterRCNN, **keywords: Any) -> System:
    """Ours with the reference's weights, set to count what it counts."""
    model = system(
        TimmBackbone("resnet50"),
        3,
        rpn=partial(RPN, sample=MANY, positive_fraction=1.0, candidates=(1000, 1000)),
        sampling=RandomRoIs(MANY, 1.0),
        min_score=0.05,
        max_detections=DETECTIONS,
        **keywords,
    )
    state = translated(theirs.state_dict())
    for name, background in (("head.codes", 4), ("masks.logits", 1)):  # not the background's
        for part in (f"{name}.weight", f"{name}.bias"):
            if part in state:
                state[part] = state[part][background:]
    model.load_state_dict(state, strict=False)
    assert model.state_dict().keys() - state.keys() == {"normalize.mean", "normalize.std"}
    return model.eval()


@pytest.fixture(scope="module")
def theirs() -> TorchvisionFasterRCNN:
    return reference(fasterrcnn_resnet50_fpn)


@pytest.fixture
def mine(theirs: TorchvisionFasterRCNN) -> FasterRCNN:
    return copied(FasterRCNN, theirs)


def scene() -> tuple[Tensor, list[Target]]:
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[10.0, 20.0, 90.0, 70.0], [60.0, 50.0, 84.0, 100.0], [5, 5, 12, 11]])
    return images, [
        Target(boxes=boxes, labels=torch.tensor([0, 2, 1])),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]


def test_equal_to_torchvision_on_copied_weights(
    theirs: TorchvisionFasterRCNN, mine: FasterRCNN
) -> None:
    assert_equal_to_reference(theirs, mine, *scene())


def assert_equal_to_reference(
    theirs: TorchvisionFasterRCNN, mine: FasterRCNN, images: Tensor, targets: list[Target]
) -> None:
    """Every loss term, box, score and class, and, where there are any, masks."""
    given = [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]  # type: ignore[operator]
    for theirs_of_image, target in zip(given, targets, strict=True):
        if target.masks is not None:
            theirs_of_image["masks"] = target.masks.to(torch.uint8)
    with torch.no_grad():
        outputs = mine(images)
        terms, found = mine.compute_loss(outputs, targets), mine.decode(outputs)
        detections = raw(theirs, images)
        for part in (theirs, theirs.rpn, theirs.roi_heads):  # batch norms as in eval
            part.training = True
        losses = theirs(list(images), given)
        for part in (theirs, theirs.rpn, theirs.roi_heads):
            part.training = False
    assert all(len(p) > 100 for p in outputs.proposals), [len(p) for p in outputs.proposals]
    for name, other in (
        ("objectness", "loss_objectness"),
        ("proposals", "loss_rpn_box_reg"),
        ("classes", "loss_classifier"),
        ("boxes", "loss_box_reg"),
        *([("masks", "loss_mask")] if "masks" in terms else []),
    ):
        torch.testing.assert_close(terms[name], losses[other], rtol=1e-4, atol=1e-4)
    assert len(losses) == len([name for name in terms if not name.startswith("num_")])
    assert terms["boxes"] > 1e-3
    for a, b in zip(found, detections, strict=True):
        alive = (a.boxes[:, 2:] - a.boxes[:, :2] >= 1e-2).all(dim=1)  # type: ignore[index]
        count = int(alive.sum())  # theirs drops what is thinner, ours what has no area
        assert count > 10
        torch.testing.assert_close(a.boxes[alive], b["boxes"][:count], rtol=1e-4, atol=1e-3)  # type: ignore[index]
        torch.testing.assert_close(a.scores[alive], b["scores"][:count], rtol=1e-4, atol=1e-4)  # type: ignore[index]
        assert torch.equal(a.labels[alive], b["labels"][:count] - 1)  # type: ignore[index]
        if a.mask_probs is not None:
            masks = b["masks"][:count, 0]
            assert masks.std() > 0.01
            torch.testing.assert_close(a.mask_probs[alive], masks, rtol=1e-4, atol=1e-4)


def raw(theirs: TorchvisionFasterRCNN, images: Tensor) -> list[dict[str, Tensor]]:
    """What the reference says of images, before it pastes masks into them."""
    inputs, _ = theirs.transform(list(images))
    maps = theirs.backbone(inputs.tensors)
    proposals, _ = theirs.rpn(inputs, maps)
    found, _ = theirs.roi_heads(maps, proposals, inputs.image_sizes)
    return found


def test_the_papers_vgg_network(build_model: Any) -> None:
    words = ["backbone=vgg16", "model.neck=c4", "model.top=backbone", "model.roi=pool"]
    with torch.device("meta"):
        model = build_model(
            *("task=detection", "model=faster_rcnn", "data=shapes", *words),
            "model.rpn.scales=[8,16,32]",
            num_classes=20,
        )
    # VGG-16 without its classifier, the proposing network, the two last layers: 137 M, as the
    # paper's Caffe model (which has 9 + 21 outputs more).
    rpn = 512 * (512 * 9 + 1) + (512 + 1) * 9 * 5
    top = (4096 + 1) * (21 + 80)
    assert sum(p.numel() for p in model.parameters()) == 134_260_544 + rpn + top == 137_057_234
    assert sum(p.numel() for p in model.rpn.parameters()) == rpn
    assert model.rpn.anchors.per_place == [9]
    assert model.pool.strides == [16]
    assert (model.pool.size, model.pool.method) == (7, "pool")


def test_a_vgg_map_of_a_600_by_1000_image_has_about_20000_anchors() -> None:
    """Section 3.1.1: W H k of a map of about 2,400 places; sides of table 1."""
    rpn = RPN(4, [16], scales=(8, 16, 32))
    out = rpn([torch.zeros(1, 4, 608 // 16, 1024 // 16)])
    assert out.counts == [38 * 64 * 9]
    sides = (out.anchors[:9, 2:] - out.anchors[:9, :2]).view(3, 3, 2)  # (ratios, scales, 2)
    assert sides[1].tolist() == [[128, 128], [256, 256], [512, 512]]
    assert sides[0, 2].tolist() == [724, 362]  # 736 x 384 in the paper, which rounds otherwise
    assert sides[2, 0].tolist() == [90, 182]


def test_the_parameters_of_resnet50_fpn(build_model: Any) -> None:
    with torch.device("meta"):
        model = build_model(
            "task=detection", "model=faster_rcnn", "backbone=resnet50", num_classes=90
        )
    # torchvision's for 91 classes has 41,755,286; its batch norms are frozen, and its background
    # has a box.
    count = sum(p.numel() for p in model.parameters())
    norms = sum(
        2 * m.weight.numel() for m in model.backbone.modules() if hasattr(m, "running_mean")
    )
    assert count - norms + 4 * 1025 == 41_755_286
    assert model.strides == [4, 8, 16, 32, 64]
    assert model.pool.strides == [4, 8, 16, 32]
    assert model.rpn.anchors.per_place == [3] * 5


@pytest.fixture
def small() -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(
        TimmBackbone("resnet18"),
        3,
        channels=32,
        hidden=(64,),
        rpn=partial(RPN, candidates=(200, 200), proposals=(100, 50)),
        sampling=RandomRoIs(32),
    )


def test_the_backbones_last_layers_run_on_regions() -> None:
    torch.manual_seed(0)
    model = FasterRCNN(
        TimmBackbone("resnet18"), 3, neck="c4", top="backbone", sampling=RandomRoIs(8)
    )
    images, targets = scene()
    total_loss(model.train().loss(images[..., :64, :64], targets)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert model.pool.size == 14
    whole = TimmBackbone("resnet18")
    whole.load_state_dict(model.backbone.state_dict())  # the same names
    with torch.no_grad():
        x = torch.rand(2, 3, 224, 224)
        *_, fine, coarse = whole.eval()(x)
        torch.testing.assert_close(model.eval().backbone(x)[-1], fine)
        torch.testing.assert_close(model.backbone.forward_tail(fine), coarse)  # of 14 x 14


def test_vggs_connected_layers_run_on_regions() -> None:
    with torch.device("meta"):
        model = FasterRCNN(TimmBackbone("vgg11"), 3, neck="c4", top="backbone")
        maps = model.maps(torch.zeros(2, 3, 96, 128))
        logits, codes = model.classify(maps, [torch.zeros(3, 4)] * 2)
    assert maps[0].shape == (2, 512, 6, 8)
    assert logits.shape == (6, 4)
    assert codes.shape == (6, 3, 4)


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "darknet", "darknet19", "yolov1"]
)
def test_what_comes_after_the_one_map_does_not_learn(name: str) -> None:
    own: dict[str, Callable[[], Backbone]] = {
        "darknet": lambda: DarknetTiny((4, 8, 16, 16, 32), (1,) * 5),
        "darknet19": Darknet19,
        "yolov1": lambda: YOLOv1Backbone(20),
    }
    with torch.device("meta"):
        backbone = own[name]() if name in own else TimmBackbone(name)
        model = FasterRCNN(backbone, 3, neck="c4", hidden=(8,))
        maps = model.maps(torch.zeros(1, 3, 64, 64))
    assert maps[0].shape == (1, model.map_channels, 4, 4)
    learn = [p for p in backbone.parameters() if p.requires_grad]
    found = torch.autograd.grad(maps[0].sum(), learn, allow_unused=True)
    assert all(g is not None for g in found)


def test_a_thousand_objects_and_other_bad_scenes(small: FasterRCNN) -> None:
    corner = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 120
    crowd = Target(
        boxes=torch.cat([corner, corner + 3], dim=1), labels=torch.zeros(1000, dtype=torch.int64)
    )
    for images, target in (
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), crowd),
        (torch.zeros(1, 3, 1, 500, dtype=torch.uint8), Target()),
    ):
        terms, found = small.loss_and_predict(images, [target])
        assert all(torch.isfinite(v) for v in terms.values())
        assert (found[0].boxes[:, 3] <= images.shape[-2]).all()  # type: ignore[index]
        total_loss(small.train().loss(images, [target])).backward()


def test_validation_repeats_itself_and_leaves_the_training_its_draws(small: FasterRCNN) -> None:
    images, targets = scene()
    state = torch.get_rng_state()
    first, _ = small.train().loss_and_predict(images, targets)
    second, _ = small.loss_and_predict(images, targets)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert small.loss(images, targets) != small.loss(images, targets)


def test_ignored_objects_are_no_objects(small: FasterRCNN) -> None:
    images, targets = scene()
    whole = Target(
        boxes=torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]]),
        labels=torch.tensor([1]),
        ignore=torch.tensor([True]),
    )
    outputs = small.eval()(images[:1])
    ignored, full = (small.compute_loss(outputs, [t]) for t in (whole, targets[0]))
    for name in ("proposals", "classes", "boxes", "num_objects", "num_positives"):
        assert ignored[name] == 0
        assert full[name] > 0


def test_proposals_carry_no_gradient(small: FasterRCNN) -> None:
    images, targets = scene()
    outputs = small.train()(images)
    assert not any(p.requires_grad for p in outputs.proposals)
    terms = small.compute_loss(outputs, targets)
    (terms["classes"] + terms["boxes"]).backward()
    assert small.rpn.codes.weight.grad is None


def test_bad_forms_are_refused() -> None:
    for backbone, keywords, text in (
        ("resnet18", {"neck": "p4"}, "neck=p4: expected c4 | fpn"),
        ("resnet18", {"top": "fc6"}, "top=fc6: expected fc | backbone"),
        ("resnet18", {"top": "backbone"}, "top=backbone needs neck=c4"),
        ("convnext_atto", {"top": "backbone", "neck": "c4"}, "the last layers of convnext_atto"),
        ("resnet18", {"roi": "max"}, "roi method max"),
        ("resnet18", {"roi_size": 0}, "roi size=0"),
        ("resnet18", {"neck": "c4", "channels": 64}, "channels=64 would not be read"),
        ("resnet18", {"neck": "c4", "top": "backbone", "hidden": [9]}, "hidden=[9] would not"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            FasterRCNN(TimmBackbone(backbone), 3, **keywords)  # type: ignore[arg-type]


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    words = ["model=faster_rcnn", "backbone=darknet_tiny", "model.channels=32"]
    words += ["model.hidden=[128,128]"]
    assert learn_photographs(real_data / "raccoon", *words, size=128, batch=4) >= 0.9
