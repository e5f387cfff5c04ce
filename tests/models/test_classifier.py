"""The classifier equals timm's own on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from cvtrain.losses.focal import FocalLoss
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.backbones.yolov1 import YOLOv1Backbone
from cvtrain.models.classification.classifier import Classifier
from cvtrain.structures import Target

# Convolutional networks with a head of their own between maps and classifier, a class token, a mean
# of tokens, NHWC maps.
FAMILIES = [
    "resnet18",
    "convnext_atto",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "regnetx_002",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_timm_on_copied_weights(name: str) -> None:
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=5).eval()
    ours = Classifier(TimmBackbone(name), nn.CrossEntropyLoss(), 5).eval()
    classifier = reference.get_classifier()
    ours.fc.load_state_dict(classifier.state_dict())
    theirs = reference.state_dict()
    heads = {k for k, v in theirs.items() if v is classifier.weight or v is classifier.bias}
    wanted = ours.backbone.body.state_dict()
    ours.backbone.body.load_state_dict({k: theirs[k] for k in wanted if k not in heads})
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images), reference(ours.normalize(images)), rtol=1e-5, atol=1e-5
        )


def test_probabilities_and_loss_by_hand() -> None:
    model = Classifier(YOLOv1Backbone(layers=20), nn.CrossEntropyLoss(label_smoothing=0.1), 4)
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    targets = [Target(label=torch.tensor(0)), Target(label=torch.tensor(3))]
    log_p = logits.log_softmax(1)
    want = -(0.9 * torch.stack([log_p[0, 0], log_p[1, 3]]) + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(model.compute_loss(logits, targets), {"classes": want})
    found = model.decode(logits)
    torch.testing.assert_close(found[0].probs, logits[0].softmax(0))
    assert found[0].boxes is None


def test_the_pretraining_network_of_yolo_at_224(build_model: Any) -> None:
    """20 convolutions, average pooling, one connected layer (section 2.2)."""
    with torch.device("meta"):
        model = build_model(
            "task=classification", "backbone=yolov1_20", "data.image_size=224", num_classes=1000
        )
        out = model(torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
    assert out.shape == (2, 1000)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 20
    assert sum(p.numel() for p in model.parameters()) == 22_403_136 + 1025 * 1000


def test_focal_loss_serves() -> None:
    model = Classifier(YOLOv1Backbone(layers=20), FocalLoss(), 4)
    targets = [Target(label=torch.tensor(1))] * 2
    terms = model.compute_loss(torch.randn(2, 4), targets)
    assert terms["classes"] > 0


def test_a_target_without_label_is_refused() -> None:
    model = Classifier(YOLOv1Backbone(layers=20), nn.CrossEntropyLoss(), 4)
    with pytest.raises(ValueError, match="without a label"):
        model.compute_loss(torch.zeros(1, 4), [Target()])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int) -> None:
    backbone = TimmBackbone("resnet18", in_channels=channels)
    model = Classifier(backbone, nn.CrossEntropyLoss(), 3)
    images = torch.zeros(2, channels, 64, 64, dtype=torch.uint16)
    assert model.predict(images)[0].probs.shape == (3,)
