"""A progress bar in a terminal; elsewhere the line after each epoch is all there is."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from cvtrain.callbacks.console import console
from cvtrain.callbacks.metrics_csv import History, memory_gib, speed
from cvtrain.distributed import world_size
from cvtrain.errors import UsageError
from cvtrain.signals import hold
from cvtrain.structures import Batch
from cvtrain.tasks.base import Task
from cvtrain.text import duration, fitting, three_digits


class _Times(ProgressColumn):
    """How long what is counted has taken and will take."""

    def render(self, task: RichTask) -> Text:
        left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
        return Text(f"batches  {_clock(task.elapsed or 0.0)} passed{left}")


def _clock(seconds: float) -> str:
    """``2:05``, ``1:02:05``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Bar(Progress):
    """A bar with the time of what it counts, and a line of one's own below it.

    Attributes:
        below: the line's parts, the most important first; what the terminal has no room for is
            left out.
    """

    def __init__(self) -> None:
        self.below: list[str] = []
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Times(),
            console=console(),
            auto_refresh=False,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.below:
            yield fitting(self.below, self.console.width)


class ProgressBar(pl.Callback):
    """Epoch and batches with the epoch's time passed and left; below, the run's, and how it goes.

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
        self._bar: _Bar | None = None
        self._row = TaskID(0)
        self._drawn = self._started = self._epoch = self._estimate = 0.0
        self._images = 0
        self._metric: list[str] = []

    def _open(self, trainer: pl.Trainer, label: str, total: float) -> None:
        self._close()
        if not (trainer.is_global_zero and console().is_terminal):
            return
        self._bar = _Bar()
        size = int(total) if total != float("inf") else None
        self._row = self._bar.add_task(label, total=size)
        with hold():  # rich cannot stop what has half started
            self._bar.start()
        self._started = self._drawn = time.perf_counter()
        self._images = 0

    def _close(self) -> None:
        with hold():
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _step(self, parts: list[str], completed: int) -> None:
        assert self._bar is not None
        self._bar.below = parts
        with hold():
            self._bar.update(self._row, completed=completed, refresh=True)
        self._drawn = time.perf_counter()

    def _due(self) -> bool:
        return self._bar is not None and time.perf_counter() - self._drawn >= self.interval

    def _speed(self) -> str:
        return speed(self._images / (time.perf_counter() - self._started))

    def _run(self, trainer: pl.Trainer, share: float | None = None) -> list[str]:
        """How long the run has taken and will take; ``share`` of the epoch's batches are done."""
        history = next((c for c in trainer.callbacks if isinstance(c, History)), None)  # type: ignore[attr-defined]
        if history is None or trainer.state.fn != "fit":
            return []
        spent = time.perf_counter() - self._epoch
        message = f"run: {duration(history.seconds + spent)} passed"
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        if share:
            self._estimate = spent / share  # its validation is not known yet
        left = history.left(epochs, max(spent, self._estimate))
        assert left is not None
        return [f"{message}, {duration(max(0.0, left - spent))} left"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch = time.perf_counter()
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
        run = self._run(trainer, (batch_idx + 1) / trainer.num_training_batches)
        loss = f"loss {three_digits(pl_module.train_sums.latest)}"
        more = [*self._metric, self._speed(), f"{memory_gib():.1f} GiB"]
        self._step([*run, loss, *more], batch_idx + 1)

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
            self._step([*self._run(trainer), *self._metric, self._speed()], batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._close()
        value = pl_module.results.get(pl_module.monitor)
        self._metric = [] if value is None else [f"{pl_module.monitor} {value:.3f}"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()
