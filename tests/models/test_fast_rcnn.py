"""Fast R-CNN: the paper's numbers, its given boxes, odd ones among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cvtrain.layers.roi_head import RandomRoIs
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.base import total_loss
from cvtrain.models.detection.fast_rcnn import FastRCNN
from cvtrain.proposals.selective_search import selective_search, settings
from cvtrain.structures import Target


@pytest.fixture
def small() -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(TimmBackbone("resnet18"), 3, hidden=(64,))


def scene() -> tuple[Tensor, list[Target], list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 255, (2, 3, 96, 128), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[10.0, 20.0, 90.0, 70.0], [60.0, 50.0, 84.0, 90.0]])
    corner = torch.rand(300, 2, generator=generator) * 60
    side = 10 + torch.rand(300, 2, generator=generator) * 26
    proposals = torch.cat([corner, corner + side], dim=1)
    return images, [Target(boxes=boxes, labels=torch.tensor([0, 2])), Target()], [proposals] * 2


def test_the_papers_vgg_network(build_model: Any) -> None:
    with torch.device("meta"):
        model = build_model(
            *("task=detection", "model=fast_rcnn", "backbone=vgg16", "model.top=backbone"),
            num_classes=20,
        )
    # VGG-16 without its classifier, a layer for 21 classes and one for 4 x 20 numbers.
    count = sum(p.numel() for p in model.parameters())
    assert count == 134_260_544 + (4096 + 1) * (21 + 80) == 134_674_341
    assert (model.pool.size, model.pool.method, model.pool.strides) == (7, "pool", [16])
    sampling = model.stage.sampling
    assert (sampling.count, sampling.positive_fraction) == (64, 0.25)
    assert (model.stage.matcher.high, model.stage.background_iou) == (0.5, 0.1)
    assert model.stage.beta == 1.0


def test_shapes_and_the_terms(small: FastRCNN) -> None:
    images, targets, proposals = scene()
    outputs = small.eval()(images, proposals)
    assert outputs.maps[0].shape == (2, 256, 6, 8)
    logits, codes = small.classify(outputs.maps, proposals)
    assert logits.shape == (600, 4)
    assert codes.shape == (600, 3, 4)
    terms = small.train().loss(images, targets, proposals)
    assert set(terms) == {"classes", "boxes", "num_objects", "num_positives"}
    assert int(terms["num_objects"]) == 2


@pytest.mark.parametrize(
    "form",
    [
        {"roi": "align", "hidden": (64,)},
        {"neck": "fpn", "channels": 32, "hidden": (64,)},
        {"top": "backbone"},
    ],
)
def test_the_other_forms_learn_all_they_have(form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = FastRCNN(TimmBackbone("resnet18"), 3, sampling=RandomRoIs(8), **form)
    images, targets, proposals = scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total_loss(model.train().loss(images, targets, proposals)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())  # type: ignore[union-attr]


def test_only_objects_are_found_that_were_proposed(small: FastRCNN) -> None:
    """One box is given: predictions are that box, moved, once a class."""
    images, _, _ = scene()
    found = small.predict(images, [torch.tensor([[0.0, 0.0, 128.0, 96.0]])] * 2)
    assert all(len(p.labels) == len(p.labels.unique()) <= 3 for p in found)  # type: ignore[arg-type, union-attr]


def test_a_thousand_objects_and_other_bad_scenes(small: FastRCNN) -> None:
    corner = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 120
    crowd = Target(
        boxes=torch.cat([corner, corner + 3], dim=1), labels=torch.zeros(1000, dtype=torch.int64)
    )
    point = torch.tensor([[5.0, 0.5, 5.0, 0.5], [0.0, 0.0, 128.0, 1.0]])
    for images, target in (
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), crowd),
        (torch.zeros(1, 3, 1, 5000, dtype=torch.uint8), Target()),
    ):
        terms, found = small.loss_and_predict(images, [target], [point])
        assert all(torch.isfinite(v) for v in terms.values())
        assert (found[0].boxes[:, 3] <= images.shape[-2]).all()  # type: ignore[index]
        total_loss(small.train().loss(images, [target], [point])).backward()


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    found = learn_photographs(
        *(real_data / "raccoon", "model=fast_rcnn", "backbone=darknet_tiny"),
        "model.hidden=[256,256]",
        size=128,
        batch=4,
        propose=lambda image: selective_search(image, settings("fast")).boxes,
    )
    assert found >= 0.9
