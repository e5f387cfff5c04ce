"""One command at a time writes to a run folder; the others end before they write anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.errors import DataError, UsageError
from cvtrain.lock import LOCK, locked

from .conftest import tiny_words


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("verb", ["train", "resume", "eval", "predict"])
def test_a_folder_in_use_is_refused_before_anything_is_written(
    verb, compose, command, trained, tmp_path, capsys
) -> None:
    folder = tmp_path / "run"
    source = trained / "plots" / "predictions.png"
    words = (f"ckpt={trained}", f"run_dir={folder}")
    config = compose()  # the command is right; another was faster
    with locked(folder):
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        before = files(folder)
        job, config = {
            "train": lambda: (train, config),
            "resume": lambda: (train, command(f"resume={folder}")),
            "eval": lambda: (evaluate, command("eval", *words)),
            "predict": lambda: (predict, command("predict", *words, f"source={source}")),
        }[verb]()
        with pytest.raises(UsageError, match=f"={folder} is in use by process {os.getpid()} on "):
            job(config)
        assert files(folder) == before
    assert LOCK not in files(folder)


def test_a_folder_that_was_used_meanwhile_is_refused(compose, tmp_path) -> None:
    config = compose()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(UsageError, match="already holds a run"):
        train(config)
    assert list(files(tmp_path / "run")) == ["results.json"]


def test_two_commands_of_one_second_write_to_two_folders(
    command, no_plots, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    words = [*tiny_words(["trainer.max_epochs"]), "trainer.max_epochs=1"]
    first, second = command(*words), command(*words)
    assert first["run_dir"] == second["run_dir"]
    with locked(Path(first["run_dir"])):
        assert train(second) == 0
    (results,) = tmp_path.glob("runs/detection/yolo/*/results.json")
    assert results.parent.name == "now_2"
    stored = yaml.safe_load((results.parent / "config.yaml").read_text())
    assert stored["run_dir"] == str(results.parent)
    assert "run_dir_is_typed" not in stored


def test_a_run_that_cannot_start_leaves_no_folder(compose, tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError("no images")

    monkeypatch.setattr("cvtrain.engine.train.load_data", refuse)
    with pytest.raises(DataError, match="no images"):
        train(compose())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.strategy=dpd", "did you mean trainer.strategy=ddp?"),
        ("+optimizer.momentun=0.9", "optimizer.momentun: sgd takes no such argument; did you mean"),
        ("+optimizer.dampening=0.5", "Nesterov momentum requires a momentum and zero dampening"),
    ],
)
def test_what_the_libraries_refuse_leaves_no_folder(compose, tmp_path, word, said) -> None:
    with pytest.raises(UsageError, match=said):
        train(compose("optimizer=sgd", word))
    assert not (tmp_path / "run").exists()


def test_a_start_without_an_epoch_does_not_block_the_corrected_command(compose, tmp_path) -> None:
    run = tmp_path / "run"
    wrong = "task.monitor=mAP5"
    with pytest.raises(UsageError, match="mAP5: validation gives no such value; did you mean mAP"):
        train(compose(wrong))
    assert not list(run.glob("checkpoints/*"))
    assert wrong in (run / "overrides.txt").read_text()
    assert train(compose("trainer.max_epochs=1", "seed=7")) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 7
    assert wrong not in (run / "overrides.txt").read_text()
    assert (run / "train.log").read_text().count("run folder: ") == 3  # that of the first start too
    with pytest.raises(UsageError, match="already holds a run"):
        compose()


@pytest.mark.slow
def test_of_two_starts_at_once_one_trains(tmp_path) -> None:
    words = [*tiny_words(["trainer.max_epochs=20"]), "trainer.max_epochs=20", "run_dir=run"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "cvtrain", *words, f"seed={seed}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    message = [process.communicate(timeout=300)[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 2], message
    loser = codes.index(2)
    lines = [line for line in message[loser].splitlines() if line]
    assert len(lines) == 1
    assert f"is in use by process {started[1 - loser].pid} on " in lines[0]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["seed"] == 2 - loser
    assert json.loads((tmp_path / "run" / "results.json").read_text())["epochs"] == 20


@pytest.mark.slow
def test_two_processes_hold_one_folder_together(cvtrain, tmp_path) -> None:
    words = ("trainer.devices=2", "trainer.max_epochs=1", "run_dir=run")
    with locked(tmp_path / "run"):
        refused = cvtrain(*words, tiny=True)
    assert refused.returncode == 2, refused.stderr
    assert f"is in use by process {os.getpid()} on " in refused.stderr.splitlines()[-1]
    done = cvtrain(*words, tiny=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / LOCK).exists()
