"""What every test shares: no network, few threads, the real data sets where they are."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before any import of these: albumentations asks the network for its version, wandb for a login.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Started by nohup, a process ignores hangups, and cvtrain then leaves them ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets, from CVTRAIN_REAL_DATA; the test is skipped without."""
    folder = os.environ.get("CVTRAIN_REAL_DATA")
    if not folder:
        pytest.skip("CVTRAIN_REAL_DATA is not set")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"CVTRAIN_REAL_DATA={folder} is not a folder")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_disk() -> Callable[..., Any]:
    """``small_disk(folder, size, work)``: what ``work()`` returns where ``folder`` holds ``size``
    bytes, in a child process that alone sees it so. Skipped where that is not allowed.
    """

    def run(folder: Path, size: int, work: Callable[[], Any], seconds: int = 60) -> Any:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(seconds)  # one that hangs is killed
            os.close(read)
            try:
                said = _mount(folder, size)
                answer = ("skip", said) if said else ("done", work())
            except BaseException:
                answer = ("failed", traceback.format_exc())
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            content = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, f"ended by {signal.Signals(-status).name}" if status < 0 else status
        kind, value = pickle.loads(content)
        if kind == "skip":
            pytest.skip(value)
        assert kind == "done", value
        return value

    return run


def _mount(folder: Path, size: int) -> str | None:
    """Lay a file system of so many bytes over a folder, for this process; why not, if not."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, recursive, private = 0x20000, 0x4000, 1 << 18  # of sched.h and mount.h
    if not hasattr(libc, "unshare") or libc.unshare(new_mounts):
        return "mounting is not allowed here"
    if libc.mount(b"none", b"/", None, recursive | private, None):
        return "mounting is not allowed here"
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options):
        return f"no tmpfs here: {os.strerror(ctypes.get_errno())}"
    return None


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that seals runs is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
