"""What a user sees of an exception."""

from __future__ import annotations

import errno

import pytest

from cvtrain.cli.errors import line, report
from cvtrain.errors import CheckpointError, DataError, RunError, UsageError


def test_the_gates_list_keeps_its_lines() -> None:
    error = DataError("2 errors in the data\na.jpg: truncated\n\n  b.jpg:   empty")
    assert line(error) == "2 errors in the data\n  a.jpg: truncated\n  b.jpg: empty"


@pytest.mark.parametrize("kind", [UsageError, RunError, CheckpointError])
def test_other_errors_are_one_line(kind: type[Exception]) -> None:
    assert line(kind("x=1:\n  not read\n")) == "x=1: not read"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no"), 2, "no"),
        (DataError("no"), 1, "no"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "the disk is full: runs/a"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "data.batch_size"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_exit_codes_and_words(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) == 1
