"""Several processes from one command: a supervisor that starts them, watches them, and reports.

The supervisor starts one process a device with the environment that torch.distributed (and
Lightning) read, hands each the whole config in a file, forwards SIGTERM and Ctrl-C, and when one
process fails ends the others and raises that one's error. Under torchrun and SLURM, which start
the processes themselves, it does nothing.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cvtrain import errors
from cvtrain.errors import CvtrainError, RunError
from cvtrain.failures import lost_contact, taken_port
from cvtrain.signals import blocked, heeded, leave_at_once
from cvtrain.storage import write_json_atomic
from cvtrain.streams import guard

GRACE_SECONDS = 10.0
"""How long processes may take to end by themselves once they should."""

JOBS = ("cvtrain.engine.train:train", "cvtrain.engine.evaluate:evaluate")
"""What a process may be started for."""


def started_elsewhere() -> bool:
    """Whether torchrun, SLURM or a supervisor of ours started this process among others."""
    if "LOCAL_RANK" in os.environ:
        return True
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and not interactive


def launch(job: str, config: dict[str, Any], processes: int, nodes: int = 1) -> int:
    """Run ``job`` in ``processes`` processes on this machine; the exit code.

    Args:
        job: one of JOBS.
        config: what the job is called with; plain values.
        processes: on this machine.
        nodes: machines; with several, MASTER_ADDR, MASTER_PORT and NODE_RANK must be set.

    Raises:
        CvtrainError: what the first process that failed said.
    """
    if job not in JOBS:
        raise ValueError(job)
    if nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys():
        raise RunError(
            f"trainer.num_nodes={nodes}: start it with torchrun or srun on every machine, or set "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK there"
        )
    if os.environ.get("NODE_RANK", "0") == "0":
        refuse_taken_port()
    with tempfile.TemporaryDirectory(prefix="cvtrain-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps({"config": config, "argv": sys.argv}))
        # -P: the search path is the parent's, not one that begins with the current folder.
        command = [sys.executable, "-P", "-m", "cvtrain.engine.launch", job, name]
        environment = {
            **os.environ,
            "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
            "MASTER_PORT": os.environ.get("MASTER_PORT", str(_free_port())),
            "NODE_RANK": os.environ.get("NODE_RANK", "0"),
            "WORLD_SIZE": str(processes * nodes),
            # DDP warns of looking for unused parameters in epochs that have none.
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
        }
        return _supervise(command, environment, processes, folder)


def _supervise(
    command: Sequence[str], environment: dict[str, str], processes: int, folder: Path
) -> int:
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: Any) -> None:
        received.append(signum)
        _send(children, signum)

    with _handling(forward):
        try:
            for rank in range(processes):
                # A session of its own: Ctrl-C reaches it once, through `forward`.
                with blocked():  # a signal waits until the process can answer
                    child = subprocess.Popen(
                        command,
                        env={**environment, "LOCAL_RANK": str(rank)},
                        start_new_session=True,
                    )
                    children.append(child)
            _wait(children, received)
        finally:
            _send(children, signal.SIGKILL)
            for child in children:
                child.wait()
    if received:
        return 128 + received[0]
    codes = [child.returncode for child in children]
    if any(codes):
        _raise_first(folder, codes)
    return 0


def _wait(children: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> None:
    """Until all have ended, or one has failed (or a signal came) and the others had their grace."""
    deadline: float | None = None
    while any(child.poll() is None for child in children):
        if deadline is None and (received or any(child.poll() for child in children)):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _raise_first(folder: Path, codes: Sequence[int]) -> None:
    """Raise what the process that failed first said; an error that others caused comes last."""
    reports = [json.loads(path.read_text()) for path in folder.glob("failure-*.json")]
    reports.sort(key=lambda report: (report["lost_contact"], report["time"]))
    killed = [(rank, -code) for rank, code in enumerate(codes) if code < 0]
    if not reports or (reports[0]["lost_contact"] and killed):
        rank, number = killed[0] if killed else (codes.index(next(filter(None, codes))), 0)
        how = f"was killed by {signal.Signals(number).name}" if number else "ended early"
        raise RunError(f"process {rank} of {len(codes)} {how}; the others were ended")
    report = reports[0]
    kind = getattr(errors, report["kind"], None)
    cause = RuntimeError(report["traceback"])
    if isinstance(kind, type) and issubclass(kind, CvtrainError):
        raise kind(report["message"]) from cause
    what = f"{report['kind']}: {report['message']}".splitlines()[0]
    raise RunError(f"process {report['rank']} of {len(codes)} failed: {what}") from cause


def _send(children: Sequence[subprocess.Popen[bytes]], signum: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signum)


class _handling:
    """The signals of a job go to ``handler`` inside (in the main thread)."""

    def __init__(self, handler: Callable[[int, Any], None]) -> None:
        self._handler = handler
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self._old[number] = signal.signal(number, self._handler)

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)


def refuse_taken_port() -> None:
    """Raise RunError where MASTER_PORT, if it is given, cannot be listened on here.

    The processes would wait for each other for half a minute first.
    """
    port = os.environ.get("MASTER_PORT")
    if port is None:
        return
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise RunError(f"MASTER_PORT={port}: give a number from 1 to 65535, or unset it")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store itself does
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            why = taken_port(port) if error.errno == errno.EADDRINUSE else None
            raise RunError(why or f"MASTER_PORT={port}: {error.strerror}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# In a started process ---------------------------------------------------------------------------


def main(job: str, folder: str) -> int:
    """What a started process runs: the job, its failure written where the supervisor looks."""
    leave_at_once(quiet=os.environ["LOCAL_RANK"] != "0")
    guard(pipe_warns=True)
    _end_with_parent()
    given = json.loads((Path(folder) / "config.json").read_text())
    sys.argv = given["argv"]  # environment.json says what the user typed
    module, name = job.split(":")
    if job not in JOBS:
        raise ValueError(job)
    try:
        return int(getattr(importlib.import_module(module), name)(given["config"]))
    except BaseException as error:
        rank = int(os.environ["LOCAL_RANK"])
        report = {
            "rank": rank,
            "time": time.time(),
            "kind": type(error).__name__,
            "message": str(error),
            "lost_contact": lost_contact(error),
            "traceback": traceback.format_exc(),
        }
        write_json_atomic(Path(folder) / f"failure-{rank}.json", report)
        return int(getattr(error, "exit_code", 1))


def _end_with_parent() -> None:
    """End this process when the supervisor has gone, even if that was killed with -9."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that still wait for a process that has gone must not hold this one.
    os._exit(code)
