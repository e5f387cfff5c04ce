"""Semantic segmentation: the class of every pixel, scored at the original's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cvtrain.errors import RunError
from cvtrain.tasks.base import Task
from cvtrain.types import ImageInfo, Prediction


class SemanticSegmentationTask(Task):
    """Predictions are ``mask`` ``(H, W)``, and ``logits`` ``(K, H, W)`` to resize them by.

    Metrics compare with the mask as it lies on disk, at the original's size, so that a number does
    not depend on ``data.image_size`` by its resolution alone. The letterbox is cut off, the logits
    are interpolated to the original's pixels and the largest is taken there: outlines come out
    smooth, where resized classes would come out as steps. A prediction without logits (a model
    that decides on classes itself) is resized by its nearest pixels.
    """

    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        if info.placement is None or prediction.mask is None:
            raise ValueError(f"{info.file_name}: a mask and the image's placement are needed")
        if prediction.logits is not None:
            if not bool(torch.isfinite(prediction.logits).all()):
                raise RunError(
                    f"the model's logits for {info.file_name} are not finite: training has "
                    "diverged; lower optimizer.lr, or set trainer.precision=32-true"
                )
            mask = info.placement.logits_to_original(prediction.logits.float())
        else:
            mask = info.placement.mask_to_original(prediction.mask)
        return replace(prediction, mask=mask, logits=None)

    def originals(
        self, predictions: Sequence[Prediction], infos: Sequence[ImageInfo]
    ) -> list[Prediction]:
        """On the device: a class map crosses to the CPU, not the logits of all classes."""
        pairs = zip(predictions, infos, strict=True)
        return [self.to_original(p, info).cpu() for p, info in pairs]
