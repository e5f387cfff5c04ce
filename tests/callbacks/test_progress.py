from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cvtrain.callbacks import console as consoles
from cvtrain.callbacks.metrics_csv import History
from cvtrain.callbacks.progress import ProgressBar
from cvtrain.errors import UsageError
from cvtrain.terminal import Terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    monkeypatch.setattr(consoles, "_CONSOLE", console)
    return console


def test_a_terminal_shows_loss_metric_speed_and_memory(make_task, fit, terminal) -> None:
    fit(make_task(), ProgressBar(refresh_per_second=1e9), epochs=2)
    shown = terminal.file.getvalue()
    for part in ("epoch 1/2", "epoch 2/2", "validation", "3/3", "loss ", "images/s", "GiB"):
        assert part in shown
    assert "accuracy 0." in shown


def test_times_of_the_epoch_and_of_the_run_are_named(make_task, fit, terminal, tmp_path) -> None:
    terminal.width = 80
    fit(make_task(), ProgressBar(1e9), History(tmp_path / "metrics.csv"), epochs=2)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue()).replace("\r", "\n")
    bars = [line for line in shown.splitlines() if "batches" in line]
    runs = [line for line in shown.splitlines() if line.startswith("run: ")]
    assert any(re.search(r"batches  0:\d\d passed, 0:\d\d left", line) for line in bars)
    assert all(re.match(r"run: [\d.]+ s passed, [\d.]+ s left", line) for line in runs)
    assert len(runs) > 4
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80


def test_a_terminal_of_ascii(make_task, fit, monkeypatch, tmp_path) -> None:
    """LANG=C: the bar is drawn with what there is, nothing of it is an escape or an error."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)
    console = Terminal(file=file, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(consoles, "_CONSOLE", console)
    fit(make_task(), ProgressBar(1e9), History(tmp_path / "metrics.csv"), epochs=2)
    shown = raw.getvalue().decode("ascii")
    assert re.search(r"epoch 2/2 -{5,}[ -]* 3/3 batches", shown)
    assert "\\u" not in shown


def test_elsewhere_nothing_is_drawn(make_task, fit, monkeypatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(consoles, "_CONSOLE", console)
    fit(make_task(), ProgressBar(), epochs=1)
    assert console.file.getvalue() == ""


def test_an_error_takes_the_bar_away(make_task, fit, terminal) -> None:
    import pytorch_lightning as pl

    class Fail(pl.Callback):
        def on_train_batch_end(self, *_) -> None:
            raise RuntimeError("stop")

    bar = ProgressBar(1e9)
    with pytest.raises(RuntimeError, match="stop"):
        fit(make_task(), bar, Fail())
    assert bar._bar is None


def test_a_rate_is_positive() -> None:
    with pytest.raises(UsageError, match="refresh_per_second=0"):
        ProgressBar(0)
