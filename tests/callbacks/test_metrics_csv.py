from __future__ import annotations

import csv
import io
import logging
import re

import pytest

from cvtrain.callbacks import console as consoles
from cvtrain.callbacks.checkpoint import BestAndLast
from cvtrain.callbacks.metrics_csv import History, epoch_parts
from cvtrain.terminal import Terminal


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_an_epoch_from_zero(make_task, fit, tmp_path) -> None:
    task, history = make_task(), History(tmp_path / "metrics.csv")
    fit(task, history, epochs=3)
    rows = read(history.path)
    assert next(iter(rows[0])) == "epoch"
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[-1]["val/accuracy"]) == task.scores["accuracy"]
    assert float(rows[-1]["val/loss"]) == task.results["loss"]
    assert {row["train/num_lost_objects"] for row in rows} == {"12.0"}
    assert {row["lr"] for row in rows} == {"0.1"}
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_epochs_without_validation_have_empty_cells(make_task, fit, tmp_path) -> None:
    history = History(tmp_path / "metrics.csv")
    fit(make_task(), history, epochs=2, check_val_every_n_epoch=2)
    first, second = read(history.path)
    assert first["val/accuracy"] == ""
    assert second["val/accuracy"] != ""


def test_the_line_after_an_epoch(make_task, fit, tmp_path, said) -> None:
    fit(make_task(), History(tmp_path / "metrics.csv"), epochs=1)
    for part in ("epoch 1/1", "loss ", "val loss ", "accuracy ", "  epoch ", "  run ", "images/s"):
        assert part in said()
    assert "lost objects" not in said()  # counts are in metrics.csv


def test_a_resume_rewrites_the_rows_it_had(make_task, fit, header, tmp_path) -> None:
    path = tmp_path / "metrics.csv"
    saver = BestAndLast(tmp_path / "c", header)
    fit(make_task(), History(path), saver, epochs=2)
    rows = read(path)
    path.write_text(path.read_text() + "9,half a li")
    fit(make_task(), History(path), saver, epochs=3, ckpt_path=str(saver.last_path))
    assert read(path)[:2] == rows
    assert [row["epoch"] for row in read(path)] == ["0", "1", "2"]


def test_the_time_limit_ends_the_run_after_an_epoch(make_task, fit, tmp_path) -> None:
    history = History(tmp_path / "metrics.csv", max_minutes=1e-9)
    assert fit(make_task(), history, epochs=5).current_epoch == 1
    assert history.time_is_over


def test_time_before_a_resume_counts(tmp_path) -> None:
    history = History(tmp_path / "metrics.csv", max_minutes=1)
    history.load_state_dict({"rows": [{"epoch": 0, "seconds": 61.0}]})
    assert history.time_is_over
    assert history.seconds == pytest.approx(61)


def test_loggers_get_the_row_at_the_optimizer_step(make_task, fit, tmp_path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "log")
    seen = []
    logger.log_metrics = lambda metrics, step=None: seen.append((step, metrics))
    fit(make_task(), History(tmp_path / "metrics.csv"), epochs=2, loggers=[logger])
    assert [step for step, metrics in seen if "epoch" in metrics] == [3, 6]
    assert {"images_per_s", "memory_gib", "val/accuracy"} <= set(seen[-1][1])


def epochs_of(values: list[float], mode: str) -> list[bool]:
    rows = [{"epoch": n, "train/loss": 1.0, "val/x": v} for n, v in enumerate(values)]
    lines = [epoch_parts(rows[: n + 1], "x", mode, 9)[-1] for n in range(len(rows))]
    return [line.endswith("(best)") for line in lines]


def test_best_is_said_where_the_metric_is_better_than_any_before() -> None:
    nan = float("nan")
    assert epochs_of([0.0, 0.0, 0.2, 0.2, 0.1, 0.3], "max") == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert epochs_of([0.5, nan, 0.5, 0.6], "max") == [True, False, False, True]
    assert epochs_of([2.0, 2.0, 1.0], "min") == [True, False, True]


def test_the_line_after_an_epoch_fits_80_columns(
    make_task, fit, tmp_path, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO, consoles.LOG.name)
    console = Terminal(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(consoles, "_CONSOLE", console)
    log = logging.Handler()
    lines: list[str] = []
    log.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(consoles.LOG, "handlers", [consoles.ConsoleHandler(), log])
    fit(make_task(), History(tmp_path / "metrics.csv"), epochs=2)
    shown = console.file.getvalue().splitlines()
    assert [line[:9] for line in shown] == ["epoch 1/2", "epoch 2/2"]
    assert max(map(len, shown)) <= 80
    assert re.search(r"run [\d.]+ s left", shown[0])
    assert "left" not in shown[1]
    assert all("images/s" in line and "passed" in line for line in lines)  # train.log has it all


def test_the_time_left_is_that_of_recent_epochs_and_of_the_limit(tmp_path) -> None:
    history = History(tmp_path / "metrics.csv")
    assert history.left(3) is None
    assert history.left(3, epoch_seconds=4.0) == 12
    history.rows = [{"seconds": 100.0}, *({"seconds": 10.0} for _ in range(5))]
    assert history.left(3) == pytest.approx(30)
    history.max_minutes = 2.6  # 156 s, of which 150 are over
    assert history.left(3) == pytest.approx(6)
