"""SIGTERM, Ctrl-C and a closed terminal in the process that runs a command.

While a job works, a signal is an exception in the main thread, once. Before (imports) and after
(the interpreter's end) there is nothing to save: the process leaves at once, with a line.

A terminal and a batch system send a signal to every process of a job. Only this one answers; those
that it starts leave signals to it (``cvtrain.data.worker``).
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

PATIENCE_SECONDS = 2.0
"""A signal so soon after the first is the same wish, sent twice, and does not disturb the ending;
a later one is of somebody who waits too long."""

_AGAIN_SECONDS = 0.05
"""How soon a signal is sent once more whose exception Python had to swallow."""


class Interrupted(BaseException):
    """A signal of SIGNALS; ``code`` is the exit code (143, 130 or 129)."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum

    def __str__(self) -> str:
        return stopped_by(int(self.args[0]))


class _State:
    inside = False  # an `interruptible`
    received: int | None = None  # the first signal since `interruptible` was entered
    at = 0.0  # seconds, monotonic
    held = 0  # how many `hold` the main thread is in
    waiting = False  # a signal came meanwhile
    code: int | None = None  # what this process ends with, once that is known


def stopped_by(signum: int) -> str:
    """``stopped by Ctrl-C``, ``stopped by SIGTERM``."""
    return f"stopped by {'Ctrl-C' if signum == signal.SIGINT else signal.Signals(signum).name}"


def leave_at_once(*, quiet: bool = False) -> None:
    """From here on, outside of ``interruptible``, a signal ends this process at once.

    One that came before, where this process was started inside of ``blocked``, does so now.
    """
    owner = os.getpid()

    def leave(signum: int, frame: Any) -> None:
        if os.getpid() != owner:
            _die(signum)
            return
        if _State.code is None and not quiet:
            with suppress(OSError):
                os.write(2, f"cvtrain: {stopped_by(signum)}\n".encode())
        os._exit(128 + signum if _State.code is None else _State.code)

    for number in heeded():
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    atexit.register(_leave_in_peace, owner)  # the first to be registered is the last to run


def _leave_in_peace(owner: int) -> None:
    """Python takes handlers away before it takes itself apart: a signal then would kill it."""
    if os.getpid() == owner:
        for number in heeded():
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def blocked() -> Iterator[None]:
    """Inside, signals wait; a process that is started inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ends_with(code: int) -> None:
    """All is done and said: a signal that still comes ends this process with ``code``."""
    _State.code = code


def heeded() -> list[int]:
    """The signals to answer: all but SIGHUP where ``nohup`` has switched it off."""
    return [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, signals raise ``Interrupted`` in the main thread; the old handlers return.

    Inside of another ``interruptible`` it changes nothing.
    """
    if _State.inside or threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    _State.received, _State.waiting, _State.inside = None, False, True
    old = {number: signal.getsignal(number) for number in heeded()}
    old_hook, sys.unraisablehook = sys.unraisablehook, _swallowed
    handler = _handler(os.getpid())
    for number in old:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        sys.unraisablehook = old_hook
        _State.received, _State.waiting, _State.inside = None, False, False


def _handler(owner: int) -> Any:
    def handle(signum: int, frame: Any) -> None:
        if os.getpid() != owner:
            _die(signum)
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


def _die(signum: int) -> None:
    """End a process that others have forked, as if there were no handler."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _swallowed(unraisable: Any) -> None:
    """Instead of a traceback: what Python swallows in a ``__del__`` or a callback comes again."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    signum = int(unraisable.exc_value.args[0])

    def again() -> None:
        if _State.inside:
            _State.at = -PATIENCE_SECONDS * 2  # not the same wish twice
            os.kill(os.getpid(), signum)

    timer = threading.Timer(_AGAIN_SECONDS, again)
    timer.daemon = True
    timer.start()


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
    """130, 143 or 129 if a signal is why a job ends with ``error``, else None.

    Any error after a signal is a consequence of it: another process of the job may have ended
    first, and this one has lost contact.
    """
    if isinstance(error, Interrupted):
        return error.code
    if isinstance(error, Exception) and _State.received is not None:
        return 128 + _State.received
    return None
