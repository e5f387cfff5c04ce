"""Runs of Mask R-CNN: cut and resumed, half floats, two processes; its predictions and numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.train import train

WORDS = (
    "task=instance_segmentation",
    "model=mask_rcnn",
    "backbone=darknet_tiny",
    "model.channels=16",
    "model.hidden=[16]",
    "model.rpn.candidates=[100,50]",
    "model.max_detections=10",
)


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_as_if_nothing_had_been(
    compose, command, killer, tmp_path
) -> None:
    words = [*WORDS, *killer("SIGTERM"), "callbacks.ema.decay=0.9", "trainer.max_epochs=3"]
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


def test_half_floats_and_scenes_without_objects(compose, tmp_path) -> None:
    words = ("trainer.precision=bf16-mixed", "data.min_objects=0", "data.max_objects=1")
    assert train(compose(*WORDS, *words, "trainer.max_epochs=1")) == 0
    weights = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.isfinite(v).all() for v in weights.values())


@pytest.mark.slow
def test_two_processes(cvtrain, command, tmp_path) -> None:
    """In some steps one of them sees no object at all; one process then says the same of the same
    weights, digit by digit, where images are looked at one by one.
    """
    words = ["data=shapes", "data.num_train=16", "data.num_val=5", "data.image_size=64"]
    words += ["data.batch_size=2", "data.num_workers=0", "trainer.accelerator=cpu"]
    words += ["callbacks.pictures=null", "data.min_objects=0", "data.max_objects=1"]
    words += ["trainer.devices=2", "trainer.max_epochs=2"]
    two = tmp_path / "two"
    done = cvtrain(*WORDS, *words, f"run_dir={two}")
    assert done.returncode == 0, done.stderr

    def scored(*words: str) -> tuple[dict[str, Any], Any]:
        folder = tmp_path / f"eval{len(words)}"
        words = (f"ckpt={two}", f"run_dir={folder}", "data.batch_size=1", *words)
        if len(words) == 3:
            assert evaluate(command("eval", *words)) == 0
        else:
            done = cvtrain("eval", *words)
            assert done.returncode == 0, done.stderr
        results = json.loads((folder / "results.json").read_text())
        return results["metrics"], json.loads((folder / "predictions.json").read_text())

    alone, together = scored(), scored("trainer.devices=2")
    assert len(alone[1]) > 5
    assert alone == together
    trained = json.loads((two / "results.json").read_text())["metrics"]
    assert trained == pytest.approx(alone[0], abs=1e-6, nan_ok=True)
