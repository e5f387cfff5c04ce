"""Multi-label classification: any number of classes an image, each with a probability."""

from __future__ import annotations

from cvtrain.structures import ImageInfo, Prediction
from cvtrain.tasks.base import Task


class MultilabelClassificationTask(Task):
    """Predictions are ``probs`` ``(K,)``, each class by itself: the same at any image size."""

    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        return prediction
