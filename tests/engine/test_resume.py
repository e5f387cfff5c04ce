"""Going on with a run that has ended, or whose data have changed."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from cvtrain.engine.train import train
from cvtrain.errors import CheckpointError


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "finished"))


def test_a_finished_run_says_so_and_how_to_train_longer(finished, command, capsys) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert train(command(f"resume={finished}")) == 0
    said = capsys.readouterr().out
    assert "finished (2 epochs)" in said
    assert "trainer.max_epochs" in said
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_more_epochs_in_the_folders_config_are_trained(finished, command) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 3
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(command(f"resume={finished}")) == 0
    with (finished / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


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


def test_a_truncated_checkpoint_is_one_line(finished, command) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    (finished / "results.json").unlink()
    data = last.read_bytes()
    last.unlink()
    last.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        train(command(f"resume={finished}"))
