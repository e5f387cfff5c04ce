"""Validation images with the predictions beside the ground truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from cvtrain.callbacks.loggers import PictureLogger
from cvtrain.errors import UsageError
from cvtrain.structures import Batch, ImageInfo, Prediction, Target
from cvtrain.tasks.base import Task

PICTURES = 8
"""Images that are drawn unless one says otherwise."""


class Pictures(pl.Callback):
    """Draws images of the validation set after the last evaluation, or every few epochs.

    They lie evenly in the set's order, so that those of folders are not all of one class.

    Args:
        count: images.
        every_n_epochs: also to the loggers every so many epochs; None: at the end alone.

    Attributes:
        path: the PNG, set by the engine; None: nothing is drawn.

    Raises:
        UsageError: a count or a number of epochs below 1.
    """

    def __init__(self, count: int = PICTURES, every_n_epochs: int | None = None) -> None:
        if count < 1:
            raise UsageError(f"callbacks.pictures.count={count}: expected 1 or more")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise UsageError(
                f"callbacks.pictures.every_n_epochs={every_n_epochs}: expected 1 or more, or null"
            )
        self.count = count
        self.every_n_epochs = every_n_epochs
        self.path: Path | None = None
        self._samples: list[tuple[np.ndarray, Prediction, Target, ImageInfo]] = []
        self._wanted: set[int] = set()
        self._seen = 0

    def _due(self, trainer: pl.Trainer) -> bool:
        if self.path is None or not trainer.is_global_zero:
            return False
        if trainer.state.fn != "fit":
            return True
        every = self.every_n_epochs
        return every is not None and (trainer.current_epoch + 1) % every == 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._samples = []
        self._seen = 0
        loader: Any = trainer.val_dataloaders
        # This process's share: beside a batch sampler, the loader's own sampler is the whole set.
        sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
        length = len(sampler)
        rows = np.linspace(0, length - 1, min(self.count, length)).round()
        self._wanted = {int(row) for row in rows}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        places = [k for k in range(len(batch)) if self._seen + k in self._wanted]
        self._seen += len(batch)
        if not places or not self._due(trainer):
            return
        assert isinstance(pl_module, Task)
        assert batch.truths is not None
        images = displayable(batch.pictures(places))
        for image, k in zip(images, places, strict=True):
            prediction = replace(outputs["originals"][k], logits=None).cpu()  # large, not drawn
            info = batch.infos[k]
            self._samples.append((_placed(image, info), prediction, batch.truths[k], info))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if trainer.state.fn == "fit" and self._samples and self.path is not None:
            self.draw(pl_module)
            log_picture(trainer.loggers, "predictions", self.path, trainer.global_step)

    def draw(self, task: Task) -> None:
        """Draw what the last validation collected, on rank 0.

        Raises:
            RunError: the file cannot be written.
        """
        if not self._samples or self.path is None:
            return
        from cvtrain.report.plots import plot_predictions

        images, predictions, targets, infos = zip(*self._samples, strict=True)
        names = task.classes.names
        plot_predictions(images, predictions, targets, names, self.path, infos=infos)
        self._samples = []


def _placed(image: np.ndarray, info: ImageInfo) -> np.ndarray:
    """The part of the network's input ``(H, W, 3)`` that the file's image lies in, a copy."""
    place = info.placement
    if place is None:
        return image.copy()
    top, left = round(place.shift_y), round(place.shift_x)
    height = max(1, round(place.height * place.scale_y))
    width = max(1, round(place.width * place.scale_x))
    return image[top : top + height, left : left + width].copy()


def log_picture(loggers: list[Any], name: str, path: Path, step: int) -> None:
    """Give a PNG to those loggers that take pictures."""
    takers = [logger for logger in loggers if isinstance(logger, PictureLogger)]
    if takers:
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))
        for logger in takers:
            logger.log_picture(name, image, step)


def displayable(images: Tensor) -> np.ndarray:
    """``(B, C, H, W)`` images of any dtype and channels -> ``(B, H, W, 3)`` uint8.

    uint8 stays as it is; anything else is stretched, image by image, to 0..255. One channel is
    shown as gray; of two or more than three, the first (three) are shown.
    """
    channels = images.shape[1]
    images = images[:, :3] if channels >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if images.dtype != torch.uint8:
        flat = images.double().flatten(1)  # (B, 3 H W)
        low, high = flat.amin(1), flat.amax(1)
        scale = 255 / (high - low).clamp(min=1e-12)
        shape = (-1, 1, 1, 1)
        images = ((images.double() - low.view(shape)) * scale.view(shape)).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, W, 3)
