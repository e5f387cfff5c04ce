from __future__ import annotations

import time
from pathlib import Path

import pytest

from cvtrain.engine.rundir import RunDir, environment, new_run_dir, stored_config
from cvtrain.errors import RunError, UsageError
from cvtrain.text import relative


def test_new_folders_do_not_collide(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    first = new_run_dir("detection", "yolo")
    assert first.path == tmp_path / "runs" / "detection" / "yolo" / "now"
    first.path.mkdir(parents=True)
    assert new_run_dir("detection", "yolo").path.name == "now_2"
    assert new_run_dir("detection", "yolo", "-eval").path.name == "now-eval"
    assert str(first) == "runs/detection/yolo/now"


def test_what_belongs_to_one_command_is_not_stored(tmp_path) -> None:
    config = {"seed": 1, "trust": ["x"], "overrides": ["a=1"], "resume": None, "command": "train"}
    stored = stored_config(config, RunDir(tmp_path))
    assert stored == {"seed": 1, "run_dir": str(tmp_path)}


def test_a_used_folder_is_refused(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.raise_if_used()
    run.results.write_text("{}")
    with pytest.raises(UsageError, match="resume="):
        run.raise_if_used()


def test_halves_of_files_are_swept(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    halves = [run.checkpoints / ".last.7.partial.ckpt", run.path / ".metrics.7.partial.csv"]
    for half in halves:
        half.write_text("x")
    run.last.write_text("whole")
    run.sweep_partials()
    assert not any(half.exists() for half in halves)
    assert run.last.exists()


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError) as caught:
        RunDir(tmp_path / "file" / "run").create({}, [])
    assert "\n" not in str(caught.value)


def test_paths_outside_the_working_directory_are_shown_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative(tmp_path / "a" / "b") == "a/b"
    assert relative(Path("/elsewhere")) == "/elsewhere"


def test_the_environment_is_described() -> None:
    found = environment()
    assert {"cvtrain", "git_commit", "command", "python", "cpu_count", "gpus"} <= found.keys()
    assert found["packages"]["pytorch-lightning"]


def test_a_folder_of_predictions_is_refused(tmp_path) -> None:
    run = RunDir(tmp_path / "out")
    run.path.mkdir()
    (run.path / "predictions.json").write_text("[]")
    with pytest.raises(UsageError, match="already holds predictions: choose another run_dir"):
        run.raise_if_used()
