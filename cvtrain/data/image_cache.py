"""``data.cache=ram``: every decoded image once in memory, one copy for all loader workers.

The images are decoded in the main process before the workers start. Forked workers see the same
pages, which nobody writes to; where workers are spawned, the memory is handed over by torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvtrain.errors import DataError

_CHUNK = 64 << 20  # bytes
_SHARE = 0.9  # of the memory that is available; the rest is left to the run


class RamCache:
    """Images by row, as they were decoded; read-only.

    Args:
        load: decodes the image of a row: ``(H, W, C)``.
        sizes: int ``(N, 2)`` height, width, for the estimate.
        channels: of every image.
        copies: processes on this machine that each hold a cache (ranks).
        available: bytes that may be used; None: what the machine has.
        threads: that decode; None: one a core, at most 8.
        progress: shows a bar.

    Raises:
        DataError: the images do not fit, with what is needed and what there is; or one cannot be
            decoded.
    """

    def __init__(
        self,
        load: Callable[[int], np.ndarray],
        sizes: np.ndarray,
        channels: int,
        *,
        copies: int = 1,
        available: int | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        count = len(sizes)
        free = int((available_memory() if available is None else available) * _SHARE)
        needed = int(np.prod(np.asarray(sizes, np.int64), axis=1).sum()) * channels
        self._refuse(needed * copies, free, count)
        self._chunks: list[Tensor] = []
        self._chunk = np.zeros(count, np.int32)
        self._start = np.zeros(count, np.int64)
        self._shape = np.zeros((count, 3), np.int32)
        self._dtype = np.zeros(count, np.int8)
        self.nbytes = self._used = 0
        workers = threads or min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            # Windows of rows, so that decoded images do not pile up in front of the copy.
            for begin in _steps(count, 16 * workers, progress):
                rows = range(begin, min(count, begin + 16 * workers))
                for row, image in zip(rows, pool.map(load, rows), strict=True):
                    self._refuse((self.nbytes + image.nbytes) * copies, free, count)
                    self._put(row, image)

    def __len__(self) -> int:
        return len(self._start)

    def summary(self) -> str:
        """One line: what is held, and where."""
        where = "memory" if sys.platform == "linux" else "shared memory"
        return f"data.cache=ram: {len(self):,} decoded images, {_size(self.nbytes)} of {where}"

    def __getitem__(self, row: int) -> np.ndarray:
        """``(H, W, C)``, not to be written to."""
        dtype = _DTYPES[self._dtype[row]]
        shape = tuple(int(v) for v in self._shape[row])
        begin = int(self._start[row])
        end = begin + int(np.prod(shape)) * dtype.itemsize
        raw = self._chunks[self._chunk[row]].numpy()[begin:end]
        image = raw.view(dtype).reshape(shape)  # (bytes,) -> (H, W, C)
        image.flags.writeable = False
        return image

    def _put(self, row: int, image: np.ndarray) -> None:
        if image.dtype not in _DTYPES:
            raise DataError(f"data.cache=ram: images of type {image.dtype} are not held; use none")
        size = image.nbytes
        if not self._chunks or self._used + size > len(self._chunks[-1]):
            chunk = torch.empty(max(_CHUNK, size), dtype=torch.uint8)
            self._chunks.append(chunk if sys.platform == "linux" else chunk.share_memory_())
            self._used = 0
        self._chunk[row], self._start[row] = len(self._chunks) - 1, self._used
        self._shape[row], self._dtype[row] = image.shape, _DTYPES.index(image.dtype)
        target = self._chunks[-1].numpy()[self._used : self._used + size]
        target[:] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        self._used += -(-size // 64) * 64  # aligned for every type
        self.nbytes += size

    @staticmethod
    def _refuse(needed: int, free: int, count: int) -> None:
        if needed > free:
            raise DataError(
                f"data.cache=ram: {count} decoded images need {_size(needed)}, "
                f"{_size(free)} are free; use data.cache=none"
            )


_DTYPES = [np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)]


def available_memory() -> int:
    """Bytes this process may still use: of the machine and of its control group."""
    limits = [_machine()]
    group = Path("/sys/fs/cgroup")
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None:
            # Cached files count as used, and go when memory is asked for.
            limits.append(most - now + _field(group / stat, "inactive_file"))
    return max(0, min(limits))


def _machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return _field(meminfo, "MemAvailable:") * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None  # no such control group here
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _steps(count: int, step: int, progress: bool) -> Iterable[int]:
    steps = range(0, count, step)
    if not progress:
        return steps
    from rich.progress import track

    return track(steps, description="caching images", transient=True)
