from __future__ import annotations

import csv

import pytest

from cvtrain.callbacks.checkpoint import BestAndLast
from cvtrain.callbacks.history import History


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
    for part in ("epoch 1/1", "loss ", "val loss ", "accuracy ", "(best)", "lost objects 12"):
        assert part in said()


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
