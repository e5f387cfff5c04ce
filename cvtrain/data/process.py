"""What every process that loads images sets first: OpenCV's threads and log, and the allocator."""

from __future__ import annotations

import ctypes
import functools
import sys

import cv2

_KEEP = 256 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def prepare_process(_: int = 0) -> None:
    """OpenCV without threads of its own, silent, and memory that is used again.

    OpenCV's thread pool does not survive a fork and fights the loader's workers. Its log goes to
    stderr past everything; a file that cannot be read becomes a ``DataError`` instead.

    glibc gives the pages of every image-sized array back to the system when it is freed, and takes
    them anew for the next: page faults, which cost more than resizing the image (0.6 instead of
    2.5 ms for 640 x 640 x 3). It is told to keep up to 256 MiB. Training on a CPU gains too: a
    small convolutional network took 30 % less time a step.

    A ``worker_init_fn``: the argument, the worker's number, is not used.
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
