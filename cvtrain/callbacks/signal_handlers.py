"""Signals during Lightning's loops: they end a run at once; its finished epochs are whole."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytorch_lightning as pl

from cvtrain.signals import SIGNALS, raise_if_received


class KeepSignals(pl.Callback):
    """Puts our handlers back where Lightning put its own.

    Lightning's SIGTERM handler finishes the batch and talks to the other processes from inside the
    handler, which can hang; here nothing needs finishing, as checkpoints are those of whole epochs.
    A signal that a library swallowed ends the run at the next batch.
    """

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_train_batch_start(self, *_: Any) -> None:
        raise_if_received()

    def on_validation_batch_start(self, *_: Any) -> None:
        raise_if_received()
