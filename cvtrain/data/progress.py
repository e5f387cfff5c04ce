"""A bar on stderr while files are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def file_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where a person looks at it; gives what is called with the files done."""
    from cvtrain.terminal import Terminal

    console = Terminal(stderr=True)
    if not wanted or not console.is_terminal or not total:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        "checking files",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
