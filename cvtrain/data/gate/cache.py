"""Remembers good files for as long as their path, size and mtime stay the same; bad ones are few.

One npz a data set and kind of probe under ``$XDG_CACHE_HOME/cvtrain/gate``, never in the data set.
It is read without pickle, written beside and renamed, and only ever a shortcut: where it is broken
or cannot be written, the caller is told and goes on without.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain import storage
from cvtrain.data.gate.decode_check import RECORD, VERSION, Probes, probe_files
from cvtrain.errors import RunError
from cvtrain.storage import BROKEN_NPZ, replacing

_FRESH_NS = 2_000_000_000
"""A file changed less than this before it was looked at is not remembered: it could change again
within its clock's tick (2 s on FAT), at the same size, and nobody would see."""


@dataclass
class _Entries:
    """What the file holds: R rows, sorted by key.

    Attributes:
        keys: uint64 ``(R, 2)`` hash of the path.
        sizes, mtimes: int64 ``(R,)`` bytes, nanoseconds.
        records: R of ``RECORD``.
        starts: int64 ``(R + 1,)`` into ``values``, ``counts`` and ``colors``; masks only. -1: no
            color, the file has no palette.
    """

    keys: np.ndarray
    sizes: np.ndarray
    mtimes: np.ndarray
    records: np.ndarray
    starts: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    colors: np.ndarray


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/cvtrain/gate``, by default below ``~/.cache``."""
    return storage.cache_folder("gate")


def cached_probe(
    root: str,
    files: Sequence[str],
    *,
    masks: bool,
    channels: int,
    workers: int,
    tick: Any = None,
    warn: Callable[[str], None],
    colors: bool = False,
) -> Probes:
    """``probe_files`` for those files below ``root`` that changed since they were last looked at.

    Args:
        root: absolute path of the data set.
        files: POSIX paths below it.
        masks: as for ``probe_files``, and so are the next three.
        channels: of the images the loader will make.
        workers: threads.
        tick: called with the number of files done.
        warn: told in one line where the cache cannot be used.
        colors: of masks: their values are packed colors.
    """
    path = _cache_path(root, masks, channels, colors)
    old = _load(path, warn)
    keys, sizes, mtimes = _stat(root, files)
    rows = _find(old, keys, sizes, mtimes)
    probes = Probes.blank(len(files))
    hits = np.flatnonzero(rows >= 0)
    if old is not None and len(hits):
        probes.records[hits] = old.records[rows[hits]]
        for i in hits if masks else ():
            span = slice(int(old.starts[rows[i]]), int(old.starts[rows[i] + 1]))
            if span.stop > span.start:
                probes.values[int(i)] = (old.values[span], old.counts[span])
                if old.colors[span.start] >= 0:
                    probes.palettes[int(i)] = old.colors[span]
    probes.cached = len(hits)
    if tick is not None and len(hits):
        tick(len(hits))
    missing = np.flatnonzero(rows < 0).tolist()
    if not missing:
        return probes
    now = time.time_ns()
    fresh = probe_files(
        [f"{root}/{files[i]}" for i in missing],
        masks=masks,
        channels=channels,
        workers=workers,
        tick=tick,
        colors=colors,
    )
    probes.records[missing] = fresh.records
    probes.details.update({missing[i]: text for i, text in fresh.details.items()})
    probes.values.update({missing[i]: pair for i, pair in fresh.values.items()})
    probes.palettes.update({missing[i]: colors for i, colors in fresh.palettes.items()})
    keep = probes.ok & (sizes >= 0) & (mtimes < now - _FRESH_NS)
    if keep[missing].any():
        _save(path, _merge(old, _entries(probes, keys, sizes, mtimes, keep)), warn)
    return probes


def _cache_path(root: str, masks: bool, channels: int, colors: bool) -> Path:
    kind = ("colors" if colors else "masks") if masks else f"images-{channels}"
    name = hashlib.blake2b(os.fsencode(root), digest_size=12).hexdigest()
    return cache_folder() / f"{name}-{kind}-{VERSION}.npz"


def _stat(root: str, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys uint64 ``(N, 2)``, sizes and mtimes int64 ``(N,)``; size -1: cannot be looked at."""
    digests = bytearray()
    sizes = np.full(len(files), -1, np.int64)
    mtimes = np.zeros(len(files), np.int64)
    for i, name in enumerate(files):
        digests += hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
        try:
            info = os.stat(f"{root}/{name}")  # noqa: PTH116
        except (OSError, ValueError):  # the probe says why
            continue
        sizes[i], mtimes[i] = info.st_size, info.st_mtime_ns
    return np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2), sizes, mtimes


def _find(
    old: _Entries | None, keys: np.ndarray, sizes: np.ndarray, mtimes: np.ndarray
) -> np.ndarray:
    """int64 ``(N,)`` row of each file's entry, -1 where there is none that still holds."""
    if old is None or not len(old.keys) or not len(keys):
        return np.full(len(keys), -1, np.int64)
    rows = np.minimum(np.searchsorted(old.keys[:, 0], keys[:, 0]), len(old.keys) - 1)
    same = (old.keys[rows] == keys).all(1)
    same &= (old.sizes[rows] == sizes) & (old.mtimes[rows] == mtimes) & (sizes >= 0)
    return np.where(same, rows, -1)


def _entries(
    probes: Probes, keys: np.ndarray, sizes: np.ndarray, mtimes: np.ndarray, keep: np.ndarray
) -> _Entries:
    rows = np.flatnonzero(keep)
    _, first = np.unique(keys[rows, 0], return_index=True)  # a file may be listed twice
    rows = rows[first]
    none = np.zeros(0, np.int64)
    pairs = [probes.values.get(int(i), (none, none)) for i in rows]
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(values) for values, _ in pairs], out=starts[1:])
    return _Entries(
        keys=keys[rows],
        sizes=sizes[rows],
        mtimes=mtimes[rows],
        records=probes.records[rows],
        starts=starts,
        values=np.concatenate([none, *(values for values, _ in pairs)]),
        counts=np.concatenate([none, *(counts for _, counts in pairs)]),
        colors=np.concatenate(
            [
                none,
                *(
                    probes.palettes.get(int(i), np.full(len(values), -1, np.int64))
                    for i, (values, _) in zip(rows, pairs)
                ),
            ]
        ),
    )


def _merge(old: _Entries | None, new: _Entries) -> _Entries:
    """Both, sorted by key; where they speak of the same file, ``new`` counts."""
    if old is None:
        return new
    kept = np.flatnonzero(~np.isin(old.keys[:, 0], new.keys[:, 0]))
    lengths = np.concatenate([np.diff(old.starts)[kept], np.diff(new.starts)])
    inside = np.repeat(np.isin(np.arange(len(old.keys)), kept), np.diff(old.starts))
    keys = np.concatenate([old.keys[kept], new.keys])
    values = np.concatenate([old.values[inside], new.values])
    counts = np.concatenate([old.counts[inside], new.counts])
    colors = np.concatenate([old.colors[inside], new.colors])
    begins = np.concatenate([[0], np.cumsum(lengths)])
    order = np.argsort(keys[:, 0], kind="stable")
    starts = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    # Row r of the sorted list holds values begins[order[r]] + 0 .. lengths[order[r]] - 1.
    places = np.repeat(begins[:-1][order] - starts[:-1], lengths[order]) + np.arange(len(values))
    return _Entries(
        keys=keys[order],
        sizes=np.concatenate([old.sizes[kept], new.sizes])[order],
        mtimes=np.concatenate([old.mtimes[kept], new.mtimes])[order],
        records=np.concatenate([old.records[kept], new.records])[order],
        starts=starts,
        values=values[places],
        counts=counts[places],
        colors=colors[places],
    )


def _load(path: Path, warn: Callable[[str], None]) -> _Entries | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            entries = _Entries(**{name: arrays[name] for name in _Entries.__dataclass_fields__})
    except FileNotFoundError:
        return None
    except BROKEN_NPZ as error:
        warn(f"the cache {path} cannot be read ({_short(error)}); every file is opened again")
        return None
    if not _consistent(entries):
        warn(f"the cache {path} is damaged; every file is opened again")
        return None
    return entries


def _consistent(e: _Entries) -> bool:
    count = len(e.sizes)
    lengths = [len(e.keys), len(e.mtimes), len(e.records), len(e.starts) - 1]
    return bool(
        all(n == count for n in lengths)
        and e.keys.shape == (count, 2)
        and e.records.dtype == RECORD
        and len(e.values) == len(e.counts) == len(e.colors) == e.starts[-1]
        and (np.diff(e.starts) >= 0).all()
        and (e.keys[1:, 0] >= e.keys[:-1, 0]).all()
    )


def _save(path: Path, entries: _Entries, warn: Callable[[str], None]) -> None:
    try:
        remedy = "the next run opens all images again"
        with replacing(path, remedy) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **vars(entries))
    except RunError as error:
        warn(str(error))


def _short(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
