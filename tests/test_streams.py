"""Commands whose output goes nowhere: closed, full, without a reader, without letters."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvtrain.streams import Output

CHECK = "cvtrain check data=shapes data.num_train=4 data.num_val=2 data.num_test=1"


def shell(line: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which ``cvtrain`` is this one; its code is that of the first command."""
    script = f'cvtrain() {{ "$0" -m cvtrain "$@"; }}\n{line}\nexit ${{PIPESTATUS[0]}}'
    words = ("bash", "-c", script, sys.executable, *words)
    return subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


class _Deaf(io.StringIO):
    """Fails until its descriptor leads elsewhere, as a file of the system does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        number, self.number = self.number, 0
        if number:
            raise OSError(number, os.strerror(number))
        return len(text)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EPIPE, "standard output: nobody reads it any more; nothing more is printed"),
        (errno.EBADF, "standard output: it is closed; nothing more is printed"),
        (errno.EIO, "standard output: the terminal is gone; nothing more is printed"),
        (errno.ENOSPC, "standard output: the disk is full; nothing more is printed"),
    ],
)
def test_why_nothing_is_heard_is_said_once(number: int, said: str, capsys) -> None:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        output = Output(_Deaf(number), descriptor, warns=(number,))
        print("a", file=output)
        assert capsys.readouterr().err == f"cvtrain: {said}\n"
        quiet = Output(_Deaf(number), descriptor)
        print("a", file=quiet)
        assert (capsys.readouterr().err, quiet.lost) == ("", number)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("cvtrain list scheduler >&-", 1, "standard output: it is closed; nothing more is"),
        ("cvtrain list scheduler > /dev/full", 1, "standard output: the disk is full; nothing"),
        ("cvtrain --help | head -1", 0, ""),
        ("cvtrain list model | true", 0, ""),
        ("cvtrain list nothing 2>&-", 2, ""),
        ("cvtrain list nothing 2> /dev/full", 2, ""),
        ("cvtrain list nothing >&- 2>&-", 2, ""),
        (
            f"{CHECK} run_dir=$1/a >&-",
            0,
            "standard output: it is closed",
        ),
        (
            f"{CHECK} run_dir=$1/b | true",
            0,
            "",
        ),
    ],
)
def test_output_that_goes_nowhere(line: str, code: int, said: str, tmp_path: Path) -> None:
    done = shell(line, str(tmp_path))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == (1 if said else 0), done.stderr
    if "check" in line:
        assert len(list(tmp_path.glob("*/check.json"))) == 1


def test_letters_that_the_terminal_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "k\u00e4fer"
    folder.mkdir(parents=True)
    line = "cvtrain check data=folder data.root=$1"
    done = shell(line, str(folder), PYTHONIOENCODING="ascii", COLUMNS="200")
    assert done.returncode == 1
    assert "k\\xe4fer" in done.stdout + done.stderr
    assert "unexpected" not in done.stderr


TRAIN = """cvtrain task=detection model=yolo backbone.widths=[4,8] backbone.blocks=[1,1] \\
model.hidden=16 data.num_train=4 data.num_val=2 data.num_test=1 data.image_size=64 \\
data.batch_size=2 data.num_workers=0 trainer.max_epochs=1 trainer.accelerator=cpu \\
callbacks.pictures=null run_dir=$1/run"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "said"),
    [
        (">&-", "standard output: it is closed; nothing more is printed"),
        ("> /dev/full", "standard output: the disk is full; nothing more is printed"),
        ("| head -1", "standard output: nobody reads it any more; nothing more is printed"),
    ],
)
def test_a_training_goes_on_unheard(end: str, said: str, tmp_path: Path) -> None:
    done = shell(f"{TRAIN} {end}", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"cvtrain: {said}"]
    assert (tmp_path / "run" / "results.json").is_file()
    assert "epoch 1/1" in (tmp_path / "run" / "train.log").read_text()
