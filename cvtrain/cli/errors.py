"""Exceptions -> one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator

from cvtrain.errors import CvtrainError, DataError
from cvtrain.signals import Interrupted
from cvtrain.text import printable_lines

DONE, FAILED, WRONG_COMMAND, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes."""


def report(error: BaseException, *, debug: bool = False) -> int:
    """Say what went wrong, in one line (with ``debug`` after its traceback); the exit code."""
    if isinstance(error, KeyboardInterrupt):
        _say("stopped by Ctrl-C")
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return _exit_code(error)
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return DONE
    if isinstance(error, Interrupted):
        _say(str(error))
        return error.code
    if debug:
        print(printable_lines("".join(traceback.format_exception(error))), file=sys.stderr)
    _say(line(error))
    return error.exit_code if isinstance(error, CvtrainError) else FAILED


def line(error: BaseException) -> str:
    """The one line a user sees of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, DataError):  # the gate's list of problems follows its one line
        lines = [" ".join(part.split()) for part in str(error).splitlines()]
        return "\n  ".join(part for part in lines if part)
    if isinstance(error, CvtrainError):
        return text
    for cause in _chain(error):
        known = _known(cause)
        if known:
            return known
    name = type(error).__name__
    said = f"{name}: {text}" if text else name
    return f"{said} (unexpected: cvtrain --debug ... shows where; please report it)"


def _known(error: BaseException) -> str | None:
    """The line for what machines do: no memory, no disk, no GPU."""
    text = str(error)
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{_at(error)}; free some space, then resume=RUN_DIR"
    if isinstance(error, PermissionError):
        return f"permission denied{_at(error)}"
    out_of_memory = "out of memory" in text.lower() or "can't allocate memory" in text
    if name == "OutOfMemoryError" or isinstance(error, MemoryError) or out_of_memory:
        return (
            "out of memory; make data.batch_size or data.image_size smaller, "
            "or try trainer.precision=bf16-mixed"
        )
    if name == "MisconfigurationException":
        if "No supported gpu backend" in text or "requested gpu" in text:
            return "no GPU is visible here; use trainer.accelerator=cpu, or check nvidia-smi"
        return " ".join(text.split())
    return None


def _at(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


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
    _say(" ".join(str(error.code).split()))
    return FAILED


def _say(text: str) -> None:
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
