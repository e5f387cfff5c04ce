"""Standard output and error that cannot be written to: closed, full, hung up, or without letters.

What a command has to do does not depend on somebody listening: it goes on, says once that it is
not heard, and ends with its own exit code.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO, cast

_WHY = {
    errno.EPIPE: "nobody reads it any more",
    errno.EIO: "the terminal is gone",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full",
    errno.EBADF: "it is closed",
}


class Output(io.TextIOBase):
    """A text stream that turns to ``os.devnull`` at the first error of the operating system.

    Args:
        stream: what to write to.
        number: its file descriptor, which processes started later inherit.
        warns: the reasons that are said on stderr (``errno`` values).

    Attributes:
        lost: why nothing is heard any more (an ``errno``); None: it is heard.
    """

    def __init__(self, stream: TextIO, number: int, warns: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.stream = stream
        self.number = number
        self.warns = warns
        self.lost: int | None = None

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._turn_away(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._turn_away(error)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    @property
    def buffer(self) -> Any:
        """The bytes below."""
        return self.stream.buffer

    def reconfigure(self, **options: Any) -> None:
        """As of the stream itself."""
        cast(io.TextIOWrapper, self.stream).reconfigure(**options)

    def _turn_away(self, error: OSError) -> None:
        """From here on nothing is written, by this process or those that it starts."""
        self.lost = error.errno
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.number)
        os.close(null)
        with contextlib.suppress(OSError):
            self.stream.flush()  # what had gathered goes there too, not to an error at the end
        if error.errno in self.warns:
            say_lost(error.errno)


def say_lost(reason: int) -> None:
    """Say on stderr why nothing more is heard."""
    name = _WHY.get(reason, os.strerror(reason))
    print(f"cvtrain: standard output: {name}; nothing more is printed", file=sys.stderr, flush=True)


def guard(*, pipe_warns: bool) -> None:
    """Make this process's output safe to write to; letters that it lacks are escaped.

    Args:
        pipe_warns: whether a reader that has left (``| head -1``) is worth a line: for work that
            goes on.
    """
    closed = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # a file opened later would get its number, and be written to
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY
            opened = os.open(os.devnull, flags)
            assert opened == number, "the lowest number that is free"
            closed.append(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warns = (errno.EIO, errno.ENOSPC, errno.EDQUOT, *((errno.EPIPE,) if pipe_warns else ()))
    sys.stderr = cast(TextIO, Output(sys.stderr, 2))
    output = Output(sys.stdout, 1, warns)
    sys.stdout = cast(TextIO, output)
    if 1 in closed:
        output.lost = errno.EBADF
        say_lost(errno.EBADF)


def was_lost() -> bool:
    """Whether some of what was printed came nowhere, other than by a reader who had enough."""
    return isinstance(sys.stdout, Output) and sys.stdout.lost not in (None, errno.EPIPE)
