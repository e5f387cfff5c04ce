"""What a run says, where; and which messages of the libraries are left out, and why."""

from __future__ import annotations

import logging
import logging.handlers
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvtrain.callbacks.console import LOG, ConsoleHandler
from cvtrain.text import printable_lines

# (regular expression at the start of the message, why it is left out)
_SILENCED = (
    (r".*does not have many workers", "data.num_workers is the user's choice or one a core"),
    (r".*The number of training batches .* is smaller than the logging interval",
     "metrics are logged by the epoch"),
    (r".*Checkpoint directory .* exists", "the run folder is ours"),
    (r".*Found \d+ module\(s\) in eval mode", "frozen parts of a model are meant to be"),
    (r".*`isinstance\(treespec, LeafSpec\)` is deprecated", "Lightning's own use of torch"),
    (r".*Trying to infer the `batch_size` from an ambiguous collection",
     "values that are logged are means over the whole set already"),
    (r".*It is recommended to use `self.log\(.*sync_dist=True", "every process has the same value"),
    (r".*Starting from v1.9.0, `tensorboardX` has been removed", "loggers are the user's choice"),
    (r".*You are using `torch.load` with `weights_only=False`", "it is not used here"),
    (r".*barrier\(\): using the device under current context", "one process uses one device"),
    (r".*lr_scheduler.step\(\)` before `optimizer.step\(\)",
     "16-bit training skips steps whose gradients overflow"),
    (r".*`training_step` returned `None`", "a head that is fitted has no steps"),
    (r".*`LightningModule.configure_optimizers` returned `None`", "and no optimizer"),
    (r".*Grad strides do not match bucket view strides", "channels_last weights under DDP"),
)  # fmt: skip
_QUIET_LOGGERS = (
    # "GPU available", "TPU available", tips, "Trainer.fit stopped": the run says what it does.
    "pytorch_lightning",
    "lightning.pytorch",
    "lightning_fabric",
    "lightning.fabric",
    # The rank's store and socket chatter; errors still come.
    "torch.distributed",
)


def quiet_libraries() -> None:
    """Leave out the libraries' messages that say nothing to a user."""
    for pattern, _ in _SILENCED:
        warnings.filterwarnings("ignore", message=pattern)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


class RunLog:
    """Sends what is said to the terminal, and to train.log once the folder is there."""

    def __init__(self) -> None:
        self._memory = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
        self._file: logging.Handler | None = None

    def open(self, path: Path) -> None:
        """Write everything said so far, and all that follows, to ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _LogFile(path, encoding="utf-8")
        self._file.setFormatter(_Printable("%(asctime)s  %(levelname)s  %(message)s"))
        self._memory.setTarget(self._file)
        self._memory.flush()
        LOG.addHandler(self._file)
        LOG.removeHandler(self._memory)


def log_quietly(text: str) -> None:
    """Put what was shown already into train.log alone."""
    for line in text.rstrip().splitlines():
        record = LOG.makeRecord(LOG.name, logging.INFO, "", 0, line, (), None)
        for handler in LOG.handlers:
            if not isinstance(handler, ConsoleHandler):
                handler.handle(record)


class _Printable(logging.Formatter):
    """Lines that may be shown in a terminal, whatever the names in them hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _LogFile(logging.FileHandler):
    """A log that a full disk stops without a traceback: the run's own files report that."""

    def handleError(self, record: logging.LogRecord) -> None:
        LOG.removeHandler(self)
        LOG.warning(f"cannot write {self.baseFilename}; nothing more is logged there")


@contextmanager
def run_log(speaks: bool) -> Iterator[RunLog]:
    """Logging of one run; only the process that ``speaks`` says anything."""
    quiet_libraries()
    log = RunLog()
    old = LOG.level, LOG.propagate, list(LOG.handlers)
    LOG.handlers = [ConsoleHandler(), log._memory] if speaks else [logging.NullHandler()]
    LOG.propagate = False
    LOG.setLevel(logging.INFO)
    try:
        yield log
    finally:
        for handler in LOG.handlers:
            handler.close()
        LOG.level, LOG.propagate = old[0], old[1]
        LOG.handlers = old[2]
