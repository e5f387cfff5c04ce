"""Where a detector's proposals come from: selective search, made once and cached, or a file."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cvtrain.data.decode import decode_bytes
from cvtrain.data.table import Table
from cvtrain.data.worker import start_worker, starting_workers
from cvtrain.errors import DataError, RunError, UsageError
from cvtrain.proposals.box_cache import Cache, content_key
from cvtrain.proposals.names import Names
from cvtrain.proposals.selective_search import Boxes, Settings, selective_search, settings


class Proposals(Protocol):
    """What the loader asks for boxes.

    ``prepare`` comes first, once a process; ``boxes`` may then be called in any worker.
    """

    def prepare(
        self,
        tables: Mapping[str, Table],
        *,
        channels: int = 3,
        workers: int | None = None,
        progress: bool = True,
    ) -> Prepared:
        """See that there are boxes for every image of these tables."""

    def boxes(self, file: str) -> Boxes:
        """Of an image by its name in the table: original pixels, best first, at least one."""

    def find(self, file: str, image: np.ndarray) -> Boxes:
        """Of an image that no table holds, ``(H, W, C)``, by its name below what is predicted on.

        Needs no ``prepare``.
        """


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` did.

    Attributes:
        images: how many there are, of all splits.
        made: for how many of them boxes were made now; the others were there.
        seconds: processor seconds per image, mean over all of them, as measured when their boxes
            were made; 0 for boxes from a file.
        wall: seconds it took now.
    """

    images: int
    made: int
    seconds: float
    wall: float

    def summary(self) -> str:
        """A line for the terminal."""
        message = f"boxes made for {self.made:,} of {self.images:,} images in {self.wall:.1f} s"
        return message + (
            f"; {self.seconds:.2f} processor seconds per image" if self.seconds else ""
        )


class SelectiveSearch:
    """Selective search (Uijlings et al. 2013), in worker processes, cached by image content.

    Args:
        mode: ``single``, ``fast`` or ``quality``.
        colors, similarities, thresholds: instead of the mode's own; None: the mode's.
        sigma, min_size, min_side, max_side, max_boxes, seed: see ``Settings``.

    Raises:
        UsageError: a value that cannot be used.
    """

    def __init__(
        self,
        mode: str = "fast",
        *,
        colors: Sequence[str] | None = None,
        similarities: Sequence[str] | None = None,
        thresholds: Sequence[float] | None = None,
        sigma: float = 0.8,
        min_size: int | None = None,
        min_side: float = 0.0,
        max_side: int | None = None,
        max_boxes: int = 2000,
        seed: int = 0,
    ) -> None:
        self.settings = settings(
            mode,
            colors=colors,
            similarities=similarities,
            thresholds=thresholds,
            sigma=float(sigma),
            min_size=min_size,
            min_side=float(min_side),
            max_side=max_side,
            max_boxes=max_boxes,
            seed=seed,
        )
        self._cache = Cache(self.settings, 3)
        self._names = Names(())
        self._keys = np.zeros((0, 16), np.uint8)

    def prepare(
        self,
        tables: Mapping[str, Table],
        *,
        channels: int = 3,
        workers: int | None = None,
        progress: bool = True,
    ) -> Prepared:
        """Makes the boxes of every image that has none in the cache yet.

        What was made stays made: a run that is interrupted goes on from there.

        Args:
            tables: split -> table, as the gate left them.
            channels: of the images, 1 or 3.
            workers: processes; None: one a core, at most 8; 0: this one.
            progress: a bar on stderr, if that is a terminal.

        Raises:
            UsageError: images of other channels.
            DataError: an image cannot be read.
            RunError: the cache cannot be written, or a worker process was killed.
        """
        _refuse_channels(channels)
        begun = time.perf_counter()
        self._cache = Cache(self.settings, channels)
        unique = {
            table.files[i]: (table, i) for table in tables.values() for i in range(len(table))
        }
        files = list(unique)
        keys = np.zeros((len(files), 16), np.uint8)
        made, seconds = 0, 0.0
        job = _Job(tuple(tables.values()), self.settings, channels)
        places = {id(table): n for n, table in enumerate(job.tables)}
        items = [(places[id(table)], i) for table, i in unique.values()]
        with _bar("selective search", len(items), progress) as tick:
            for row, done in _run(job, items, _count(workers, len(items)), tick):
                keys[row] = np.frombuffer(done.key, np.uint8)
                made += done.made
                seconds += done.seconds
        self._names, self._keys = Names(files), keys
        wall = time.perf_counter() - begun
        return Prepared(len(files), made, seconds / max(1, len(files)), wall)

    def boxes(self, file: str) -> Boxes:
        """The boxes of an image that ``prepare`` saw.

        Raises:
            DataError: it did not, or the cache was emptied since.
        """
        row = self._names.row(file)
        found = None if row < 0 else self._cache.load(self._keys[row].tobytes())
        if found is None:
            raise DataError(
                f"{file}: its proposals are not in {self._cache.folder} (any more); start again"
            )
        return found

    def find(self, file: str, image: np.ndarray) -> Boxes:
        """The boxes of an image, from the cache where they were made before.

        Raises:
            UsageError: an image of other channels.
            RunError: the cache cannot be written.
        """
        channels = 1 if image.ndim == 2 else image.shape[2]
        _refuse_channels(channels)
        cache, key = Cache(self.settings, channels), content_key(image)
        return cache.load(key) or cache.cut(_search(image, cache, key))


def _refuse_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise UsageError(
            f"data.channels={channels}: selective search takes RGB or gray images, 3 or 1; "
            "give proposals=file with boxes of your own"
        )


def _search(image: np.ndarray, cache: Cache, key: bytes) -> Boxes:
    """Boxes of an image, timed, and into the cache."""
    begun = time.process_time()
    found = selective_search(image, cache.settings)
    found = replace(found, seconds=time.process_time() - begun)
    cache.save(key, found)
    return found


@dataclass(frozen=True)
class _Job:
    tables: tuple[Table, ...]
    settings: Settings
    channels: int


@dataclass(frozen=True)
class _Done:
    key: bytes
    made: bool
    seconds: float


def _make(job: _Job, place: int, row: int) -> _Done:
    """Boxes of one image into the cache, unless they are there."""
    table, cache = job.tables[place], Cache(job.settings, job.channels)
    file = table.files[row]
    if table.generator is not None:
        raw = image = table.generator(file)  # type: ignore[operator]
        key = content_key(image)
    else:
        path = Path(table.root, file)
        try:
            raw = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}; restore the file") from error
        key, image = content_key(raw.tobytes()), None
    known = cache.load(key)
    if known is not None:
        return _Done(key, False, known.seconds)
    if image is None:
        image = decode_bytes(raw, str(Path(table.root, file)), job.channels)
    return _Done(key, True, _search(image, cache, key).seconds)


_JOB: _Job | None = None
"""In a worker process: what it was started for."""


def _start(job: _Job) -> None:
    global _JOB
    start_worker()
    _JOB = job


def _make_here(place: int, row: int) -> _Done:
    assert _JOB is not None
    return _make(_JOB, place, row)


def _run(
    job: _Job, items: Sequence[tuple[int, int]], workers: int, tick: Callable[[], None]
) -> Iterator[tuple[int, _Done]]:
    """(number of the item, what came of it), in the order in which they end."""
    if not workers:
        for n, item in enumerate(items):
            yield n, _make(job, *item)
            tick()
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with starting_workers():
        pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(job,))
    futures: dict[Future[_Done], int] = {}
    try:
        for n, item in enumerate(items):
            with starting_workers():
                futures[pool.submit(_make_here, *item)] = n
        for future in as_completed(futures):
            yield futures[future], future.result()
            tick()
    except BrokenProcessPool as error:
        raise RunError(
            "a process that makes proposals was killed, most likely for memory; lower "
            "data.num_workers, or set proposals.max_side=1000"
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):  # a search takes seconds
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _count(workers: int | None, images: int) -> int:
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cores or 1, 8)
    return min(workers, images)


@contextmanager
def _bar(what: str, total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr where a person looks at it."""
    from cvtrain.terminal import Terminal

    console = Terminal(stderr=True)
    if not wanted or not console.is_terminal or not total:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns: list[Any] = ["{task.description}", BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
