"""Semantic segmentation: the class of every pixel, scored at the original's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cvtrain.data.table import Classes
from cvtrain.errors import UsageError
from cvtrain.metrics.base import Metrics
from cvtrain.models.base import Model
from cvtrain.models.segmentation.inference import Inference, check_finite
from cvtrain.optim.optimizers import Factory
from cvtrain.structures import Batch, ImageInfo, Prediction, Target
from cvtrain.tasks.base import Task
from cvtrain.transfer.regimes import Transfer


class SemanticSegmentationTask(Task):
    """Predictions are ``mask`` ``(H, W)``, and ``logits`` ``(K, H, W)`` to resize them by.

    Metrics compare with the mask as it lies on disk, at the original's size, so that a number does
    not depend on ``data.image_size`` by its resolution alone. The letterbox is cut off, the logits
    are interpolated to the original's pixels and the largest is taken there: outlines come out
    smooth, where resized classes would come out as steps. A prediction without logits (a model
    that decides on classes itself) is resized by its nearest pixels.

    ``inference`` says how an image is shown to the network, see models/segmentation/inference.py.
    Of whole images and tiles nothing is resized at all.
    """

    def __init__(
        self,
        model: Model,
        classes: Classes,
        metrics: Metrics,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | None,
        monitor: str,
        mode: str,
        name: str,
        optimizer_factory: Factory | None = None,
        channels_last: bool = False,
        transfer: Transfer | None = None,
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model,
            classes,
            metrics,
            optimizer,
            scheduler,
            monitor,
            mode,
            name,
            optimizer_factory,
            channels_last,
            transfer,
        )
        try:
            self.inference = Inference(**(inference or {}))
        except (TypeError, ValueError) as error:
            raise UsageError(f"task.inference: {error}") from error
        self.inference.check(model)

    def evaluate_batch(
        self, batch: Batch
    ) -> tuple[dict[str, Tensor], list[Prediction], list[Prediction]]:
        if self.inference.plain:
            return super().evaluate_batch(batch)
        if self.inference.native:
            terms, message = self._native(batch, batch.targets)
            return terms, message, message
        terms, _ = self.model.loss_and_predict(batch.images, batch.targets, batch.proposals)
        predictions = self._fitted(batch)
        return terms, predictions, self.to_original_batch(predictions, batch.infos)

    def predict_batch(self, batch: Batch) -> list[Prediction]:
        if self.inference.plain:
            return super().predict_batch(batch)
        if self.inference.native:
            return self._native(batch, None)[1]
        return self.to_original_batch(self._fitted(batch), batch.infos)

    def _native(
        self, batch: Batch, truths: list[Target] | None
    ) -> tuple[dict[str, Tensor], list[Prediction]]:
        """Loss terms and class maps of images as they are on disk."""
        if batch.proposals is not None:
            raise UsageError("task.inference.mode=fit is what a model that is given boxes takes")
        names = [info.file_name for info in batch.infos]
        terms, masks = self.inference.masks(self.model, batch.images, names, truths)
        pairs = zip(masks, batch.infos, strict=True)  # a smaller image was padded to the others'
        return terms, [Prediction(mask=mask[: i.height, : i.width]) for mask, i in pairs]

    def _fitted(self, batch: Batch) -> list[Prediction]:
        """Fitted images, looked at several times."""
        if batch.proposals is not None:
            raise UsageError(
                "task.inference.flip and scales are not for a model that is given boxes"
            )
        maps = self.inference.logits(self.model, batch.images)
        return [Prediction(mask=logits.argmax(dim=0), logits=logits) for logits in maps]

    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        if info.placement is None or prediction.mask is None:
            raise ValueError(f"{info.file_name}: a mask and the image's placement are needed")
        if prediction.logits is not None:
            check_finite(prediction.logits, [info.file_name])
            mask = info.placement.logits_to_original(prediction.logits.float())
        else:
            mask = info.placement.mask_to_original(prediction.mask).to(torch.uint8)
        return replace(prediction, mask=mask, logits=None)

    def to_original_batch(
        self, predictions: Sequence[Prediction], infos: Sequence[ImageInfo]
    ) -> list[Prediction]:
        """On the device, where they are counted; whoever draws one takes it from there."""
        pairs = zip(predictions, infos, strict=True)
        return [self.to_original(p, info) for p, info in pairs]
