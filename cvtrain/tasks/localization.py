"""Classification and localization: one class and one box an image, in several guesses."""

from __future__ import annotations

from dataclasses import replace

from cvtrain.structures import ImageInfo, Prediction
from cvtrain.tasks.base import Task


class LocalizationTask(Task):
    """Predictions are guesses, best first: ``boxes``, ``scores``, ``labels``; and ``probs``."""

    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        if info.placement is None or prediction.boxes is None:
            raise ValueError(f"{info.file_name}: boxes and the image's placement are needed")
        return replace(prediction, boxes=info.placement.boxes_to_original(prediction.boxes.float()))
