"""A progress bar in a terminal; elsewhere the line after each epoch is all there is."""

from __future__ import annotations

import time

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from cvtrain.callbacks.console import console
from cvtrain.callbacks.history import memory_gib
from cvtrain.errors import UsageError
from cvtrain.interrupt import hold
from cvtrain.tasks.base import Task
from cvtrain.tasks.distributed import world_size
from cvtrain.types import Batch


class ProgressBar(pl.Callback):
    """Epoch, batches, loss, the task's metric, images/s, memory and the time left of the epoch.

    Args:
        refresh_per_second: how often it is drawn; the loss is fetched from the device only then.

    Raises:
        UsageError: a rate that is not positive.
    """

    def __init__(self, refresh_per_second: float = 5.0) -> None:
        if refresh_per_second <= 0:
            raise UsageError(
                f"callbacks.progress.refresh_per_second={refresh_per_second}: expected more than 0"
            )
        self.interval = 1 / refresh_per_second
        self._bar: Progress | None = None
        self._row = TaskID(0)
        self._drawn = self._started = 0.0
        self._images = 0
        self._metric = ""

    def _open(self, trainer: pl.Trainer, label: str, total: float) -> None:
        self._close()
        if not (trainer.is_global_zero and console().is_terminal):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[said]}"),
            console=console(),
            auto_refresh=False,
            transient=True,
        )
        size = int(total) if total != float("inf") else None
        self._row = self._bar.add_task(label, total=size, said="")
        with hold():  # rich cannot stop what has half started
            self._bar.start()
        self._started = self._drawn = time.perf_counter()
        self._images = 0

    def _close(self) -> None:
        with hold():
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _step(self, said: str, completed: int) -> None:
        assert self._bar is not None
        with hold():
            self._bar.update(self._row, completed=completed, said=said, refresh=True)
        self._drawn = time.perf_counter()

    def _due(self) -> bool:
        return self._bar is not None and time.perf_counter() - self._drawn >= self.interval

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        label = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._open(trainer, label, trainer.num_training_batches)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, Task)
        self._images += len(batch) * world_size()
        if not self._due():
            return
        pl_module.train_sums.drain()
        speed = self._images / (time.perf_counter() - self._started)
        said = f"loss {pl_module.train_sums.latest:.4g}  {self._metric}"
        self._step(f"{said}{speed:.0f} images/s  {memory_gib():.1f} GiB", batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = trainer.num_val_batches
        total = sum(batches) if isinstance(batches, list) else batches
        self._open(trainer, "validation", total)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._images += len(batch) * world_size()
        if self._due():
            speed = self._images / (time.perf_counter() - self._started)
            self._step(f"{self._metric}{speed:.0f} images/s", batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._close()
        value = pl_module.results.get(pl_module.monitor)
        self._metric = "" if value is None else f"{pl_module.monitor} {value:.3f}  "

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()
