"""Random detection and classification sets, and the slow ways to score them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.metrics.base import Metrics
from cvtrain.structures import ImageInfo, Prediction, Target


@dataclass
class Scene:
    """A set of images with predictions and truths, and the classes they are of."""

    classes: Classes
    predictions: list[Prediction]
    truths: list[Target]
    infos: list[ImageInfo]

    def feed(self, metrics: Metrics, rows: Any = None, batch: int = 3) -> Metrics:
        rows = list(range(len(self.infos)) if rows is None else rows)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            metrics.update(
                [self.predictions[i] for i in part],
                [self.truths[i] for i in part],
                [self.infos[i] for i in part],
            )
        return metrics


def boxes_tensor(boxes: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(boxes, np.float32).reshape(-1, 4))


@pytest.fixture
def build() -> SimpleNamespace:
    """Short ways to write predictions, truths and image infos."""

    def prediction(boxes: Any, scores: Any, labels: Any = None) -> Prediction:
        labels = [0] * len(scores) if labels is None else labels
        return Prediction(
            boxes=boxes_tensor(boxes),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.int64),
        )

    def truth(boxes: Any, labels: Any = None, ignore: Any = None, areas: Any = None) -> Target:
        boxes = boxes_tensor(boxes)
        labels = [0] * len(boxes) if labels is None else labels
        return Target(
            boxes=boxes,
            labels=torch.tensor(labels, dtype=torch.int64),
            ignore=None if ignore is None else torch.tensor(ignore, dtype=torch.bool),
            areas=None if areas is None else torch.tensor(areas, dtype=torch.float64),
        )

    def info(index: int, image_id: Any = None, height: int = 480, width: int = 640) -> ImageInfo:
        name = f"images/{index:04}.jpg"
        return ImageInfo(index, name if image_id is None else image_id, name, height, width)

    return SimpleNamespace(prediction=prediction, truth=truth, info=info, scene=Scene)


@pytest.fixture
def random_scene() -> Callable[..., Scene]:
    """Detections that are hits, near misses, doubles and strays, of all sizes, with tied scores."""

    def make(
        seed: int,
        images: int = 12,
        classes: int = 4,
        ignored: float = 0.15,
        ids: list[Any] | None = None,
        unused_class: bool = True,
        detections: int = 12,
    ) -> Scene:
        rng = np.random.default_rng(seed)
        used = classes - 1 if unused_class and classes > 1 else classes
        predictions, truths, infos = [], [], []
        for i in range(images):
            n = 0 if i % 5 == 3 else int(rng.integers(1, 7))
            corner = rng.uniform(0, 400, (n, 2))
            size = np.exp(rng.uniform(np.log(6), np.log(230), (n, 2)))
            gt = np.concatenate([corner, corner + size], axis=1)
            gt_labels = rng.integers(0, used, n)
            m = 0 if i % 7 == 5 else detections
            if n:
                source = rng.integers(0, n, m)
                side = (gt[source, 2:] - gt[source, :2]).repeat(2, axis=1)
                noise = rng.normal(0, 1, (m, 4)) * side * rng.choice([0, 0.04, 0.15], (m, 1))
                dt = gt[source] + noise
                labels = np.where(
                    rng.random(m) < 0.8, gt_labels[source], rng.integers(0, classes, m)
                )
            else:
                dt, labels = rng.uniform(0, 300, (m, 4)), rng.integers(0, classes, m)
            dt[:, 2:] = np.maximum(dt[:, 2:], dt[:, :2] + 1)
            scores = rng.integers(1, 20, m) / 20  # many ties, within and between images
            predictions.append(
                Prediction(
                    boxes=boxes_tensor(dt),
                    scores=torch.tensor(scores, dtype=torch.float32),
                    labels=torch.tensor(labels),
                )
            )
            area = (gt[:, 2] - gt[:, 0]) * (gt[:, 3] - gt[:, 1]) * rng.uniform(0.5, 1, n)
            area[rng.random(n) < 0.3] = np.nan
            truths.append(
                Target(
                    boxes=boxes_tensor(gt),
                    labels=torch.tensor(gt_labels),
                    ignore=torch.tensor(rng.random(n) < ignored),
                    areas=torch.tensor(area),
                )
            )
            name = f"images/{i:03}.jpg"
            infos.append(ImageInfo(i, name if ids is None else ids[i], name, 640, 640))
        table = Classes(
            tuple(f"class {k}" for k in range(classes)), tuple(7 * k + 3 for k in range(classes))
        )
        return Scene(table, predictions, truths, infos)

    return make


@pytest.fixture
def score_files() -> Callable[[Path, Path], np.ndarray]:
    """What anyone would do with the two files: pycocotools' twelve numbers."""

    def score(predictions: Path, ground_truth: Path, iou_type: str = "bbox") -> np.ndarray:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(ground_truth))
            evaluator = COCOeval(truth, truth.loadRes(str(predictions)), iouType=iou_type)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return np.asarray(evaluator.stats, np.float64)

    return score


@pytest.fixture
def read_json() -> Callable[[Path], Any]:
    return lambda path: json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def slow_voc() -> Callable[[Scene], dict[str, float]]:
    """AP50 by the development kit's description, one detection and one annotation at a time."""
    return _slow_voc


def _slow_voc(scene: Scene) -> dict[str, float]:
    all_points, eleven_points = [], []
    order = sorted(range(len(scene.infos)), key=lambda i: scene.infos[i].image_id)
    for k in range(len(scene.classes)):
        detections = []
        for i in order:
            prediction = scene.predictions[i]
            for box, score, label in zip(
                prediction.boxes.double().tolist(),
                prediction.scores.double().tolist(),
                prediction.labels.tolist(),
                strict=True,
            ):
                if label == k:
                    detections.append((score, i, box))
        objects: dict[int, list[dict[str, Any]]] = {i: [] for i in order}
        positives = 0
        for i in order:
            truth = scene.truths[i]
            for box, label, ignore in zip(
                truth.boxes.double().tolist(),
                truth.labels.tolist(),
                truth.ignore.tolist(),
                strict=True,
            ):
                if label == k:
                    objects[i].append({"box": box, "difficult": ignore, "found": False})
                    positives += not ignore
        if not positives:
            continue
        true = false = 0
        curve = []
        for _, i, box in sorted(detections, key=lambda d: -d[0]):  # stable, as MATLAB's sort is
            best, best_iou = None, -1.0
            for candidate in objects[i]:
                iou = _iou(box, candidate["box"])
                if iou > best_iou:
                    best, best_iou = candidate, iou
            if best is not None and best_iou >= 0.5:
                if best["difficult"]:
                    continue
                if best["found"]:
                    false += 1
                else:
                    best["found"] = True
                    true += 1
            else:
                false += 1
            curve.append((true, true / (true + false)))
        area, last = 0.0, 0
        for n, (found, _) in enumerate(curve):
            if found > last:
                area += max(p for _, p in curve[n:]) / positives
                last = found
        all_points.append(area)
        levels = [
            max((p for found, p in curve if found * 10 >= t * positives), default=0.0)
            for t in range(11)
        ]
        eleven_points.append(sum(levels) / 11)
    return {
        "voc_mAP50": sum(all_points) / len(all_points),
        "voc07_mAP50": sum(eleven_points) / len(eleven_points),
    }


def _iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
