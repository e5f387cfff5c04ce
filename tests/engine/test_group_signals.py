"""Signals to every process of a job, as a terminal's Ctrl-C and a batch system send them."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import tiny_words

WORKERS = ("data.num_workers=2", "data.batch_size=2")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def group(leader: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            state, _, pgid = path.read_text().rpartition(") ")[2].split()[:3]
            if int(pgid) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def all_end(leader: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while group(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not group(leader)


class Job:
    """``cvtrain WORDS`` as the leader of a process group of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cvtrain", *words],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return
        pytest.fail(f"{text} was never printed: {self.process.communicate()}")

    def wait_for_workers(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(group(self.pid)) < 1 + count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(group(self.pid)) >= 1 + count

    def stop(self, how: str) -> tuple[int, str, str]:
        """Signal the group: exit code, and what stdout (from now on) and stderr say."""
        os.killpg(self.pid, getattr(signal, how))
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[type[Job]]:
    jobs: list[Job] = []

    def make(*words: str) -> Job:
        jobs.append(Job(tmp_path, *words))
        return jobs[-1]

    yield make  # type: ignore[misc]
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.process.wait()


def training(*words: str) -> list[str]:
    given = [*WORKERS, "trainer.max_epochs=500", *words]
    return [*tiny_words(given), *given]


@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_training_stopped_with_its_workers_can_go_on(start, tmp_path, how, code) -> None:
    job = start(*training("run_dir=cut"))
    job.wait_for("epoch   2/")
    assert len(group(job.pid)) > 2
    ended, out, err = job.stop(how)
    assert (ended, err) == (code, "")
    assert out.splitlines()[-1].endswith("cvtrain resume=cut")
    assert all_end(job.pid)
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()


def test_an_evaluation_stopped_with_its_workers(start, trained) -> None:
    words = [f"ckpt={trained}", "run_dir=cut", *WORKERS, "data.num_val=5000"]
    job = start("eval", *words)
    job.wait_for_workers(2)
    ended, out, err = job.stop("SIGTERM")
    assert (ended, err) == (143, "")
    assert out.splitlines()[-1] == "stopped; the evaluation was not finished"
    assert all_end(job.pid)


@pytest.mark.slow
def test_workers_end_with_a_main_process_that_is_killed(start) -> None:
    job = start(*training("run_dir=cut"))
    job.wait_for("epoch   1/")
    assert len(group(job.pid)) > 2
    os.kill(job.pid, signal.SIGKILL)
    job.process.wait()
    assert all_end(job.pid)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_to_lack_memory(start) -> None:
    job = start(*training("run_dir=cut"))
    job.wait_for("epoch   1/")
    worker = next(pid for pid in group(job.pid) if pid != job.pid)
    os.kill(worker, signal.SIGTERM)  # not from its parent: not heeded
    job.wait_for("epoch   2/")
    os.kill(worker, signal.SIGKILL)
    _, err = job.process.communicate(timeout=60)
    assert job.process.returncode == 1
    assert "lack of memory: lower data.num_workers (now 2)" in err
    assert len(err.splitlines()) == 1
    assert all_end(job.pid)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tmp_path) -> None:
    words = training("run_dir=cut", "callbacks.progress.refresh_per_second=1000")
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "cvtrain", *words])
    message, typed = b"", False
    with contextlib.suppress(OSError):  # the terminal has closed
        while part := os.read(terminal, 65536):
            message += part
            if b"epoch   2/" in message and not typed:
                typed = os.write(terminal, b"\x03") == 1
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 130, message[-2000:]
    assert message.rstrip().endswith(b"cvtrain resume=cut")
    assert b"\x1b[?25h" in message[message.rindex(b"\x1b[?25l") :]  # the cursor is shown again
    assert all_end(pid)
