"""The terminal, shared by the progress bar and everything that is said during a run."""

from __future__ import annotations

import logging

from rich.console import Console

LOG = logging.getLogger("cvtrain")
"""What a run says: to the terminal on rank 0, and to train.log."""

_CONSOLE: Console | None = None


def console() -> Console:
    """The one console of this process: lines printed through it appear above a running bar."""
    global _CONSOLE
    if _CONSOLE is None:
        _CONSOLE = Console(highlight=False)
        if not _CONSOLE.is_terminal:
            _CONSOLE.width = 120  # a file has no width; tables keep their columns
    return _CONSOLE


class ConsoleHandler(logging.Handler):
    """Prints log records as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), markup=False, soft_wrap=True)
