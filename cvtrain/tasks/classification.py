"""Image classification: one class per image, told by probabilities."""

from __future__ import annotations

from cvtrain.structures import ImageInfo, Prediction
from cvtrain.tasks.base import Task


class ClassificationTask(Task):
    """Predictions are class probabilities ``probs`` ``(K,)``: the same at any image size."""

    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        return prediction
