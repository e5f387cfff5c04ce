"""SIGTERM and Ctrl-C in the process that runs a job: once, as an exception in its main thread.

A terminal and a batch system send a signal to every process of a job. Only this one answers; those
that it starts leave signals to it (``cvtrain.data.process``).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

PATIENCE_SECONDS = 2.0
"""A signal so soon after the first is the same wish, sent twice, and does not disturb the ending;
a later one is of somebody who waits too long."""


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C; ``code`` is the exit code (143 or 130)."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


class _State:
    received: int | None = None  # the first signal since `interruptible` was entered
    at = 0.0  # seconds, monotonic
    held = 0  # how many `hold` the main thread is in
    waiting = False  # a signal came meanwhile


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, both signals raise ``Interrupted`` in the main thread; the old handlers return."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    _State.received, _State.waiting = None, False
    old = {number: signal.getsignal(number) for number in SIGNALS}
    handler = _handler(os.getpid())
    for number in SIGNALS:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        _State.received, _State.waiting = None, False


def _handler(owner: int) -> Any:
    def handle(signum: int, frame: Any) -> None:
        if os.getpid() != owner:  # forked by others: die as if there were no handler
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        now = time.monotonic()
        if _State.received is None:
            _State.received, _State.at = signum, now
        elif now - _State.at < PATIENCE_SECONDS:
            return
        if _State.held:
            _State.waiting = True
            return
        raise Interrupted(_State.received)

    return handle


@contextmanager
def hold() -> Iterator[None]:
    """A signal that comes inside is heard at the end: for what must not be left half done.

    To be held for moments only. Does nothing in other threads than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.waiting and not _State.held:
            _State.waiting = False
            raise_if_received()


def raise_if_received() -> None:
    """Raise again what a library swallowed (Python ignores exceptions in a ``__del__``)."""
    if _State.received is not None:
        raise Interrupted(_State.received)


def exit_code(error: BaseException) -> int | None:
    """130 or 143 if a signal is why a job ends with ``error``, else None.

    Any error after a signal is a consequence of it: another process of the job may have ended
    first, and this one has lost contact.
    """
    if isinstance(error, Interrupted):
        return error.code
    if isinstance(error, Exception) and _State.received is not None:
        return 128 + _State.received
    return None
