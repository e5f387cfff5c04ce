"""What a run that is one job of several needs: a process, a folder, a record of how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvtrain.cli import errors
from cvtrain.cli.conf import load, pick

JOB_FILE = "job.json"
"""In each job's folder: its overrides, exit code and metric."""

_GRACE = 30.0  # seconds a job has to end by itself after SIGTERM


def run(command: Sequence[str], output: Path | None = None) -> int:
    """Run a command to its end, Ctrl-C and SIGTERM included; its exit code as a shell has it.

    Args:
        command: program and arguments.
        output: a file that what it prints is added to; None: the terminal.
    """
    if output is not None:
        with output.open("ab") as file:
            return _wait(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    return _wait(subprocess.Popen(command))


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the job, in the same terminal, got it too, and saves
        code = _end(process, None)
        return code or errors.INTERRUPTED
    except SystemExit:
        _end(process, signal.SIGTERM)
        raise
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes], signum: int | None) -> int:
    if signum is not None:
        process.send_signal(signum)
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM ends the running job before this process."""

    def handle(signum: int, frame: Any) -> None:
        raise SystemExit(errors.TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def monitored(folder: Path) -> tuple[str | None, float | None, str]:
    """The monitored metric of a finished run: its name, value, and whether max or min is better."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None, None, "max"
    config = load(path)
    name, mode = pick(config, "task.monitor"), pick(config, "task.mode") or "max"
    results = folder / "results.json"
    if not results.is_file():
        return name, None, mode
    metrics = json.loads(results.read_text(encoding="utf-8")).get("metrics", {})
    value = metrics.get(name)
    return name, float(value) if isinstance(value, (int, float)) else None, mode


def near(path: Path) -> str:
    """A path relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
