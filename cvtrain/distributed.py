"""What the processes of one run tell each other; with one process, nothing happens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

_HOST_GROUP: Any = None


def active() -> bool:
    """Whether this process is one of several of a run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number among all of the run, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if active() else 1


def gather(value: Any) -> list[Any] | None:
    """One picklable value a process -> all of them on rank 0 in rank order, None elsewhere."""
    if not active():
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=_host_group())
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's picklable value, on every process."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_host_group())
    return box[0]


def _host_group() -> Any:
    """A gloo group for host memory, patient enough for rank 0 to check a large data set."""
    global _HOST_GROUP
    if _HOST_GROUP is None or _HOST_GROUP[0] is not dist.group.WORLD:
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        _HOST_GROUP = (dist.group.WORLD, group)
    return _HOST_GROUP[1]
