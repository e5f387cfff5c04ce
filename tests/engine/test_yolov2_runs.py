"""Runs of YOLOv2: anchors made from the data, sizes that change, and both after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml

from cvtrain.engine.checkpoint import load_checkpoint, load_model
from cvtrain.engine.train import train
from cvtrain.errors import DataError

WORDS = (
    "task=detection",
    "model=yolov2",
    "model.channels=8",
    "model.resize_every=2",
    "model.multi_scale=[0.5,1.5]",
    "trainer.max_epochs=3",
    "loss.prior_images=30",
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        assert float(row.pop("seconds")) > 0
    return found


def test_a_run_that_was_cut_goes_on_as_if_nothing_had_been(
    compose, command, killer, tmp_path
) -> None:
    words = [*WORDS, "model.anchors=2", *killer("SIGTERM"), "callbacks.ema.decay=0.9"]
    whole = compose(*words, run_dir=tmp_path / "whole")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    cut = tmp_path / "cut"
    assert train(compose(*words, run_dir=cut)) == 143
    settled = yaml.safe_load((cut / "config.yaml").read_text())["model"]["anchors"]
    assert len(settled) == 2
    assert all(0.1 < side < 0.7 for pair in settled for side in pair)
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut")
    )
    for key in ("state_dict", "current_model_state"):
        assert first[key].keys() == second[key].keys()
        assert all(torch.equal(v, second[key][k]) for k, v in first[key].items())
    assert int(first["state_dict"]["model.seen"]) == 48
    table = rows(cut)
    assert table == rows(tmp_path / "whole")
    prior = [float(row["train/prior"]) for row in table]
    assert prior[0] > 0
    assert prior[1] > 0
    assert prior[2] == 0
    assert all(float(row["val/prior"]) == 0 for row in table)
    loaded = load_model(cut)
    assert loaded.config["model"]["anchors"] == settled
    torch.testing.assert_close(loaded.model.anchors, torch.tensor(settled) * 64)


def test_too_few_boxes_for_the_anchors_are_one_line(compose, tmp_path) -> None:
    with pytest.raises(DataError, match=r"model\.anchors=999: the training images have \d+ boxes"):
        train(compose(*WORDS, "model.anchors=999"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes(cvtrain, tmp_path) -> None:
    done = cvtrain(*WORDS, "model.anchors=2", "trainer.devices=2", "run_dir=two", tiny=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 anchors of ") == 1
    assert int(load_checkpoint(tmp_path / "two/checkpoints/last.ckpt")["state_dict"]["model.seen"])
