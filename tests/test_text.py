"""Foreign text: in a terminal, a table of a file, a file's name."""

from __future__ import annotations

import io
import os
import sys

import pytest
from rich.table import Table
from rich.text import Text

from cvtrain.terminal import WIDE, Terminal
from cvtrain.text import (
    LONGEST_NAME,
    csv_cell,
    duration,
    fitting,
    markdown_cell,
    output_file,
    printable,
    say,
    shortened,
    three_digits,
    wrapped,
)

HOSTILE = [
    "\x1b[31mred",
    "a\x1b]0;title\x07b",
    "stop [/sign]",
    "[a].png",
    ":smile:",
    "b\udcff\r\x9b",
]


def test_a_terminal_shows_foreign_text_as_it_is() -> None:
    terminal = Terminal(file=io.StringIO(), width=100)
    table = Table(box=None)
    for text in HOSTILE:
        table.add_row(text, Text(text), style="bold")
    terminal.print(table)
    for text in HOSTILE:
        terminal.print(text)
        terminal.print(Text(text), text, style="red")
    shown = terminal.file.getvalue()
    assert all(c.isprintable() for c in shown.replace("\n", ""))
    assert shown.encode()  # nothing that is no UTF-8
    for text in HOSTILE:
        assert printable(text) in shown
    assert "\\x1b[31mred" in shown


def test_the_terminals_own_colors_stay() -> None:
    terminal = Terminal(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    terminal.print("\x1b[5mx", style="red")
    assert terminal.file.getvalue() == "\x1b[31m\\x1b[5mx\x1b[0m\n"


def test_lines_of_a_file_are_as_long_as_they_are() -> None:
    terminal = Terminal(file=io.StringIO())
    assert terminal.width == WIDE
    terminal.print("word " * 200)
    assert terminal.file.getvalue().count("\n") == 1


def test_say_keeps_its_own_line_ends_alone(capsys) -> None:
    say("one\ntw\x1bo\udcff")
    assert capsys.readouterr().out == "one\ntw\\x1bo\\udcff\n"


@pytest.mark.parametrize("limit", [1, 2, 5, 10, 19])
def test_what_is_shortened_keeps_both_ends(limit) -> None:
    text = "abcdefghijklmnopqrst"
    cut = shortened(text, limit)
    assert len(cut) == limit
    head, tail = cut.split("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert shortened(text, 20) == text


def test_a_line_takes_the_first_parts_that_fit() -> None:
    assert fitting(["epoch 1", "loss 2", "a long one", "b"], 16) == "epoch 1  loss 2"
    assert fitting(["epoch 1", "loss"], 3) == "epoch 1"


def test_three_digits() -> None:
    values = (3.9, 0.04123, 123, 12345, 2.0)
    assert [three_digits(v) for v in values] == ["3.90", "0.0412", "123", "1.23e+04", "2.00"]


def test_durations() -> None:
    times = (0.31, 9.96, 89, 95, 3600 * 3 + 290)
    assert [duration(t) for t in times] == ["0.3 s", "10 s", "89 s", "2 min", "3 h 5 min"]


def test_cells_of_files() -> None:
    assert markdown_cell("a|b\n<i>[x](y)`") == "a\\|b\\\\n&lt;i>\\[x\\](y)\\`"
    assert markdown_cell("traffic_light") == "traffic_light"
    assert markdown_cell("_x_") == "\\_x\\_"
    assert csv_cell("=cmd()\n") == "'=cmd()\\n"
    assert csv_cell("cat") == "cat"


def test_output_files_stay_in_their_folder_and_have_names_that_fit(tmp_path) -> None:
    assert str(output_file("a b/c.d.jpg", ".png")) == "a b/c.d.jpg.png"
    assert str(output_file("../../etc/x", ".png")) == "__/__/etc/x.png"
    assert str(output_file("/etc//./x", ".png")) == "etc/x.png"
    assert str(output_file("..", ".png")) == "...png"
    for name in ("x" * 255, "ü" * 127 + "y", "x" * 254 + "y"):
        made = output_file(name, ".png").name
        assert len(os.fsencode(made)) <= LONGEST_NAME
        (tmp_path / made).touch()
    assert len(list(tmp_path.iterdir())) == 3
    odd = os.fsdecode(b"caf\xe9" + b"z" * 240)
    assert "~" in output_file(odd, ".png").name
    if sys.platform == "linux":
        assert os.fsencode(output_file(os.fsdecode(b"caf\xe9"), ".png").name) == b"caf\xe9.png"


def test_long_lines_go_on_below_their_last_column() -> None:
    page = "short\n\n  --key=N    one two three four five\n  a long one two three"
    assert wrapped(page, 26).splitlines() == [
        "short",
        "",
        "  --key=N    one two three",
        "             four five",
        "  a long one two three",
    ]
