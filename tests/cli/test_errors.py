"""How an exception becomes text; codes and machine failures: test_main.py."""

from __future__ import annotations

import pytest

from cvtrain.errors import CheckpointError, DataError, RunError, UsageError
from cvtrain.failures import line, report


def test_the_gates_list_keeps_its_lines() -> None:
    error = DataError("2 errors in the data\na.jpg: truncated\n\n  b.jpg:   empty")
    assert line(error) == "2 errors in the data\n  a.jpg: truncated\n  b.jpg: empty"


@pytest.mark.parametrize("kind", [UsageError, RunError, CheckpointError])
def test_other_errors_are_one_line(kind: type[Exception]) -> None:
    assert line(kind("x=1:\n  not read\n")) == "x=1: not read"


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_printed_without_controls(capsys, debug) -> None:
    error = DataError("a\x1b[31m.png: bad\n  b\udcff: worse")
    assert report(error, debug=debug) == 1
    message = capsys.readouterr().err
    assert "\x1b" not in message
    assert message.endswith("cvtrain: a\\x1b[31m.png: bad\n  b\\udcff: worse\n")
