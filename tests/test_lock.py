from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import time

import pytest

from cvtrain.errors import HeldError, RunError, UsageError
from cvtrain.lock import LOCK, locked


def forked(work) -> int:
    """A child that has done ``work`` and waits to be killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        kept = work()  # noqa: F841 (a context that nobody knows ends)
        os.write(write, b"x")
        time.sleep(30)
        os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    return child


def killed(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_folder_is_held_once(tmp_path) -> None:
    with locked(tmp_path):
        with pytest.raises(HeldError) as caught, locked(tmp_path):
            pass
        message = str(caught.value)
        assert message.startswith(f"run_dir={tmp_path} is in use by process {os.getpid()} on ")
        assert socket.gethostname() in message
        assert message.endswith("wait until it ends, or choose another folder")
        assert "\n" not in message
        assert isinstance(caught.value, UsageError)
        with pytest.raises(HeldError, match=r"^resume=.*or stop it$"), locked(tmp_path, "resume"):
            pass
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_was_written_to_goes_again(tmp_path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").touch()
    assert (tmp_path / "a" / "b" / "x").exists()


def test_a_lock_ends_with_its_process_whatever_it_leaves_behind(tmp_path) -> None:
    def work():
        context = locked(tmp_path)
        context.__enter__()
        if os.fork() == 0:  # a loader process, which notices a second later
            time.sleep(5)
            os._exit(0)
        return context

    child = forked(work)
    with pytest.raises(HeldError, match=f"process {child} on"), locked(tmp_path):
        pass
    killed(child)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_forked_process_that_ends_takes_no_lock_with_it(tmp_path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(HeldError), locked(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, number) -> None:
    def refuse(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(logging.getLogger("cvtrain"), "propagate", True)
    with locked(tmp_path):
        pass
    (record,) = caplog.records
    assert f"{tmp_path} lies on a file system without locks" in record.getMessage()


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch) -> None:
    flock, calls = fcntl.flock, []

    def late(handle, how):
        if not calls:
            (tmp_path / LOCK).unlink()  # its holder has just ended
        calls.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(HeldError), locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with pytest.raises(RunError) as caught, locked(folder, "sweep_dir"):
        pass
    assert str(caught.value) == (
        f"cannot write to {folder}: Not a directory; choose another sweep_dir=DIR"
    )
