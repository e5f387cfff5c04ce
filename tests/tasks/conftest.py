"""A detector of a few weights, and batches, with nothing else of cvtrain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cvtrain.data.table import Classes
from cvtrain.metrics import metrics_for
from cvtrain.models.base import Model
from cvtrain.structures import Batch, ImageInfo, Placement, Prediction, Target
from cvtrain.tasks.classification import ClassificationTask
from cvtrain.tasks.detection import DetectionTask


class TinyDetector(Model):
    """Predicts the box [0, 0, w, h] with learned w, h, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor([8.0, 8.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.size * images.float().mean().clamp(min=1) ** 0

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        wanted = torch.stack([t.boxes[0, 2:] for t in targets])
        error = (outputs - wanted) / 10
        return {
            "w": error[:, 0].square().mean(),
            "h": error[:, 1].square().mean(),
            "num_objects": torch.tensor(float(sum(len(t.boxes) for t in targets))),
        }

    def decode(self, outputs: Tensor) -> list[Prediction]:
        box = torch.cat([torch.zeros(2), outputs.detach()])[None]
        one = Prediction(boxes=box, scores=torch.tensor([0.9]), labels=torch.tensor([0]))
        return [one for _ in range(2)]


@pytest.fixture
def classes() -> Classes:
    return Classes.from_names(["thing", "other"])


@pytest.fixture
def make_task(classes: Classes) -> Callable[..., DetectionTask]:
    def make(model: Model | None = None, **changes: object) -> DetectionTask:
        arguments = {
            "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0},
            "scheduler": {"name": "none"},
            "monitor": "mAP50",
            "mode": "max",
            "name": "detection",
            **changes,
        }
        metrics = metrics_for("detection", classes)
        return DetectionTask(model or TinyDetector(), classes, metrics, **arguments)

    return make


@pytest.fixture
def classification_task(classes: Classes) -> ClassificationTask:
    return ClassificationTask(
        TinyDetector(),
        classes,
        metrics_for("classification", classes),
        {"name": "sgd", "lr": 0.1},
        None,
        "accuracy",
        "max",
        "classification",
    )


@pytest.fixture
def batch() -> Batch:
    """Two images of 40 x 20 (H x W), letterboxed into 32 x 32 by 0.8 with 8 pixels at the left."""
    place = Placement(0.8, 0.8, 8.0, 0.0, height=40, width=20)
    infos = [ImageInfo(i, f"{i}.png", f"{i}.png", 40, 20, place) for i in range(2)]
    network = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    target = Target(boxes=network, labels=torch.tensor([0]), ignore=torch.tensor([False]))
    truth = Target(
        boxes=place.boxes_to_original(network),
        labels=torch.tensor([0]),
        ignore=torch.tensor([False]),
        areas=torch.tensor([100.0], dtype=torch.float64),
    )
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    return Batch(images, [target, target], infos, [truth, truth])
