"""``cvtrain cache``: what is kept between runs, how large it is, and away with it. No torch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.command import Command, CommandLine
from cvtrain.config.groups import ConfDirs
from cvtrain.errors import RunError, UsageError
from cvtrain.text import say

COMMAND = Command(
    "cache",
    "features, proposals and checks kept between runs, their size: cache [clear NAME]",
    start="cvtrain.commands.cache:cache",
    takes_words=True,
    prints_only=True,
    order=10,
)

ALL = "all"
CLEAR = "clear"


@dataclass(frozen=True)
class Kept:
    """What a folder holds, links not followed.

    Attributes:
        files: how many.
        size: bytes in them.
        newest: when the last was written, seconds since 1970; 0 where there are none.
    """

    files: int = 0
    size: int = 0
    newest: float = 0.0


def cache(command: CommandLine, conf: ConfDirs) -> int:
    """``cvtrain cache`` lists, ``cvtrain cache clear NAME...`` deletes; the exit code.

    Raises:
        UsageError: other words, or keys.
        RunError: something cannot be deleted.
    """
    from cvtrain.storage import CACHE_KINDS, cache_folder

    if command.overrides:
        raise UsageError(
            f"{command.overrides[0]} is not read by cache: cvtrain cache, or cvtrain cache clear "
            f"{'|'.join([*CACHE_KINDS, ALL])}"
        )
    if not command.words:
        _list()
        return 0
    for kind in _chosen(command.words):
        folder = cache_folder(kind)
        before = measure(folder)
        empty(folder)
        left = measure(folder)  # of a run that writes meanwhile
        files, size = before.files - left.files, before.size - left.size
        say(f"{kind}: {_files(max(0, files))} deleted, {shown(max(0, size))}; {folder}")
    return 0


def _chosen(words: Sequence[str]) -> list[str]:
    """The kinds that ``clear NAME...`` names."""
    from cvtrain.config import suggest
    from cvtrain.storage import CACHE_KINDS

    there = [*CACHE_KINDS, ALL]
    clear = f"cvtrain cache {CLEAR} {'|'.join(there)}"
    if words[0] != CLEAR:
        raise UsageError(f"cache {words[0]}: write cvtrain cache (lists) or {clear}")
    if len(words) == 1:
        raise UsageError(f"cache {CLEAR}: say what: {clear}")
    for word in words[1:]:
        if word not in there:
            close = suggest.nearest(word, there)
            hint = f"did you mean {close}?" if close else f"there are {', '.join(there)}"
            raise UsageError(f"cache clear {word}: nothing of that name is kept; {hint}")
    return list(CACHE_KINDS) if ALL in words else list(dict.fromkeys(words[1:]))


def _list() -> None:
    from cvtrain.storage import CACHE_KINDS, cache_folder, cache_home
    from cvtrain.terminal import print_table

    kept = {kind: measure(cache_folder(kind)) for kind in CACHE_KINDS}
    say(f"{cache_home()} (XDG_CACHE_HOME puts it elsewhere)\n")
    rows = []
    for kind, found in kept.items():
        day = time.strftime("%Y-%m-%d", time.localtime(found.newest)) if found.files else "-"
        rows.append([kind, f"{found.files:,}", shown(found.size), day, CACHE_KINDS[kind]])
    print_table(["kept", "files", "size", "newest", "what it is"], rows)
    total = shown(sum(found.size for found in kept.values()))
    names = "|".join([*CACHE_KINDS, ALL])
    say(f"\n{total} in all; while nothing runs, cvtrain cache clear {names} deletes it")


def measure(folder: Path) -> Kept:
    """What is below a folder; one that is not there holds nothing."""
    files, size, newest = 0, 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(f"{parent}/{name}")
            except OSError:  # gone since it was listed
                continue
            files, size = files + 1, size + info.st_size
            newest = max(newest, info.st_mtime)
    return Kept(files, size, newest)


def empty(folder: Path) -> None:
    """Delete all that is in a folder; the folder stays, and so does what links lead to.

    Raises:
        RunError: something cannot be deleted.
    """
    try:
        if not folder.exists():
            return
        for entry in list(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{error.filename or folder} cannot be deleted ({error.strerror or error}); stop what "
            "uses it, or take the right to write there"
        ) from error


def _files(number: int) -> str:
    return f"{number:,} file{'' if number == 1 else 's'}"


def shown(size: float) -> str:
    """Bytes for people: ``0 B``, ``12.3 kB``, ``4.0 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
