"""Files that survive a kill and a power cut, and the marker by which a run folder is known.

Every file is written beside its name, brought to the disk and renamed, so that a reader, a kill, a
full disk or a power cut never leaves half of one. What JSON cannot say (NaN, infinity) becomes
null; no value is rounded.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cvtrain.errors import RunError, UsageError

REMEDY = "free some space there or choose another run_dir=DIR"
"""What a user does about a file of a run that cannot be written."""

RUN_MARKER = ".cvtrain-run"
"""An empty file in every folder that a command writes its run, check, pictures or sweep to."""

_UNMARKED = ("config.yaml", "overrides.txt", "environment.json")
"""What a run folder from before there was a marker holds."""


def mark_run_folder(path: str | Path) -> None:
    """Make ``path`` a run folder: no reader takes what lies in it for data.

    Raises:
        RunError: the folder cannot be written to.
    """
    marker = Path(path) / RUN_MARKER
    if not marker.is_file():
        write_atomic(marker, lambda file: None)


def is_run_folder(path: str | Path) -> bool:
    """Whether a cvtrain command wrote its output to the folder ``path``."""
    folder = Path(path)
    return (folder / RUN_MARKER).is_file() or all((folder / name).is_file() for name in _UNMARKED)


def holds_run(path: str | Path) -> bool:
    """Whether a command has finished anything in the folder ``path``: an epoch, a score,
    predictions. What ended before that may be written over.
    """
    folder = Path(path)
    made = (folder / "results.json", folder / "predictions.json", *folder.glob("stages/*.pt"))
    return any(file.is_file() for file in (*made, *folder.glob("checkpoints/*.ckpt")))


def lists_run_folder(names: Iterable[str]) -> bool:
    """``is_run_folder`` of a folder whose entries have these names."""
    there = set(names)
    return RUN_MARKER in there or there.issuperset(_UNMARKED)


def refuse_data_folder(key: str, folder: str | Path, root: str | Path | None) -> None:
    """Raise UsageError where ``folder`` is the data set's, or holds files of the data set.

    A run folder's files are no data; one with images in it would take them from the data set.

    Args:
        key: what was typed: ``run_dir`` or ``sweep_dir``.
        folder: where a command is to write.
        root: the data set's folder, or the images to predict on; None: there is none.
    """
    if root is None:
        return
    out, data = Path(folder).expanduser().resolve(), Path(root).expanduser().resolve()
    if out == data:
        raise UsageError(f"{key}={folder} is the data set's own folder; choose another folder")
    if data not in out.parents or not out.is_dir():
        return
    between = [out, *(parent for parent in out.parents if data in parent.parents)]
    if any(is_run_folder(path) for path in between):
        return
    held = next(
        (name for name in sorted(p.name for p in out.iterdir()) if not name.startswith(".")), None
    )
    if held is not None:
        raise UsageError(
            f"{key}={folder} lies in the data set and holds {held}; choose a new folder"
        )


def jsonable(value: Any) -> Any:
    """Plain JSON of a nested value: NaN and infinity to None, arrays and tensors to lists.

    Raises:
        TypeError: a value that is none of number, string, path, array, mapping or sequence.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return jsonable(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")


def write_json_atomic(path: str | Path, obj: Any, remedy: str = REMEDY) -> Path:
    """Write one value as indented JSON; the old file stays until the new one is whole.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """
    text = json.dumps(jsonable(obj), indent=2, allow_nan=False)
    return write_atomic(path, lambda file: file.write(text + "\n"), remedy)


def write_json_list_atomic(path: str | Path, entries: Iterable[Any]) -> Path:
    """Write a JSON list, an entry a line, without holding more than one entry as text.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """

    def write(file: IO[str]) -> None:
        file.writelines(json_list_lines(entries))

    return write_atomic(path, write)


def write_atomic(path: str | Path, write: Callable[[IO[str]], Any], remedy: str = REMEDY) -> Path:
    """Call ``write`` on a text file beside ``path``, then rename it; on failure nothing is left.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """
    path = Path(path)
    with replacing(path, remedy) as partial, partial.open("w", encoding="utf-8") as file:
        write(file)
    return path


@contextmanager
def replacing(path: Path, remedy: str = REMEDY, durable: bool = True) -> Iterator[Path]:
    """A name to write to instead of ``path``; it takes its place at the end, or vanishes.

    The name keeps the suffix, by which some writers choose the format.

    Args:
        path: of the file.
        remedy: what the user can do where it cannot be written.
        durable: wait until it is on the disk. Without, a power cut may leave the file empty: for
            what is written for every image and easily made again.

    Raises:
        RunError: writing failed in the operating system (no space, no permission).
    """
    suffix = path.suffix if len(path.suffix) < 16 else ""
    token = f"{os.getpid()}-{secrets.token_hex(3)}"  # caches are shared by machines
    partial = path.with_name(f".{path.stem[:32]}.{token}.partial{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                flush_to_disk(partial)
            partial.replace(path)
            if durable:
                flush_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def require_room(folder: Path, size: float) -> None:
    """Raise OSError where so many bytes more do not fit."""
    free = shutil.disk_usage(folder).free
    if size > free:
        needed = f"{size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, needed)


def reserve(file: IO[bytes], size: int) -> None:
    """See to it that so many bytes more, from where ``file`` is, find room.

    Raises:
        OSError: there is not enough.
    """
    file.flush()
    require_room(Path(file.name).parent, size)
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file.fileno(), file.tell(), size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise  # others cannot reserve: a write that finds no room raises


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would survive a power cut.

    Raises:
        OSError: they would not.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.EACCES)):
            raise  # some file systems keep a folder's names by themselves, and refuse this
    finally:
        os.close(handle)


def json_list_lines(entries: Iterable[Any]) -> Iterator[str]:
    """A JSON list as text, an entry per line."""
    separator = "[\n"
    for entry in entries:
        yield separator + json_line(entry)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def json_line(value: Any) -> str:
    """One value as JSON on one line."""
    return json.dumps(jsonable(value), allow_nan=False)


BROKEN_NPZ = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise of an .npz with wrong bytes in it, depending on where they are."""


# What is kept between runs: below the user's cache, never in the data ----------------------------

CACHE_KINDS = {
    "features": "of images by fixed backbones, and R-CNN's; computed again when they are asked for",
    "gate": "which files were found good; they are opened and looked at again",
    "proposals": "of selective search, one file per image; computed again, about 1 s per image",
}
"""Folder -> what is in it, and what it costs to be without."""


def cache_home() -> Path:
    """``$XDG_CACHE_HOME/cvtrain``, by default below ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(home) / "cvtrain"


def cache_folder(kind: str) -> Path:
    """The folder of one of ``CACHE_KINDS``."""
    assert kind in CACHE_KINDS, kind
    return cache_home() / kind
