"""Instance segmentation metrics: COCO's of masks and of boxes, kept as RLE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from cvtrain.metrics.base import Record
from cvtrain.metrics.coco import coco_evaluate
from cvtrain.metrics.detection import (
    DetectionMetrics,
    PackedBoxes,
    PackedTruth,
    pack_detections,
)
from cvtrain.metrics.worst import worst_images
from cvtrain.structures import RLE, ImageInfo, Prediction, Target

BOXES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR100")
"""What is said of the boxes; of the masks all twelve numbers are."""


@dataclass(frozen=True)
class PackedMasks(PackedBoxes):
    """The predictions of one image.

    Attributes:
        counts: of each mask's compressed RLE, whose size is the image's.
    """

    counts: tuple[str, ...]


@dataclass(frozen=True)
class PackedMaskTruth(PackedTruth):
    """The annotations of one image.

    Attributes:
        counts: of each mask's compressed RLE, whose size is the image's.
    """

    counts: tuple[str, ...]


class InstanceSegmentationMetrics(DetectionMetrics):
    """mask mAP and box mAP over the whole set, all in 0..1.

    Scalars, in this order: ``mask_mAP mask_mAP50 mAP mAP50``, then the rest of COCO's twelve for
    masks (``mask_mAP75 mask_mAP_small ... mask_AR_large``) and of the boxes' those of ``BOXES``.
    Crowd and difficult objects are no objects, and matches with them no mistakes: of a crowd region
    the share of the prediction that lies in it counts. Classes without ground truth are left out of
    every mean and named in the notes. Without any ground truth (of that size) a value is NaN; with
    ground truth and no prediction it is 0.

    Masks are compared at the original's size, as runs of pixels: what is kept of an image goes by
    the length of its outlines, never by its area. What is small, medium or large goes by the
    annotation's area, for a prediction by its box's: pycocotools on the written files says the same
    digits.

    ``details()`` has ``per_class``, ``notes``, ``pr_curves`` (of masks at IoU 0.5), ``confusion``
    (matched by masks) with its labels and thresholds, as detection has, and ``worst``, the ten
    images with the least panoptic quality at these thresholds.

    Args:
        classes: names and ids.
        backend: ``faster_coco_eval`` (several times faster) or ``pycocotools``; equal to 1e-9.

    Raises:
        UsageError: an unknown backend.
    """

    def shown(self, index: int) -> tuple[Prediction, Target]:
        """What was predicted on an image that was seen, and its truth, in original pixels."""
        record = self._records[index]
        predicted: PackedMasks = record.predicted
        annotated: PackedMaskTruth = record.annotated
        return (
            Prediction(
                boxes=torch.from_numpy(predicted.boxes),
                scores=torch.from_numpy(predicted.scores),
                labels=torch.from_numpy(predicted.labels).long(),
                rles=_rles(predicted.counts, record.info),
            ),
            Target(
                boxes=torch.from_numpy(annotated.boxes),
                labels=torch.from_numpy(annotated.labels).long(),
                ignore=torch.from_numpy(annotated.ignore),
                rles=_rles(annotated.counts, record.info),
            ),
        )

    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> PackedMasks:
        boxes = super()._pack_prediction(prediction, info)
        counts = _counts(prediction.rles, "Prediction.rles", len(boxes.scores), info)
        return PackedMasks(**vars(boxes), counts=counts)

    def _pack_truth(self, truth: Target, info: ImageInfo) -> PackedMaskTruth:
        boxes = super()._pack_truth(truth, info)
        counts = _counts(truth.rles, "Target.rles", len(boxes.labels), info)
        return PackedMaskTruth(**vars(boxes), counts=counts)

    def _packed_entries(self, predicted: PackedBoxes, info: ImageInfo) -> Iterator[dict[str, Any]]:
        assert isinstance(predicted, PackedMasks)
        entries = super()._packed_entries(predicted, info)
        for entry, rle in zip(entries, _rles(predicted.counts, info), strict=True):
            yield {**entry, "segmentation": rle}

    def _truth_entries(self, annotated: PackedTruth, info: ImageInfo) -> Iterator[dict[str, Any]]:
        assert isinstance(annotated, PackedMaskTruth)
        entries = super()._truth_entries(annotated, info)
        for entry, rle in zip(entries, _rles(annotated.counts, info), strict=True):
            yield {**entry, "segmentation": rle}

    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        records = sorted(records, key=lambda record: record.info.image_id)
        data = replace(
            pack_detections(records, len(self.classes)),
            rles=[rle for r in records for rle in _rles(r.predicted.counts, r.info)],
            gt_rles=[rle for r in records for rle in _rles(r.annotated.counts, r.info)],
        )
        masks = coco_evaluate(data, self.backend, "segm")
        boxes = coco_evaluate(data, self.backend, "bbox")
        of_masks = {f"mask_{name}": value for name, value in masks.summary().items()}
        of_boxes = {name: boxes.summary()[name] for name in BOXES}
        both = of_masks | of_boxes
        first = ("mask_mAP", "mask_mAP50", "mAP", "mAP50")
        scalars = {name: both.pop(name) for name in first} | both
        columns = {f"mask_{name}": values for name, values in masks.per_class().items()}
        columns |= {name: boxes.per_class()[name] for name in ("AP", "AP50")}
        details = self._details(data, masks, columns)
        details["pr_curves"]["of"] = "masks"
        details["worst"] = worst_images(data, [record.info for record in records])
        return scalars, details


def _counts(rles: list[RLE] | None, what: str, count: int, info: ImageInfo) -> tuple[str, ...]:
    """The counts of masks that are checked to be one an object, of the image's size."""
    if rles is None:
        raise ValueError(f"{what} is None, but this metric needs it")
    if len(rles) != count:
        raise ValueError(f"{info.file_name}: {len(rles)} {what} for {count} boxes")
    size = [info.height, info.width]
    if other := [rle["size"] for rle in rles if list(rle["size"]) != size]:
        raise ValueError(f"{info.file_name}: {what} of size {other[0]}, the image is {size}")
    return tuple(rle["counts"] for rle in rles)


def _rles(counts: tuple[str, ...], info: ImageInfo) -> list[RLE]:
    return [{"size": [info.height, info.width], "counts": text} for text in counts]
