"""Going on with a run that has ended, or whose data have changed."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cvtrain.engine.train import train
from cvtrain.errors import CheckpointError, DataError, UsageError
from cvtrain.optim.schedules import Schedule
from cvtrain.tasks.base import Task


@pytest.fixture
def finished(trained, tmp_path, no_plots) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "finished"))


def last_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def changes_said(out: str) -> set[str]:
    """What the one line names that says what has changed."""
    (line,) = [line for line in out.splitlines() if line.startswith("changed since")]
    return set(line.removeprefix("changed since the last epoch: ").split(", "))


def edit(folder: Path, key: str, value: Any) -> None:
    """Change one key of the run's config.yaml, as in an editor."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_finished_run_says_so_and_how_to_train_longer(finished, command, capsys) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert train(command(f"resume={finished}")) == 0
    message = capsys.readouterr().out
    assert "finished (2 epochs)" in message
    assert f"cvtrain resume={finished} trainer.max_epochs=4" in message.replace("\n", "")
    with pytest.raises(UsageError, match=r"optimizer.lr 0.005 -> 0.0001"):
        train(command(f"resume={finished}", "optimizer.lr=1e-4"))
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("stopped_by", "longer"),
    [
        (
            ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=2"],
            "callbacks.early_stopping.patience=2",
        ),
        (["trainer.max_minutes=0.00001"], "trainer.max_minutes="),
    ],
)
def test_a_stopped_run_says_what_lets_it_train_longer(
    compose, command, tmp_path, capsys, stopped_by, longer
) -> None:
    assert train(compose("trainer.max_epochs=3", *stopped_by)) == 0
    run = f"resume={tmp_path / 'run'}"
    with pytest.raises(
        UsageError, match=r"nothing would come of trainer\.max_epochs 3 -> 4"
    ) as message:
        train(command(run, "trainer.max_epochs=4"))
    words = str(message.value).partition("to train longer: cvtrain ")[2].split()
    assert words[:2] == [run, "trainer.max_epochs=4"]
    assert words[2].startswith(longer)
    before = last_of(tmp_path / "run")["epoch"]
    assert train(command(*words)) == 0
    assert last_of(tmp_path / "run")["epoch"] > before


def test_changes_beside_resume_reach_what_was_restored(finished, command, capsys) -> None:
    changes = ["trainer.max_epochs=4", "optimizer.lr=1e-4", "optimizer.weight_decay=0.01"]
    assert train(command(f"resume={finished}", *changes, "data.batch_size=8")) == 0
    message = capsys.readouterr().out
    assert changes_said(message) == {
        "data.batch_size 4 -> 8",
        "optimizer.lr 0.005 -> 0.0001",
        "optimizer.weight_decay 0.05 -> 0.01",
        "trainer.max_epochs 2 -> 4",
    }
    assert "scheduler=cosine over 4 epochs, after 2" in message
    with (finished / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    last = last_of(finished)
    groups = last["optimizer_states"][0]["param_groups"]
    assert {g["initial_lr"] for g in groups} == {1e-4}
    assert {g["weight_decay"] for g in groups} == {0.01, 0.0}
    (scheduler,) = last["lr_schedulers"]
    assert set(scheduler["base_lrs"]) == {1e-4}
    assert scheduler["last_epoch"] == 4 * 2, "four epochs of two steps, though two had four"
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored == last["cvtrain"]["config"]
    assert (stored["data"]["batch_size"], stored["trainer"]["max_epochs"]) == (8, 4)
    assert "resume_data" not in stored


def test_the_schedule_goes_on_from_where_the_run_stands(finished, command, monkeypatch) -> None:
    steps: list[tuple[int, float]] = []
    original = Task.training_step

    def step(self, batch, index):
        steps.append(
            (self.trainer.lr_scheduler_configs[0].scheduler.last_epoch, self.learning_rate())
        )
        return original(self, batch, index)

    monkeypatch.setattr(Task, "training_step", step)
    assert train(command(f"resume={finished}", "trainer.max_epochs=4", "optimizer.lr=1e-4")) == 0
    config = last_of(finished)["cvtrain"]["config"]
    schedule = Schedule(config["scheduler"], total_steps=16, epochs=4)
    assert steps == [(n, 1e-4 * schedule(n)) for n in range(8, 16)]


def test_an_edited_configuration_is_followed_and_said(finished, command, capsys) -> None:
    edit(finished, "trainer.max_epochs", 3)
    edit(finished, "optimizer.lr", "1e-4")  # YAML 1.1 reads it as text
    edit(finished, "loss.lambda_coord", 4.0)  # composed into model.loss, which is what is built
    assert train(command(f"resume={finished}")) == 0
    assert changes_said(capsys.readouterr().out) == {
        "trainer.max_epochs 2 -> 3",
        "optimizer.lr 0.005 -> 0.0001",
        "loss.lambda_coord 5.0 -> 4.0",
    }
    last = last_of(finished)
    assert {g["initial_lr"] for g in last["optimizer_states"][0]["param_groups"]} == {1e-4}
    assert last["cvtrain"]["config"]["model"]["loss"]["lambda_coord"] == 4.0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.grid", 5, "model.grid 7 -> 5 (the weights are those of this model"),
        ("trainer.max_epoch", 9, "did you mean trainer.max_epochs?"),
        ("callbacks.ema", None, "averaged weights"),
        ("seed", 1, "seed 0 -> 1"),
        ("optimizer.name", "radam", "optimizer.name adamw -> radam"),
    ],
)
def test_an_edit_that_cannot_be_followed_is_refused(finished, command, key, value, said) -> None:
    edit(finished, key, value)
    before = (finished / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(UsageError) as caught:
        train(command(f"resume={finished}"))
    assert said in str(caught.value)
    assert (finished / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_run_that_only_lacks_its_results_is_evaluated(finished, command, trained) -> None:
    for name in ("results.json", "predictions.json"):
        (finished / name).unlink()
    (finished / "checkpoints" / ".last.123.partial.ckpt").write_bytes(b"half")
    metrics = (finished / "metrics.csv").read_bytes()
    assert train(command(f"resume={finished}")) == 0
    assert (finished / "metrics.csv").read_bytes() == metrics
    assert (finished / "predictions.json").read_bytes() == (
        trained / "predictions.json"
    ).read_bytes()
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]


def test_other_classes_than_before_are_refused(finished, command, monkeypatch) -> None:
    config = command(f"resume={finished}")
    config["trainer"]["max_epochs"] = 3
    import cvtrain.data.shapes as shapes
    from cvtrain.data.table import Classes

    original = shapes.ShapesReader.read

    def renamed(self, split):
        from dataclasses import replace

        found = original(self, split)
        names = Classes.from_names(["disc", *found.table.classes.names[1:]])
        return replace(found, table=replace(found.table, classes=names))

    monkeypatch.setattr(shapes.ShapesReader, "read", renamed)
    with pytest.raises(CheckpointError, match="circle"):
        train(config)


def test_a_truncated_checkpoint_names_the_one_that_is_whole(finished, command) -> None:
    last, best = (finished / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    (finished / "results.json").unlink()
    data = last.read_bytes()
    last.unlink()
    last.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        train(command(f"resume={finished}"))
    assert str(caught.value).endswith(f"cp {best} {last} && cvtrain resume={finished}")
    shutil.copyfile(best, last)
    assert train(command(f"resume={finished}")) == 0
    best.unlink()
    best.write_bytes(data[:100])
    last.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="start a new run"):
        train(command(f"resume={finished}"))


def test_a_missing_last_checkpoint_does_not_start_the_run_again(finished, command, capsys) -> None:
    (finished / "checkpoints" / "last.ckpt").unlink()
    assert train(command(f"resume={finished}", "trainer.max_epochs=3")) == 0
    assert "last.ckpt is missing: resuming from best.ckpt" in capsys.readouterr().out
    with (finished / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_a_checkpoint_without_a_fingerprint_is_gone_on_from(finished, command, capsys) -> None:
    state = last_of(finished)
    del state["cvtrain"]["data"]
    (finished / "checkpoints" / "last.ckpt").unlink()
    torch.save(state, finished / "checkpoints" / "last.ckpt")
    assert train(command(f"resume={finished}", "trainer.max_epochs=3")) == 0
    assert "does not say what its data were" in capsys.readouterr().out


# Why a run stopped -------------------------------------------------------------------------------


def test_early_stopping_says_so_once_and_how_to_train_on(
    compose, command, capsys, tmp_path
) -> None:
    words = ["trainer.max_epochs=9", "callbacks.early_stopping.patience=1"]
    words += ["callbacks.early_stopping.min_delta=9"]
    assert train(compose(*words)) == 0
    message = "stopped after epoch 2: mAP50 was validated once without being better than the "
    assert (tmp_path / "run" / "train.log").read_text().count(message) == 1
    out = capsys.readouterr().out
    assert out.count(message) == 1
    assert "of epoch 1 by more than 9 (callbacks.early_stopping.patience=1)" in out
    assert train(command(f"resume={tmp_path / 'run'}")) == 0
    assert "callbacks.early_stopping.patience=2" in capsys.readouterr().out
    more = "callbacks.early_stopping.patience=2"
    assert train(command(f"resume={tmp_path / 'run'}", more)) == 0
    assert "stopped after epoch 3: mAP50 was validated 2 times" in capsys.readouterr().out


def test_the_time_limit_says_so_and_the_last_epoch_says_nothing(compose, capsys, tmp_path) -> None:
    assert train(compose("trainer.max_minutes=1e-9")) == 0
    assert "(trainer.max_minutes=1e-09)" in capsys.readouterr().out
    last = tmp_path / "last"
    assert train(compose("trainer.max_minutes=1e-9", "trainer.max_epochs=1", run_dir=last)) == 0
    assert "stopped after" not in capsys.readouterr().out


# Other data than before --------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> Path:
    """Eight images of two classes and four for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (24, 24, 3), np.uint8)
                Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_data_that_changed_are_an_error_and_moved_ones_are_not(
    command, photos, no_plots, tmp_path, capsys
) -> None:
    folder = tmp_path / "run"
    words = ["task=classification", "data=folder", f"data.root={photos}", f"run_dir={folder}"]
    words += ["backbone=darknet_tiny", "data.image_size=32", "data.num_workers=0"]
    words += ["trainer.accelerator=cpu", "callbacks.pictures=null", "trainer.max_epochs=1"]
    assert train(command(*words)) == 0
    moved = photos.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"no longer in .*photos; .* data.root=FOLDER"):
        command(f"resume={folder}")
    more = ["trainer.max_epochs=2", f"data.root={moved}"]
    assert train(command(f"resume={folder}", *more)) == 0
    assert f"data.root {photos} -> {moved}" in changes_said(capsys.readouterr().out)
    (moved / "train" / "cat" / "1.png").unlink()
    image = Image.fromarray(np.zeros((24, 24, 3), np.uint8))
    image.save(moved / "val" / "dog" / "0.png")
    again = [f"resume={folder}", "trainer.max_epochs=3"]
    with pytest.raises(DataError) as caught:
        train(command(*again))
    assert str(caught.value) == (
        "the data have changed since the last epoch: 1 image is gone (train/cat/1.png); 1 image is "
        "changed in its pixels (val/dog/0.png); bring them back, or continue with what is there "
        "now: "
        f"cvtrain resume={folder} resume_data=changed"
    )
    assert len(last_of(folder)["cvtrain"]["data"]["splits"]["train"]["pixels"]) == 8
    assert train(command(*again, "resume_data=changed")) == 0
    assert len(last_of(folder)["cvtrain"]["data"]["splits"]["train"]["pixels"]) == 7
    assert train(command(f"resume={folder}", "trainer.max_epochs=4")) == 0
