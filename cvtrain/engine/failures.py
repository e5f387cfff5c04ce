"""Errors of libraries and of the machine -> one line that names the knob."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from cvtrain import errors
from cvtrain.data.shared import room
from cvtrain.engine.launch import taken_port
from cvtrain.errors import CvtrainError, RunError

_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process \d+\.")
_FILES = re.compile(r"received 0 items of ancdata|Too many open files")
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket closed|gloo::|gloo/transport|NCCL error"
    r"|ncclRemoteError|failed to recv|Timed out waiting|recvValue failed",
    re.IGNORECASE,
)


def translate(error: BaseException, config: Mapping[str, Any]) -> CvtrainError | None:
    """The user's version of an error, or None where it is not a known kind (a bug).

    Args:
        error: what was raised in a run.
        config: the run's config, for the values to name.
    """
    message = str(error)
    if isinstance(error, CvtrainError):
        return type(error)(_last_line(message)) if _WORKER.match(message) else error
    if _WORKER.match(message):  # an error of a loader process, with that process's traceback
        name, _, rest = _last_line(message, whole=True).partition(": ")
        known = getattr(errors, name.rsplit(".", 1)[-1], None)
        if isinstance(known, type) and issubclass(known, CvtrainError):
            return known(rest)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in message:
        return RunError(_out_of_memory(message, config))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk is full ({error.filename or 'run folder'}): free some space")
    if isinstance(error, (OSError, RuntimeError)) and _FILES.search(message):
        return RunError(
            "too many open files for the loader processes: raise the limit (ulimit -n 4096) or "
            "lower data.num_workers"
        )
    if isinstance(error, ValueError) and "more than 1 value per channel" in message:
        return RunError(_lone_value(config))
    if isinstance(error, RuntimeError):
        return _runtime(message, config)
    return None


def lost_contact(error: BaseException) -> bool:
    """Whether an error only says that another process of the run has gone."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def _runtime(message: str, config: Mapping[str, Any]) -> CvtrainError | None:
    data = config.get("data") or {}
    if "DataLoader worker" in message and re.search("killed by signal|exited unexp", message):
        workers = data.get("num_workers")
        if "Bus error" in message:  # a page of a file in memory that has no room
            return RunError(
                f"a data loader process was ended by a bus error ({room()}): start a container "
                "with --shm-size=2g, or set data.num_workers=0"
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
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    amount = re.search(r"[Tt]ried to allocate ([\d.]+ [KMGT]?i?B|\d+ bytes)", message)
    size = data.get("image_size")
    return (
        f"out of memory{f' (an allocation of {amount[1]})' if amount else ''}: lower "
        f"data.batch_size (now {data.get('batch_size')}; trainer.accumulate_grad_batches makes up "
        f"for it) or data.image_size (now {size}), or set trainer.precision=bf16-mixed (now "
        f"{trainer.get('precision')})"
    )


def _last_line(message: str, whole: bool = False) -> str:
    line = [part for part in message.splitlines() if part.strip()][-1]
    return line if whole else line.partition(": ")[2] or line
