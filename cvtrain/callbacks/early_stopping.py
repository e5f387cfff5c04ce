"""Stop when the task's own metric no longer improves."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from cvtrain.errors import UsageError
from cvtrain.tasks.base import Task


class EarlyStopping(pl.Callback):
    """Counts validated epochs without an improvement of ``task.monitor``.

    Args:
        patience: so many stop the run; None: never.
        min_delta: the least change that is an improvement.

    Raises:
        UsageError: a patience below 1 or a negative min_delta.
    """

    def __init__(self, patience: int | None = None, min_delta: float = 0.0) -> None:
        if patience is not None and patience < 1:
            raise UsageError(f"callbacks.early_stopping.patience={patience}: expected 1 or more")
        if min_delta < 0:
            raise UsageError(f"callbacks.early_stopping.min_delta={min_delta}: expected 0 or more")
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        """Whether the patience is over."""
        return self.patience is not None and self.waited >= self.patience

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if pl_module.monitor not in pl_module.results:
            return  # this epoch was not validated
        value = pl_module.results[pl_module.monitor]
        if improves(value, self.best, pl_module.mode, self.min_delta):
            self.best, self.best_epoch, self.waited = value, trainer.current_epoch, 0
        else:
            self.waited += 1
        if self.exhausted:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self.best_epoch = state_dict.get("best_epoch")  # checkpoints of before have none

    def reason(self, monitor: str) -> str:
        """Why the run stops: ``mAP50 has not been better than 0.51 (epoch 7) since, ...``."""
        where = "" if self.best_epoch is None else f" of epoch {self.best_epoch + 1}"
        best = "nothing" if self.best is None else f"{self.best:.4f}"
        least = f" by more than {self.min_delta:g}" if self.min_delta else ""
        times = "once" if self.waited == 1 else f"{self.waited} times"
        return (
            f"{monitor} was validated {times} without being better than the {best}{where}{least} "
            f"(callbacks.early_stopping.patience={self.patience})"
        )


def improves(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether ``value`` is better than ``best``; NaN is better than nothing and than no number."""
    if best is None:
        return True
    if value != value:
        return False
    if best != best:
        return True
    return value > best + min_delta if mode == "max" else value < best - min_delta
