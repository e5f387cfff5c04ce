"""What a run that is one job of several needs: a process, a folder, a record of how it ended."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvtrain import failures, signals
from cvtrain.config.groups import load, pick
from cvtrain.config.moved import up_to_date
from cvtrain.signals import Interrupted

JOB_FILE = "job.json"
"""In each job's folder: its overrides, exit code and metric."""

_GRACE = 30.0  # seconds a job has to end by itself after SIGTERM


STOPS = (KeyboardInterrupt, SystemExit, Interrupted)
"""What ends this process while a job runs: the first two where a launcher of Hydra's calls it."""


def run(command: Sequence[str], output: Path | None = None) -> int:
    """Run a command to its end; its exit code as a shell has it.

    Args:
        command: program and arguments.
        output: a file that what it prints is added to; None: the terminal.

    Raises:
        Interrupted, KeyboardInterrupt, SystemExit: this process was to stop; the job has ended.
    """
    if output is not None:
        with output.open("ab") as file:
            return _wait(_start(command, stdout=file, stderr=subprocess.STDOUT))
    return _wait(_start(command))


def _start(command: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a job; a signal in its first moments waits until it can answer."""
    with signals.blocked():
        return subprocess.Popen(command, **streams)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        code = process.wait()
    except STOPS as stop:
        # In a terminal the job got the signal too, and does not mind it twice.
        _end(process, stop_code(stop) - 128)
        raise
    return code if code >= 0 else 128 - code


def stop_code(stop: BaseException) -> int:
    """The exit code that one of STOPS stands for."""
    if isinstance(stop, Interrupted):
        return stop.code
    return failures.INTERRUPTED if isinstance(stop, KeyboardInterrupt) else failures.TERMINATED


def _end(process: subprocess.Popen[bytes], signum: int) -> None:
    """Pass the signal on, and see to it that the job ends."""
    try:
        process.send_signal(signum)
        process.wait(_GRACE)
    except (subprocess.TimeoutExpired, *STOPS):
        process.kill()
        process.wait()


def monitored(folder: Path) -> tuple[str | None, float | None, str]:
    """The monitored metric of a finished run: its name, value, and whether max or min is better."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None, None, "max"
    config = up_to_date(load(path))
    name, mode = pick(config, "task.monitor"), pick(config, "task.mode") or "max"
    results = folder / "results.json"
    if not results.is_file():
        return name, None, mode
    metrics = json.loads(results.read_text(encoding="utf-8")).get("metrics", {})
    value = metrics.get(name)
    return name, float(value) if isinstance(value, (int, float)) else None, mode
