"""checkpoints/best.ckpt and last.ckpt, written at the end of epochs, beside and renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from cvtrain.callbacks.early_stopping import improves
from cvtrain.storage import replacing
from cvtrain.tasks.base import Task


class BestAndLast(Checkpoint):
    """Saves after every epoch, once its validation is done; never in the middle of one.

    A run that is killed goes on from its last finished epoch. ``best.ckpt`` is that of the epoch
    with the best ``task.monitor``; where no epoch was validated there is none.

    Args:
        folder: where the two files go.
        header: goes into each checkpoint as ``checkpoint["cvtrain"]``: plain dicts and lists.
    """

    def __init__(self, folder: str | Path, header: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.header = header
        self.best: float | None = None
        self.best_epoch: int | None = None

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """The checkpoint of the last finished epoch."""
        return self.folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        value = pl_module.results.get(pl_module.monitor)
        best = value is not None and improves(value, self.best, pl_module.mode)
        if best:
            self.best, self.best_epoch = value, trainer.current_epoch
        first = self.best_path if best else self.last_path
        trainer.save_checkpoint(first)
        if best and trainer.is_global_zero:
            _same_file(self.best_path, self.last_path)
        trainer.strategy.barrier("checkpoints")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Task)
        checkpoint["cvtrain"] = {**self.header, "metrics": dict(pl_module.results)}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


def _same_file(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``; both are only ever replaced."""
    with replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, partial)
