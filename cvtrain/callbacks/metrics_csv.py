"""metrics.csv: one row an epoch; the line that is said after each; the time limit."""

from __future__ import annotations

import csv
import functools
import io
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT

from cvtrain.callbacks.console import LOG
from cvtrain.callbacks.early_stopping import improves
from cvtrain.distributed import broadcast, world_size
from cvtrain.storage import write_atomic
from cvtrain.structures import Batch
from cvtrain.tasks.base import Task
from cvtrain.text import duration, fitting, three_digits

Row = dict[str, float]

LOG_EVERY_STEPS = 50
"""Steps between two points of the training loss in the loggers."""

_RECENT = 5
"""Finished epochs whose mean says how long the next will take."""


class History(pl.Callback):
    """Keeps a row an epoch and writes all rows after each, so that a resume can rewrite them.

    Columns: ``epoch`` (from 0), ``train/...`` and ``val/...`` losses, counts and metrics, ``lr``
    at the end of the epoch, and ``seconds`` of the epoch with its validation: all but the last are
    the same in a run that was killed and resumed. Loggers get images/s and memory too.

    Args:
        path: where metrics.csv goes.
        max_minutes: stop after the epoch in which so many are over; None: no limit.

    Attributes:
        before: seconds of training work before the first epoch: features that are computed once, a
            head that is fitted to them.
    """

    def __init__(self, path: str | Path, max_minutes: float | None = None) -> None:
        self.path = Path(path)
        self.max_minutes = max_minutes
        self.rows: list[Row] = []
        self.before = 0.0
        self._images = 0
        self._started = self._trained = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent in finished epochs and before them, that of earlier starts included."""
        return self.before + sum(row["seconds"] for row in self.rows)

    @property
    def time_is_over(self) -> bool:
        """Whether ``max_minutes`` are over."""
        return self.max_minutes is not None and self.seconds >= 60 * self.max_minutes

    @property
    def why_over(self) -> str:
        """Why the time is over; empty if it is not."""
        if not self.time_is_over:
            return ""
        taken = f"{self.seconds / 60:.3g} minutes were trained"
        return f"{taken} (trainer.max_minutes={self.max_minutes:g})"

    def left(self, epochs: int, epoch_seconds: float | None = None) -> float | None:
        """Seconds that so many epochs more will take, ``max_minutes`` at most; None: not known.

        ``epoch_seconds`` is an estimate of one epoch for a run that has finished none.
        """
        recent = [row["seconds"] for row in self.rows[-_RECENT:]]
        each = sum(recent) / len(recent) if recent else epoch_seconds
        if each is None:
            return None
        if self.max_minutes is None:
            return each * epochs
        return max(0.0, min(each * epochs, 60 * self.max_minutes - self.seconds))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.rows:
            self._write()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images = 0
        self._started = self._trained = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, Task)
        self._images += len(batch)
        self._trained = time.perf_counter()
        if trainer.loggers and trainer.global_step % LOG_EVERY_STEPS == 0:
            pl_module.train_sums.drain()
            values = {"train/loss_step": pl_module.train_sums.latest}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        row: Row = {"epoch": trainer.current_epoch}
        row |= {f"train/{k}": v for k, v in pl_module.train_results().items()}
        row |= {f"val/{k}": v for k, v in pl_module.results.items()}
        row["lr"] = pl_module.learning_rate()
        training = max(1e-9, self._trained - self._started)
        row["seconds"] = time.perf_counter() - self._started
        self.rows.append(row)
        rate = {"images_per_s": self._images * world_size() / training}
        if broadcast(self.time_is_over):  # clocks differ between processes
            trainer.should_stop = True
        if trainer.is_global_zero:
            self._write()
            parts = epoch_parts(self.rows, pl_module.monitor, pl_module.mode, trainer.max_epochs)
            epochs = 0 if trainer.should_stop else (trainer.max_epochs or 0) - len(self.rows)
            parts += self._time_parts(epochs, rate["images_per_s"])
            LOG.info("  ".join(parts), extra={"fit": functools.partial(fitting, parts)})
            if not math.isfinite(row.get("val/loss", 0.0)):
                LOG.warning("the validation loss is not finite: an image's loss overflows")
        for logger in trainer.loggers:
            values = {**row, **rate, "memory_gib": memory_gib()}
            logger.log_metrics(values, step=trainer.global_step)

    def _time_parts(self, epochs: int, images_per_s: float) -> list[str]:
        """Of the line after an epoch, how long the run and the epoch took; ``epochs`` are left."""
        left = self.left(epochs)
        parts = [f"run {duration(left)} left"] if left and epochs > 0 else []
        parts += [
            f"epoch {duration(self.rows[-1]['seconds'])}",
            f"run {duration(self.seconds)} passed",
        ]
        return [*parts, speed(images_per_s)]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows], "before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.before = float(state_dict.get("before", 0.0))  # checkpoints of before have none

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, lambda file: file.write(text.getvalue()))


def epoch_parts(rows: Sequence[Row], monitor: str, mode: str, last: int | None) -> list[str]:
    """What is said after an epoch, the most important first: where it stands, losses, the metric.

    Args:
        rows: of the epochs so far, the last of them this one.
        monitor: the metric that decides.
        mode: ``max`` or ``min``, which of two values is better.
        last: the number of epochs of the run.
    """
    row = rows[-1]
    parts = [f"epoch {int(row['epoch']) + 1:>{len(str(last))}}/{last}"]
    parts.append(f"loss {three_digits(row['train/loss'])}")
    if "val/loss" in row:
        parts.append(f"val loss {three_digits(row['val/loss'])}")
    key = f"val/{monitor}"
    if key in row:
        best: float | None = None
        for value in (r[key] for r in rows[:-1] if key in r):
            best = value if improves(value, best, mode) else best
        better = improves(row[key], best, mode)
        if best is None and mode == "max" and not row[key] > 0:
            better = False  # better than nothing in name alone
        parts.append(f"{monitor} {row[key]:.4f}{' (best)' if better else ''}")
    return parts


def speed(images_per_s: float) -> str:
    """``412 images/s``, ``0.3 images/s``."""
    return f"{images_per_s:.{0 if images_per_s >= 10 else 1}f} images/s"


def memory_gib() -> float:
    """The most memory held so far: of the GPU where one is used, otherwise of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return float(torch.cuda.max_memory_reserved() / 2**30)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return float(peak / (2**30 if sys.platform == "darwin" else 2**20))
