"""What people's data do to detectors: no objects, tiny ones, a thousand, odd sizes, gray images.

Each yaml of a detector, with masks or without, is found: a new one needs no edit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cvtrain.models.base import total_loss
from cvtrain.structures import Prediction, Target
from tests.models.test_contract import MODELS, overrides

DETECTORS = {
    name: task
    for name, model in MODELS.items()
    for task in ("detection", "instance_segmentation")
    if task in model["tasks"]
}
detector = pytest.mark.parametrize("name", DETECTORS)


def target(boxes: Any, labels: Any = None, ignore: bool = False) -> Target:
    """Boxes (N, 4) of class 0, or of the classes given."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    kinds = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else labels
    return Target(boxes=boxes, labels=kinds, ignore=torch.full((len(boxes),), ignore))


def faults(model: Any, images: Tensor, targets: list[Target], classes: int) -> list[str]:
    """Train on a batch and predict on it: what is not finite, or not inside."""
    found = faults_of_training(model, images, targets)
    given = proposals(model, images, targets)
    predictions = model.loss_and_predict(images, targets, given)[1]
    if len(predictions) != len(images):
        found.append(f"{len(predictions)} predictions")
    height, width = images.shape[-2:]
    return found + [f for p in predictions for f in faults_of_prediction(p, height, width, classes)]


def faults_of_training(model: Any, images: Tensor, targets: list[Target]) -> list[str]:
    """Terms and gradients of a step that are not finite."""
    for t in targets:
        t.masks = drawn(t, *images.shape[-2:])
    terms = model.train().loss(images, targets, proposals(model, images, targets))
    found = [name for name, v in terms.items() if v.ndim != 0 or not torch.isfinite(v)]
    total_loss(terms).backward()
    return found + [n for n, p in model.named_parameters() if not _finite(p.grad)]


def proposals(model: Any, images: Tensor, targets: list[Target]) -> list[Tensor] | None:
    """For a model that is given its boxes."""
    if not MODELS[model.yaml_name].get("proposals"):
        return None
    return [boxes_around(t, *images.shape[-2:]) for t in targets]


def drawn(what: Target, height: int, width: int) -> Tensor:
    """Masks (N, height, width): the pixels whose center is in a box, of thin ones none."""
    assert what.boxes is not None
    x1, y1, x2, y2 = what.boxes[:, :, None].unbind(1)  # (N, 1) each
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None]


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


def boxes_around(what: Target, height: int, width: int) -> Tensor:
    """Proposals: the objects, the image, a grid; in the image, at least a pixel wide."""
    assert what.boxes is not None
    whole = torch.tensor([[0.0, 0.0, width, height]])
    ys, xs = torch.meshgrid(torch.arange(0, height, 16), torch.arange(0, width, 16), indexing="ij")
    corners = torch.stack([xs, ys], -1).reshape(-1, 2).float()
    grid = torch.cat([corners, corners + 24], 1)
    boxes = torch.cat([what.boxes[:50], whole, grid])
    low = torch.minimum(boxes[:, :2], whole[0, 2:] - 1).clamp(min=0)
    high = torch.minimum(torch.maximum(boxes[:, 2:], low + 1), whole[0, 2:])
    return torch.cat([low, high], 1)


def faults_of_prediction(
    prediction: Prediction, height: int, width: int, classes: int
) -> list[str]:
    boxes, scores, labels = prediction.boxes, prediction.scores, prediction.labels
    if boxes is None or scores is None or labels is None:
        return ["no boxes, scores or labels"]
    sound = {
        "boxes are finite": torch.isfinite(boxes),
        "scores are finite": torch.isfinite(scores),
        "boxes are inside": (boxes >= 0) & (boxes <= torch.tensor([width, height] * 2)),
        "labels are classes": (labels >= 0) & (labels < classes),
    }
    masks = prediction.mask_probs
    if masks is not None:
        sound["masks are finite"] = torch.isfinite(masks)
        sound["boxes have a mask"] = torch.tensor(len(masks) == len(boxes))
    return [f"not all {what}" for what, fine in sound.items() if not fine.all()]


def noise(count: int, height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def make(build_model: Any) -> Any:
    def build(name: str, *words: str, size: str = "64", num_classes: int = 3) -> Any:
        words = (*overrides(name, DETECTORS[name]), f"data.image_size={size}", *words)
        model = build_model(*words, num_classes=num_classes)
        model.yaml_name = name
        return model

    return build


def test_there_are_detectors() -> None:
    assert {"yolo", "ssd", "retinanet", "fcos", "mask_rcnn"} <= {*DETECTORS}


@detector
def test_objects_of_every_size_and_number(name: str, make: Any) -> None:
    """One model through all of it, as one training would."""
    model = make(name)
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(1000, 2, generator=generator) * 60
    crowd = torch.cat([corners, corners + 3.5], 1)
    kinds = torch.randint(0, 3, (1000,), generator=generator)
    batches = {
        "nothing": [target([]), target([])],
        "ignored alone": [target([[4, 4, 40, 40]], ignore=True), target([])],
        "less than a stride": [target([[3.2, 3.2, 3.6, 3.6]]), target([[9, 9, 10, 10]])],
        "a thousand": [target(crowd, kinds), target([])],
        "1 x 5,000 pixels in a letterbox": [
            target([[0, 31.9936, 40, 32.0064]]),
            target([[31.9936, 0, 32.0064, 64]]),
        ],
        "at the border": [target([[63.5, 63.5, 64, 64]]), target([[0, 0, 64, 64]])],
        "the same twice": [target([[8, 8, 40, 40]] * 2, torch.tensor([0, 1])), target([])],
    }
    for what, targets in batches.items():
        model.zero_grad()
        assert not faults_of_training(model, noise(2), targets), what


@detector
@pytest.mark.parametrize(("height", "width"), [(97, 97), (100, 260)])
def test_odd_sizes(name: str, height: int, width: int, make: Any) -> None:
    model = make(name, size=f"[{height},{width}]")
    images = noise(2, height, width)
    assert not faults(model, images, [target([[10, 10, 60, 80]]), target([])], 3)


@detector
@pytest.mark.parametrize("classes", [1, 90])
def test_one_class_and_ninety(name: str, classes: int, make: Any) -> None:
    model = make(name, num_classes=classes)
    last = torch.tensor([classes - 1])
    assert not faults(model, noise(2), [target([[10, 10, 40, 50]], last), target([])], classes)


@detector
def test_gray_images(name: str, make: Any) -> None:
    model = make(name, "data.channels=1")
    assert not faults(model, noise(2, channels=1), [target([[10, 10, 40, 50]]), target([])], 3)
