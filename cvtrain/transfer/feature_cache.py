"""Features on disk: computed once, then read where they lie, in this run and the next.

One folder a data set and network below ``$XDG_CACHE_HOME/cvtrain/features``, named by what its
features follow from. It is written beside and renamed, so that what a killed run leaves is never
read; and it may be deleted at any time. ``Store`` holds a row an image, ``Arrays`` several arrays
with any number of rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain import storage
from cvtrain.data.table import Blobs, Strings, Table
from cvtrain.errors import RunError
from cvtrain.storage import flush_to_disk, require_room, reserve

VERSION = 1
"""Of the files; another one's are not read."""

_FILE, _INDEX = "features.npy", "index.json"
_TRIED = 4  # batches after which the rest is estimated
_PARTIAL = ".partial"
_OLD = 24 * 3600.0  # seconds after which a half-written folder is nobody's any more


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/cvtrain/features``, by default below ``~/.cache``."""
    return storage.cache_folder("features")


class _Folder:
    """A folder of the cache: whole, or not there."""

    remedy: str
    """What a user can do where there is no room, beside setting XDG_CACHE_HOME."""

    def __init__(self, key: str) -> None:
        self.path = cache_folder() / key

    def _make(self, fill: Callable[[Path], None], there: Callable[[], bool]) -> None:
        """Let ``fill`` write into a folder beside, and rename it.

        Raises:
            RunError: the folder cannot be written.
        """
        partial = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            prefix = f".{self.path.name}."
            partial = Path(tempfile.mkdtemp(_PARTIAL, prefix, dir=self.path.parent))
            fill(partial)
            for file in (*partial.iterdir(), partial):
                flush_to_disk(file)  # after a power cut, room that was reserved reads as zeros
            if self.path.exists():  # damaged, or made by another run in the meantime
                if there():
                    return
                shutil.rmtree(self.path)
            partial.rename(self.path)
            flush_to_disk(self.path.parent)
        except OSError as error:
            raise RunError(
                f"features cannot be kept in {self.path.parent} ({error.strerror or error}): set "
                f"XDG_CACHE_HOME to a folder with room, or say {self.remedy}"
            ) from error
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove halves that were left a day ago or longer."""
        for left in self.path.parent.glob(f".*{_PARTIAL}"):
            if left.stat().st_mtime < time.time() - _OLD:
                shutil.rmtree(left, ignore_errors=True)


class Store(_Folder):
    """The features of one data set under one network.

    Args:
        key: names everything that they follow from.
        count: N, the number of samples.
    """

    remedy = "transfer.cache=false"

    def __init__(self, key: str, count: int) -> None:
        super().__init__(key)
        self.count = count

    def read(self) -> np.ndarray | None:
        """float32 ``(N, F)``, memory-mapped, read-only; None: not there, or damaged."""
        try:
            found = np.load(self.path / _FILE, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        whole = found.ndim == 2 and len(found) == self.count and found.dtype == np.float32
        return found if whole else None

    def write(self, batches: Iterator[np.ndarray]) -> None:
        """Keep the features that come in batches, float32 ``(B, F)``, N in all.

        Raises:
            RunError: the folder cannot be written.
        """
        self._make(
            lambda folder: self._fill(folder / _FILE, batches), lambda: self.read() is not None
        )

    def _fill(self, file: Path, batches: Iterator[np.ndarray]) -> None:
        at = 0
        with file.open("wb") as out:
            for batch in batches:
                if not at:
                    shape = (self.count, batch.shape[1])
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(out, header)
                    reserve(out, math.prod(shape) * 4)
                out.write(np.ascontiguousarray(batch, "<f4").data)
                at += len(batch)
        if at != self.count:
            raise RunError(f"{at} features of {self.count} images came; start again")


class Arrays(_Folder):
    """Arrays by name, each with a number of rows that is known only once all have come.

    Args:
        key: names everything that they follow from.
        remedy: what a user can do where the disk is too small, beside setting XDG_CACHE_HOME.
    """

    def __init__(self, key: str, remedy: str) -> None:
        super().__init__(key)
        self.remedy = remedy

    def read(self) -> dict[str, np.ndarray] | None:
        """The arrays, memory-mapped, read-only; None: not there, or damaged."""
        try:
            index = json.loads((self.path / _INDEX).read_text())
            return {name: self._mapped(name, **message) for name, message in index.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _mapped(self, name: str, dtype: str, shape: list[int]) -> np.ndarray:
        file, kind = self.path / f"{name}.bin", np.dtype(dtype)
        if file.stat().st_size != kind.itemsize * math.prod(shape):
            raise ValueError(f"{file} is not whole")
        if not math.prod(shape):
            return np.zeros(shape, kind)  # nothing cannot be mapped
        return np.memmap(file, kind, "r", shape=tuple(shape))

    def write(self, batches: Iterator[Mapping[str, np.ndarray]], count: int) -> None:
        """Keep arrays that come in batches of the same names, types and shapes but for the rows.

        Args:
            batches: at least one.
            count: how many will come, to see in time whether there is room.

        Raises:
            RunError: there is not, or the folder cannot be written.
        """
        self._make(
            lambda folder: self._fill(folder, batches, count), lambda: self.read() is not None
        )

    def _fill(self, folder: Path, batches: Iterator[Mapping[str, np.ndarray]], count: int) -> None:
        index: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for done, batch in enumerate(batches):
                for name, rows in batch.items():
                    if not done:
                        files[name] = stack.enter_context((folder / f"{name}.bin").open("wb"))
                        index[name] = {"dtype": rows.dtype.str, "shape": [0, *rows.shape[1:]]}
                    files[name].write(np.ascontiguousarray(rows).data)
                    index[name]["shape"][0] += len(rows)
                if done == min(_TRIED, count) - 1:
                    written = sum(file.tell() for file in files.values())
                    require_room(folder, written * (count / (done + 1) - 1))
        (folder / _INDEX).write_text(json.dumps(index))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.path.iterdir())


class Key:
    """A hash of all that features follow from, taken in part by part."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(f"cvtrain features {VERSION}".encode(), digest_size=16)

    @property
    def name(self) -> str:
        """The hash so far, as a file name."""
        return self._hash.hexdigest()

    def plain(self, value: Any) -> Key:
        """Take in plain values: dicts, lists, numbers, text."""
        self._hash.update(json.dumps(value, sort_keys=True, default=str).encode())
        return self

    def array(self, array: np.ndarray) -> Key:
        """Take in an array."""
        self.plain([str(array.dtype), list(array.shape)])
        self._hash.update(np.ascontiguousarray(array).data)
        return self

    def tensors(self, state: Mapping[str, Tensor]) -> Key:
        """Take in a state dict, values and all."""
        for name, tensor in state.items():
            self.plain([name, str(tensor.dtype), list(tensor.shape)])
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            self._hash.update(flat.view(torch.uint8).numpy().data)
        return self

    def table(self, table: Table) -> Key:
        """Take in a table: its arrays, and of each file the name, size and time of change."""
        for field in fields(table):
            value = getattr(table, field.name)
            if isinstance(value, np.ndarray):
                self.plain([field.name]).array(value)
            elif isinstance(value, (Strings, Blobs)):
                self.plain([field.name, len(value)])
                self._hash.update(value.offsets.data)
                self._hash.update(value.buffer.data)
        self.plain([table.classes.names, table.classes.ids])
        if table.generator is None:
            for row in range(len(table)):
                status = Path(table.root, table.files[row]).stat()
                self._hash.update(f"{status.st_size} {status.st_mtime_ns};".encode())
        return self
