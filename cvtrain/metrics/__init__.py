"""Metrics take predictions and truths, never a model; ``metrics_for`` picks a task's own."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from cvtrain.data.table import Classes
from cvtrain.errors import UsageError
from cvtrain.metrics.base import Metrics, Record

__all__ = ["Metrics", "Record", "metrics_for"]


def metrics_for(task: str, classes: Classes, **options: Any) -> Metrics:
    """The metrics of a task family, found by name: no list to keep.

    ``detection`` is ``cvtrain.metrics.detection.DetectionMetrics``, ``semantic_segmentation``
    would be ``cvtrain.metrics.semantic_segmentation.SemanticSegmentationMetrics``.

    Args:
        task: the name of a task family.
        classes: names and ids of the data.
        options: keywords of that class, e.g. ``backend="pycocotools"``.

    Raises:
        UsageError: no metrics exist for the task.
    """
    name = f"{__name__}.{task}"
    if not task.isidentifier() or importlib.util.find_spec(name) is None:
        raise UsageError(f"task {task!r} has no metrics: expected a module {name}")
    class_name = "".join(word.capitalize() for word in task.split("_")) + "Metrics"
    found = getattr(importlib.import_module(name), class_name, None)
    if found is None:
        raise UsageError(f"task {task!r} has no metrics: {name} defines no {class_name}")
    metrics: Metrics = found(classes, **options)
    return metrics
