"""A model of two phases through whole runs: cut in the second, evaluated, in two processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.train import train
from cvtrain.errors import UsageError

WORDS = (
    "task=localization",
    "model=overfeat",
    "backbone=darknet_tiny",
    "data.image_size=64",
    "model.pool=2",
    "model.hidden=[16,16]",
    "model.regressor_hidden=[16,16]",
    "model.scales=[1,1.25]",
    "trainer.max_epochs=4",
)


def parts(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and statistics of backbone, classifier and regressor."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_checkpoint(path)["state_dict"].items():
        part = name.removeprefix("model.").split(".")[0]
        found.setdefault(part, {})[name] = value
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_cut_in_its_second_phase_goes_on_as_if_nothing_had_been(
    compose, command, killer, tmp_path
) -> None:
    words = [*WORDS, *killer("SIGTERM"), "callbacks.ema.decay=0.9"]
    whole = compose(*words, run_dir=tmp_path / "whole")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    cut = tmp_path / "cut"
    assert train(compose(*words, run_dir=cut)) == 143
    before = parts(cut / "checkpoints" / "last.ckpt")
    assert len(rows(cut)) == 2, "the third epoch, the regressor's first, was cut"
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    whole_parts, cut_parts = (
        parts(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut")
    )
    assert whole_parts.keys() == cut_parts.keys() >= {"backbone", "classifier", "regressor"}
    for part, values in whole_parts.items():
        assert all(torch.equal(v, cut_parts[part][k]) for k, v in values.items()), part
    tables = [rows(tmp_path / name) for name in ("whole", "cut")]
    for row in (*tables[0], *tables[1]):
        assert float(row.pop("seconds")) > 0
    assert tables[0] == tables[1]
    table = rows(cut)
    assert [bool(row["train/classes"]) for row in table] == [True, True, False, False]
    assert [bool(row["train/boxes"]) for row in table] == [False, False, True, True]
    old, new = before["regressor"], cut_parts["regressor"]
    assert any(not torch.equal(value, new[name]) for name, value in old.items())


def test_boxes_are_merged_otherwise_without_training_again(compose, command, tmp_path) -> None:
    words = [*WORDS[:-1], "trainer.max_epochs=2", "callbacks.ema=null"]
    assert train(compose(*words, run_dir=tmp_path / "run")) == 0

    def score(*words: str) -> str:
        folder = tmp_path / f"eval{len(list(tmp_path.iterdir()))}"
        words = ("eval", f"ckpt={tmp_path / 'run'}", f"run_dir={folder}", *words)
        assert evaluate(command(*words)) == 0
        return (folder / "predictions.json").read_text()

    asked = score()
    assert score("model.merge=greedy") == asked
    assert score("model.merge=nms") != asked
    assert score("model.merge=nms", "model.merge_threshold=0.5") == score("model.merge=nms")
    with pytest.raises(UsageError, match="merge_threshold"):
        score("model.merge_threshold=-1")


def test_convolutions_and_classifier_are_fixed_in_the_second(compose, tmp_path) -> None:
    saved = {}
    for epochs in (2, 3):
        config = compose(
            *WORDS,
            "callbacks.ema=null",
            "model.classifier_epochs=1",
            run_dir=tmp_path / f"{epochs}",
        )
        config["trainer"]["max_epochs"] = epochs
        config["scheduler"] = None  # the same first epoch, however long the run
        assert train(config) == 0
        saved[epochs] = parts(tmp_path / f"{epochs}" / "checkpoints" / "last.ckpt")
    for part in ("backbone", "classifier"):
        assert saved[2][part]
        assert all(torch.equal(v, saved[3][part][k]) for k, v in saved[2][part].items()), part
    assert any(
        not torch.equal(v, saved[3]["regressor"][k]) for k, v in saved[2]["regressor"].items()
    )


def test_a_checkpoint_of_either_phase_is_scored_as_in_training(compose, command, tmp_path) -> None:
    run = tmp_path / "run"
    assert train(compose(*WORDS, run_dir=run)) == 0
    results = json.loads((run / "results.json").read_text())["metrics"]
    again = tmp_path / "again"
    assert evaluate(command("eval", f"ckpt={run}", f"run_dir={again}")) == 0
    assert json.loads((again / "results.json").read_text())["metrics"] == results
    entries = json.loads((again / "predictions.json").read_text())
    truths = json.loads((again / "ground_truth.json").read_text())["annotations"]
    assert len(truths) == 5
    assert {len(e["bbox"]) for e in entries} == {len(t["bbox"]) for t in truths} == {4}


def test_epochs_that_leave_a_phase_none_are_refused_before_there_is_a_folder(
    compose, tmp_path
) -> None:
    with pytest.raises(UsageError, match=r"model\.classifier_epochs=4 leaves the regressor none"):
        train(compose(*WORDS, "model.classifier_epochs=4"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes(cvtrain, tmp_path) -> None:
    done = cvtrain(*WORDS, "trainer.devices=2", "run_dir=two", tiny=True)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "two")
    assert [bool(row["train/boxes"]) for row in table] == [False, False, True, True]
    again = cvtrain("eval", "ckpt=two", "run_dir=again", "trainer.accelerator=cpu")
    assert again.returncode == 0, again.stderr
    scores = [
        json.loads((tmp_path / name / "results.json").read_text())["metrics"]
        for name in ("two", "again")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
