"""Runs of RT-DETR: sizes that change and denoising's draws, after a resume too; two processes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.train import train
from cvtrain.errors import UsageError

WORDS = (
    "task=detection",
    "model=rt_detr",
    "backbone=darknet_tiny",
    "model.channels=16",
    "model.heads=2",
    "model.hidden=16",
    "model.fusion_blocks=1",
    "model.decoder_layers=2",
    "model.denoising=5",
    "trainer.max_epochs=3",
)


def test_a_run_that_was_cut_goes_on_as_if_nothing_had_been(
    compose, command, killer, tmp_path
) -> None:
    words = [*WORDS, *killer("SIGTERM"), "callbacks.ema.decay=0.9"]
    words = [word.replace("how:SIGTERM", "how:SIGTERM,epoch:2") for word in words]
    whole = compose(*words, run_dir=tmp_path / "whole")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    cut = tmp_path / "cut"
    assert train(compose(*words, run_dir=cut)) == 143
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut")
    )
    for key in ("state_dict", "current_model_state"):
        assert first[key].keys() == second[key].keys()
        assert all(torch.equal(v, second[key][k]) for k, v in first[key].items())


def test_fewer_layers_than_were_trained_score_and_predict(compose, command, tmp_path) -> None:
    words = [*WORDS[:-1], "trainer.max_epochs=1"]
    assert train(compose(*words, run_dir=tmp_path / "run")) == 0

    def score(*words: str) -> dict[str, Any]:
        folder = tmp_path / f"eval{len(list(tmp_path.iterdir()))}"
        words = ("eval", f"ckpt={tmp_path / 'run'}", f"run_dir={folder}", *words)
        assert evaluate(command(*words)) == 0
        assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["decoder_layers"] == 2
        return json.loads((folder / "predictions.json").read_text())

    whole, one = score(), score("model.eval_layers=1")
    assert score("model.eval_layers=2") == whole
    assert one != whole
    with pytest.raises(UsageError, match="eval_layers=3: this decoder has layers 1 to 2"):
        score("model.eval_layers=3")


@pytest.mark.slow
def test_two_processes(cvtrain, tmp_path) -> None:
    words = ["data=shapes", "data.num_train=16", "data.num_val=5", "data.image_size=64"]
    words += ["data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"]
    words += ["callbacks.pictures=null", "data.min_objects=0", "data.max_objects=1"]
    done = cvtrain(*WORDS, *words, "trainer.devices=2", f"run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two/checkpoints/last.ckpt").stat().st_size
