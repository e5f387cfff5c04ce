"""How a batch gets from a loader process to the main one: in shared memory, or through a pipe.

Shared memory spares a copy, but a container may have little of it (Docker: 64 MiB). So a worker
packs its batch itself, and sends what finds no room through the pipe. Left to the thread that torch
sends with, a batch without room is dropped there and the main process waits for it forever.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import get_worker_info

from cvtrain.failures import shared_memory

log = logging.getLogger(__name__)

_INLINE = 1 << 16  # bytes: smaller arrays are cheaper inside the message than in shared memory


class _State:
    usable = True  # whether this process may put arrays into shared memory
    refused: str | None = None  # in a worker: why an array of the present batch was not put there
    told = False  # in the main process: whether the note was given


def carried(tensor: Tensor) -> Tensor | np.ndarray:
    """The same values as they travel: in shared memory, or, small or without room there, inline."""
    if tensor.numel() * tensor.element_size() <= _INLINE:
        return tensor.numpy()
    if _State.usable:
        try:
            return tensor.share_memory_()
        except RuntimeError as error:  # "unable to allocate shared memory(shm) for file ...: why"
            if "shared memory" not in str(error):
                raise
            _State.refused = _refusal(str(error), tensor.numel() * tensor.element_size())
    return tensor.numpy()


class Packing:
    """A collate function for loader processes: what it makes, ready to be sent.

    What cannot be sent is raised here, so that it reaches the main process.

    Args:
        collate: makes a batch; its arrays that are ``carried`` need no shared memory.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        return batch if get_worker_info() is None else _Packed(*pack(batch))


class _Packed:
    """Becomes the batch where it is unpickled."""

    def __init__(self, content: bytes, refused: str | None) -> None:
        self.content, self.refused = content, refused

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self.content, self.refused)


def pack(batch: Any) -> tuple[bytes, str | None]:
    """A batch pickled, and why parts of it are not in shared memory, None where all are."""
    _State.refused = None
    try:
        return bytes(ForkingPickler.dumps(batch)), _State.refused
    except OSError as error:  # a shared array takes an open file
        _State.usable = False
        reason = f"shared memory cannot be used ({error.strerror or error})"
        return bytes(ForkingPickler.dumps(batch)), reason
    finally:
        _State.usable = True


def unpack(content: bytes, refused: str | None) -> Any:
    """The batch; in the first of a process that did not find room, a note."""
    if refused is not None and not _State.told:
        _State.told = True
        log.warning(
            f"{refused}: batches that find no room there go through a pipe, which takes longer; "
            "start the container with --shm-size=2g, or set data.num_workers=0"
        )
    return pickle.loads(content)


def _refusal(message: str, size: int) -> str:
    if "No space left" in message:
        return f"{shared_memory()}, a batch of {size / 2**20:.1f} MiB does not fit"
    return f"shared memory cannot be used ({message.rpartition(': ')[2]})"
