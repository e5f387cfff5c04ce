"""What one-stage detectors share: half floats, images without anything to learn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cvtrain.models.base import total_loss


@pytest.mark.parametrize(
    "name",
    [
        "ssd",
        "ssd_mobilenet",
        "retinanet",
        "fcos",
        "faster_rcnn",
        "yolox",
        "yolov2",
        "yolo9000",
        "rt_detr",
    ],
)
def test_bfloat16_gives_finite_gradients_and_float32_results(
    name: str, build_model: Any, make_batch: Any
) -> None:
    model = build_model("task=detection", f"model={name}", "data=shapes", "data.image_size=64")
    images, targets = make_batch("detection", [2, 0, 1, 4], 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model.train().loss(images, targets)
        total_loss(terms).backward()
        _, found = model.loss_and_predict(images, targets)
    assert all(torch.isfinite(v) for v in terms.values())
    bad = [n for n, p in model.named_parameters() if not torch.isfinite(p.grad).all()]
    assert not bad
    assert {p.boxes.dtype for p in found} == {p.scores.dtype for p in found} == {torch.float32}


@pytest.mark.parametrize("name", ["ssd", "ssd_mobilenet", "retinanet", "fcos", "yolox", "rt_detr"])
def test_ignored_objects_are_no_objects(name: str, build_model: Any, make_batch: Any) -> None:
    """Marked as such, they leave the counts, and a loss that is not that of an empty image."""
    model = build_model("task=detection", f"model={name}", "data=shapes", "data.image_size=64")
    images, targets = make_batch("detection", [2], 64)
    with torch.no_grad():
        outputs = model.eval()(images)
    targets[0].boxes[0] = torch.tensor([0.0, 0.0, 64.0, 64.0])
    targets[0].ignore[:] = True
    ignored = model.compute_loss(outputs, targets)
    assert ignored["num_objects"] == ignored["num_positives"] == 0
    assert ignored["boxes"] == 0
    for field in ("boxes", "labels", "ignore"):
        setattr(targets[0], field, getattr(targets[0], field)[:0])
    empty = model.compute_loss(outputs, targets)
    # The term that tells objects from the background: YOLOX's classes are of objects alone.
    term = "objectness" if "objectness" in empty else "classes"
    assert ignored[term] <= empty[term]
    if name in (
        "retinanet",
        "fcos",
        "yolox",
        "rt_detr",
    ):  # every place counts: fewer of them, less of a loss
        assert ignored[term] < empty[term]
