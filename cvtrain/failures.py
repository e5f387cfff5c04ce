"""What goes wrong -> one line that names what to change, and an exit code. No torch here.

``translate`` knows the errors of libraries and of the machine; ``report`` prints any error as the
command line does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from cvtrain import errors
from cvtrain.errors import CvtrainError, DataError, RunError
from cvtrain.signals import Interrupted
from cvtrain.text import printable_lines

DONE, FAILED, WRONG_COMMAND, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes."""

SHARED_MEMORY = "/dev/shm"
"""Where the batches of loader processes lie."""

_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process \d+\.")
_FILES = re.compile(r"received 0 items of ancdata|Too many open files")
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket closed|gloo::|gloo/transport|NCCL error"
    r"|ncclRemoteError|failed to recv|Timed out waiting|recvValue failed",
    re.IGNORECASE,
)


def translate(error: BaseException, config: Mapping[str, Any] | None = None) -> CvtrainError | None:
    """The user's version of an error, or None where it is not a known kind (a bug).

    Args:
        error: what was raised in a run.
        config: the run's config, for the values to name.
    """
    config = config or {}
    message, kind = str(error), type(error).__name__
    if isinstance(error, CvtrainError):
        return type(error)(_last_line(message)) if _WORKER.match(message) else error
    if _WORKER.match(message):  # an error of a loader process, with that process's traceback
        name, _, rest = _last_line(message, whole=True).partition(": ")
        known = getattr(errors, name.rsplit(".", 1)[-1], None)
        if isinstance(known, type) and issubclass(known, CvtrainError):
            return known(rest)
    no_memory = kind == "OutOfMemoryError" or isinstance(error, MemoryError)
    if no_memory or re.search("out of memory|allocate memory", message, re.IGNORECASE):
        return RunError(_out_of_memory(message, config))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f": {error.filename}" if error.filename else ""
        return RunError(f"the disk is full{where}; free some space, then resume=RUN_DIR")
    if isinstance(error, PermissionError):
        where = f": {error.filename}" if error.filename else ""
        return RunError(f"permission denied{where}")
    if isinstance(error, (OSError, RuntimeError)) and _FILES.search(message):
        return RunError(
            "too many open files for the loader processes: raise the limit (ulimit -n 4096) or "
            "lower data.num_workers"
        )
    if isinstance(error, ValueError) and "more than 1 value per channel" in message:
        return RunError(_lone_value(config))
    if kind == "MisconfigurationException":  # Lightning's
        if "No supported gpu backend" in message or "requested gpu" in message:
            return RunError(
                "no GPU is visible here; use trainer.accelerator=cpu, or check nvidia-smi"
            )
        return RunError(" ".join(message.split()))
    if isinstance(error, RuntimeError):
        return _runtime(message, config)
    return None


def lost_contact(error: BaseException) -> bool:
    """Whether an error only says that another process of the run has gone."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def taken_port(port: str) -> str:
    """What is wrong with a port that another program listens on."""
    return (
        f"MASTER_PORT={port} is in use, perhaps by another run: give another one, or unset it and "
        "cvtrain takes a free one"
    )


def shared_memory() -> str:
    """How much shared memory there is, in words."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        return f"{SHARED_MEMORY} cannot be used ({error.strerror or error})"
    free, size = (n * found.f_frsize / 2**20 for n in (found.f_bavail, found.f_blocks))
    return f"{SHARED_MEMORY} has {free:.0f} MiB free of {size:.0f} MiB"


def _runtime(message: str, config: Mapping[str, Any]) -> CvtrainError | None:
    data = config.get("data") or {}
    if "DataLoader worker" in message and re.search("killed by signal|exited unexp", message):
        workers = data.get("num_workers")
        if "Bus error" in message:  # a page of a file in memory that has no room
            return RunError(
                f"a data loader process was ended by a bus error ({shared_memory()}): start a "
                "container with --shm-size=2g, or set data.num_workers=0"
            )
        return RunError(
            "a data loader process was killed, probably for lack of memory: lower "
            f"data.num_workers (now {'one a core' if workers is None else workers}) or data.cache"
        )
    if "deterministic" in message and "does not have" in message:
        operation = message.split(" does not have", 1)[0].split()[-1]
        return RunError(
            f"trainer.deterministic=true: {operation} has no deterministic kernel on this device; "
            "set trainer.deterministic=false, train on the CPU, or choose another model"
        )
    if "EADDRINUSE" in message or "address already in use" in message.lower():
        return RunError(taken_port(os.environ.get("MASTER_PORT", "")))
    if "Expected to have finished reduction in the prior iteration" in message:
        return RunError(
            "some parameters took no part in the loss, which plain DDP does not allow: set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    return None


def _lone_value(config: Mapping[str, Any]) -> str:
    """Batch normalization of one image whose map is one pixel."""
    data = config.get("data") or {}
    size = data.get("batch_size")
    fix = "give data.batch_size=2 or more" if size == 1 else "one image is all there is to train on"
    return (
        f"data.batch_size={size}: a batch of one image whose last map is 1 x 1 leaves batch "
        f"normalization one value a channel: {fix}, or a larger data.image_size "
        f"(now {data.get('image_size')})"
    )


def _out_of_memory(message: str, config: Mapping[str, Any]) -> str:
    amount = re.search(r"[Tt]ried to allocate ([\d.]+ [KMGT]?i?B|\d+ bytes)", message)

    def now(group: str, key: str, more: str = "") -> str:
        known = [f"now {config[group].get(key)}"] if config.get(group) else []
        return f" ({'; '.join([*known, *([more] if more else [])])})" if known or more else ""

    batch = now("data", "batch_size", "trainer.accumulate_grad_batches makes up for it")
    return (
        f"out of memory{f' (an allocation of {amount[1]})' if amount else ''}: lower "
        f"data.batch_size{batch} or data.image_size{now('data', 'image_size')}, or set "
        f"trainer.precision=bf16-mixed{now('trainer', 'precision')}"
    )


def _last_line(message: str, whole: bool = False) -> str:
    line = [part for part in message.splitlines() if part.strip()][-1]
    return line if whole else line.partition(": ")[2] or line


# On the command line -----------------------------------------------------------------------------


def report(error: BaseException, *, debug: bool = False) -> int:
    """Print what went wrong, in one line (with ``debug`` after its traceback); the exit code."""
    if isinstance(error, KeyboardInterrupt):
        _print("stopped by Ctrl-C")
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return _exit_code(error)
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return DONE
    if isinstance(error, Interrupted):
        _print(str(error))
        return error.code
    if debug:
        print(printable_lines("".join(traceback.format_exception(error))), file=sys.stderr)
    _print(line(error))
    return error.exit_code if isinstance(error, CvtrainError) else FAILED


def line(error: BaseException) -> str:
    """The one line a user sees of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, DataError):  # the gate's list of problems follows its one line
        lines = [" ".join(part.split()) for part in str(error).splitlines()]
        return "\n  ".join(part for part in lines if part)
    if isinstance(error, CvtrainError):
        return text
    known = next((k for cause in _chain(error) if (k := translate(cause)) is not None), None)
    if known is not None:
        return " ".join(str(known).split())
    name = type(error).__name__
    message = f"{name}: {text}" if text else name
    return f"{message} (unexpected: cvtrain --debug ... shows where; please report it)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return DONE
    if isinstance(error.code, int):
        return error.code
    _print(" ".join(str(error.code).split()))
    return FAILED


def _print(text: str) -> None:
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
    where = f" [process {rank}]" if rank not in (None, "0") else ""
    with contextlib.suppress(OSError):
        print(printable_lines(f"cvtrain{where}: {text}"), file=sys.stderr, flush=True)


def _close_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit is quiet too."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is not a file (a test's capture)
        return
    finally:
        os.close(null)
