"""The terminal, shared by the progress bar and everything that is said during a run."""

from __future__ import annotations

import logging

from cvtrain.terminal import Terminal

LOG = logging.getLogger("cvtrain")
"""What a run says: to the terminal on rank 0, and to train.log."""

_CONSOLE: Terminal | None = None


def console() -> Terminal:
    """The one console of this process: lines printed through it appear above a running bar."""
    global _CONSOLE
    if _CONSOLE is None:
        _CONSOLE = Terminal()
    return _CONSOLE


class ConsoleHandler(logging.Handler):
    """Prints log records; one whose ``fit`` is set is asked for what fits the terminal's width."""

    def emit(self, record: logging.LogRecord) -> None:
        fit = getattr(record, "fit", None)
        text = self.format(record) if fit is None else fit(console().width)
        console().print(text, soft_wrap=True)
