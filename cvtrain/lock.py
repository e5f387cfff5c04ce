"""One process at a time writes to a folder: a lock that the kernel releases on any death."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvtrain.errors import HeldError, RunError

log = logging.getLogger(__name__)

LOCK = ".cvtrain-lock"
"""In a folder that is written to: who does. One that is left behind by a killed process is free."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_HELD: set[int] = set()
"""Descriptors of this process's locks."""


def _forget() -> None:
    """In a forked process: the lock is its parent's, and ends with that one."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(folder: Path, key: str = "run_dir") -> Iterator[None]:
    """Hold a folder, which is made, and removed again if nothing was written to it.

    Args:
        folder: the folder.
        key: the word of the command that named it, for the message.

    Raises:
        HeldError: another process holds it.
        RunError: the folder cannot be made or written to.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder, key)
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror or error}; choose another {key}=DIR"
        ) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        _HELD.discard(handle)
        os.close(handle)
        with contextlib.suppress(OSError):  # something lies there
            for path in new:
                path.rmdir()


def _take(folder: Path, key: str) -> int:
    """The descriptor of the folder's lock, which this process now holds."""
    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _lock(handle, folder, key) and not _is_there(handle, folder):
                os.close(handle)  # whoever held it has removed it meanwhile
                continue
            words = ["cvtrain", *sys.argv[1:]]
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": words}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({**holder, "since": time.time()}).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        _HELD.add(handle)
        return handle


def _lock(handle: int, folder: Path, key: str) -> bool:
    """Whether the file is locked now; not where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            other = "stop it" if key == "resume" else "choose another folder"
            raise HeldError(
                f"{key}={folder} is in use by {_holder(handle)}: wait until it ends, or {other}"
            ) from None
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            f"{folder} lies on a file system without locks ({error.strerror}): see to it that no "
            "other command writes there"
        )
        return False
    return True


def _is_there(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), (folder / LOCK).stat())
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        message = json.loads(os.pread(handle, 1 << 16, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(message["since"]))
        return f"process {message['pid']} on {message['host']} since {since}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return "another process"
