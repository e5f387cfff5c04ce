"""Every semantic segmentation model through whole runs: cut, and in two processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.train import train

WORDS = (
    "task=semantic_segmentation",
    "data=shapes",
    "data.image_size=64",
    "data.num_train=12",
    "data.num_val=4",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "callbacks.pictures=null",
)
TINY = ("backbone=darknet_tiny", "backbone.narrow=null")
ENCODER = ("model=unet_encoder", "model.widths=[16,16,8,8,8]", *TINY, "augment=crops")
SMALL = ("+model.options.pyramid_channels=32", "+model.options.segmentation_channels=32")
UNET = ("model=unet", "model.width=2", "augment=unet", "loss=boundary_weighted")
CASES = {
    "unet": UNET,
    "unet_encoder": (*ENCODER, "loss=ce_dice", "trainer.precision=bf16-mixed"),
    "smp": ("model=smp", *TINY, *SMALL, "loss.class_weights=auto"),
}
"""With what draws at random or over a batch: dropout, deformation, batch norm, crops."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        assert float(row.pop("seconds")) > 0
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "results.json").read_text())["metrics"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_cut_run_goes_on_as_if_nothing_had_been(
    name, command, killer, no_plots, tmp_path
) -> None:
    words = [*WORDS, *CASES[name], *killer("SIGTERM")]
    whole = command(*words, f"run_dir={tmp_path / 'whole'}")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    cut = tmp_path / "cut"
    assert train(command(*words, f"run_dir={cut}")) == 143
    assert len(rows(cut)) == 2
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    before, after = weights(tmp_path / "whole"), weights(cut)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert rows(tmp_path / "whole") == rows(cut)


@pytest.mark.slow
def test_two_processes_score_what_one_scores(cvtrain, tmp_path) -> None:
    """U-Net with one image a step and process; in tiles, whose losses are means over windows."""
    tiles = ("task.inference.mode=tiles", "task.inference.tile_size=32")
    words = [w for w in WORDS if not w.startswith(("data.batch_size", "trainer.max_epochs"))]
    words += [*UNET, *tiles, "data.batch_size=1", "trainer.max_epochs=1"]
    done = cvtrain(*words, "trainer.devices=2", "trainer.strategy=ddp", "run_dir=two")
    assert done.returncode == 0, done.stderr
    again = cvtrain("eval", "ckpt=two", "run_dir=again", "trainer.accelerator=cpu")
    assert again.returncode == 0, again.stderr
    assert metrics(tmp_path / "two") == pytest.approx(metrics(tmp_path / "again"), abs=1e-6)
