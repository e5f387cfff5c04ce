"""What every process that loads images sets first: OpenCV, the allocator, and signals."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import cv2

from cvtrain.errors import RunError
from cvtrain.failures import shared_memory
from cvtrain.signals import SIGNALS, blocked, hold

_KEEP = 256 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

_WATCH_SECONDS = 1.0
"""How often a worker looks whether its parent still lives."""


def prepare_process() -> None:
    """OpenCV without threads of its own, silent, and memory that is used again.

    OpenCV's thread pool does not survive a fork and fights the loader's workers. Its log goes to
    stderr past everything; a file that cannot be read becomes a ``DataError`` instead.

    glibc gives the pages of every image-sized array back to the system when it is freed, and takes
    them anew for the next: page faults, which cost more than resizing the image (0.6 instead of
    2.5 ms for 640 x 640 x 3). It is told to keep up to 256 MiB. Training on a CPU gains too: a
    small convolutional network took 30 % less time a step.
    """
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    _keep_freed_memory()


@functools.cache
def _keep_freed_memory() -> bool:
    """Whether this C library could be told (glibc alone can)."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    kept = libc.mallopt(_M_TRIM_THRESHOLD, _KEEP)
    return bool(kept and libc.mallopt(_M_MMAP_THRESHOLD, _KEEP))


@contextmanager
def starting_workers(instead: str = "set data.num_workers=0") -> Iterator[None]:
    """Inside, worker processes are started: signals neither reach them nor break it off.

    They inherit the blocked signals, so that none of them is open to one before ``start_worker``.

    Args:
        instead: what to do without them, for the message.

    Raises:
        RunError: the system starts none, or gives no shared memory to the locks between them.
    """
    with hold(), blocked():
        try:
            yield
        except OSError as error:
            raise RunError(
                f"no worker process can be started ({error.strerror or error}; "
                f"{shared_memory()}): make room there, start a container with --shm-size=2g, or "
                f"{instead}"
            ) from error


def start_worker(_: int = 0) -> None:
    """What a worker process does first.

    A ``worker_init_fn``: the argument, the worker's number, is not used.
    """
    leave_signals_to_parent()
    sys.excepthook = _say_unless_unheard
    prepare_process()


def _say_unless_unheard(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """No traceback of the thread that hands over memory when the main process has stopped taking.

    Errors of a data set do not come here: the loader carries them to the main process.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def leave_signals_to_parent() -> None:
    """From here on this process ends by itself only with its parent, or when that one says so.

    Ctrl-C, a closed terminal's SIGHUP and a batch system's SIGTERM go to all processes of a job;
    the main one answers, and ends its workers. SIGTERM from the parent ends this process at once
    and without a complaint.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    started_by = multiprocessing.parent_process()  # not the parent, where a fork server forks
    heeded = {parent} if started_by is None else {parent, started_by.pid}
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in later threads too
    else:  # macOS does not say who sends it
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with, args=(parent, heeded), daemon=True).start()


def _end_with(parent: int, heeded: set[int | None]) -> None:
    """End this process when ``parent`` has gone, or one of ``heeded`` sends SIGTERM."""
    while os.getppid() == parent:
        if not hasattr(signal, "sigtimedwait"):
            time.sleep(_WATCH_SECONDS)
            continue
        came = signal.sigtimedwait([signal.SIGTERM], _WATCH_SECONDS)
        if came is not None and came.si_pid in heeded:
            break
    os._exit(0)
