"""SIGTERM and Ctrl-C end a run at once; what its last finished epoch left is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from cvtrain.engine.failures import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, both signals raise ``Interrupted`` in the main thread; the old handlers return."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    old = {number: signal.getsignal(number) for number in _SIGNALS}
    handler = _handler(os.getpid())
    for number in _SIGNALS:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)


def _handler(owner: int) -> Any:
    def handle(signum: int, frame: Any) -> None:
        if os.getpid() != owner:  # a forked loader process: die as if there were no handler
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        raise Interrupted(signum)

    return handle


class KeepSignals(pl.Callback):
    """Puts our handlers back where Lightning put its own.

    Lightning's SIGTERM handler finishes the batch and talks to the other processes from inside the
    handler, which can hang; here nothing needs finishing, as checkpoints are those of whole epochs.
    """

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()
