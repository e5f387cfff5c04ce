"""Instance segmentation: objects with a mask, a box, a class and a score each."""

from __future__ import annotations

from dataclasses import replace

import torch

from cvtrain.metrics.base import as_array, check_finite
from cvtrain.structures import ImageInfo, Prediction
from cvtrain.tasks.base import Task
from cvtrain.tasks.paste_masks import paste_rles


class InstanceSegmentationTask(Task):
    """Predictions: ``boxes`` ``(N, 4)``, ``scores``, ``labels``, and ``mask_probs`` ``(N, m, m)``.

    Metrics compare masks at the original's size, as COCO does. A box is brought to the original's
    pixels first and its mask is sampled there, one at a time, and turned into RLE at once: what a
    large image with many objects takes is its runs, never N masks of its size.
    """

    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        place = info.placement
        if place is None or prediction.boxes is None or prediction.mask_probs is None:
            raise ValueError(
                f"{info.file_name}: boxes, mask_probs and the image's placement are needed"
            )
        boxes = prediction.boxes.float()
        check_finite(boxes.numpy(), "boxes", info)
        # The mask lies over the whole box: what of it lies beyond the image is cut off after.
        whole = place.boxes_to_original(boxes.double(), clip=False)
        probs = as_array(prediction.mask_probs, "Prediction.mask_probs", torch.float32)
        if probs.ndim != 3 or len(probs) != len(boxes):
            raise ValueError(
                f"{info.file_name}: mask_probs of shape {probs.shape} for {len(boxes)} boxes, "
                "expected (N, m, m)"
            )
        check_finite(probs, "masks", info)
        rles = paste_rles(probs, whole.numpy(), place.height, place.width)
        return replace(prediction, boxes=place.boxes_to_original(boxes), mask_probs=None, rles=rles)
