"""Runs of RT-DETR: sizes that change and denoising's draws, after a resume too; two processes."""

from __future__ import annotations

import pytest
import torch

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.train import train

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


@pytest.mark.slow
def test_two_processes(cvtrain, tmp_path) -> None:
    words = ["data=shapes", "data.num_train=16", "data.num_val=5", "data.image_size=64"]
    words += ["data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"]
    words += ["callbacks.pictures=null", "data.min_objects=0", "data.max_objects=1"]
    done = cvtrain(*WORDS, *words, "trainer.devices=2", f"run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two/checkpoints/last.ckpt").stat().st_size
