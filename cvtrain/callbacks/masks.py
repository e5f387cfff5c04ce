"""Class maps of an evaluation as PNG files, written while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from cvtrain.metrics.semantic_segmentation import (
    SemanticSegmentationMetrics,
    mask_file,
    must_keep_suffix,
)
from cvtrain.report.draw import save_mask
from cvtrain.structures import Batch
from cvtrain.tasks.base import Task


class MaskFiles(pl.Callback):
    """Writes every predicted class map, at the original's size, as the batch leaves the model.

    Every process writes its own images, and none keeps them. Tasks without class maps write none.

    Args:
        run: the run folder; the files lie in its ``masks``.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.keep_suffix = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if isinstance(pl_module.metrics, SemanticSegmentationMetrics):
            loader: Any = trainer.val_dataloaders
            table = loader.dataset.table
            self.keep_suffix = must_keep_suffix([table.files[i] for i in range(len(table))])
            pl_module.metrics.keep_suffix = self.keep_suffix

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Task)
        for prediction, info in zip(outputs["originals"], batch.infos, strict=True):
            if prediction.mask is not None:
                path = self.run / mask_file(info.file_name, self.keep_suffix)
                save_mask(path, prediction.mask.cpu(), pl_module.classes.names)
