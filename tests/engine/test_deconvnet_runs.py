"""DeconvNet's two stages in one command: cut in the second, evaluated, in two processes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.errors import UsageError

WORDS = (
    "task=semantic_segmentation",
    "model=deconvnet",
    "model.width=4",
    "model.hidden=16",
    "model.max_windows=3",
    "proposals.mode=single",
    "proposals.max_boxes=20",
    "data=shapes",
    "data.image_size=32",
    "data.num_train=8",
    "data.num_val=5",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_epochs=4",
    "trainer.accelerator=cpu",
    "callbacks.pictures=null",
    "augment.object_crops.first_stage_epochs=2",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def compose(command, tmp_path: Path, no_plots: None) -> Callable[..., dict]:
    """The configuration of a run that draws no plots and writes into ``tmp_path/run``."""
    return lambda *words, run_dir=None: command(*words, f"run_dir={run_dir or tmp_path / 'run'}")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        assert float(row.pop("seconds")) > 0
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])


def test_a_run_cut_in_its_second_stage_goes_on_as_if_nothing_had_been(
    compose, command, killer, tmp_path
) -> None:
    words = [*WORDS, *killer("SIGTERM")]
    whole = compose(*words, run_dir=tmp_path / "whole")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    cut = tmp_path / "cut"
    assert train(compose(*words, run_dir=cut)) == 143
    assert len(rows(cut)) == 2, "the third epoch, the second stage's first, was cut"
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    before, after = weights(tmp_path / "whole"), weights(cut)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert rows(tmp_path / "whole") == rows(cut)


def test_scored_and_predicted_as_in_training(compose, command, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert train(compose(*WORDS, run_dir=run)) == 0
    assert "proposals: boxes made for 13 of 13 images" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())["metrics"]
    again = tmp_path / "again"
    assert evaluate(command("eval", f"ckpt={run}", f"run_dir={again}")) == 0
    assert json.loads((again / "results.json").read_text())["metrics"] == results
    source = tmp_path / "photos"
    source.mkdir()
    Image.new("RGB", (70, 50), (200, 30, 30)).save(source / "a.png")
    words = ["predict", f"ckpt={run}", f"source={source}", f"run_dir={tmp_path / 'said'}"]
    assert predict(command(*words)) == 0
    masks = [p for p in (tmp_path / "said").rglob("*.png") if "mask" in str(p)]
    assert masks
    assert Image.open(masks[0]).size == (70, 50)


def test_without_proposals(compose, command, tmp_path, capsys) -> None:
    boxless = [w for w in WORDS if not w.startswith("proposals.")]
    assert train(compose(*boxless, "proposals=null")) == 0
    assert "proposals:" not in capsys.readouterr().out
    words = ["eval", f"ckpt={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}"]
    selective = ["proposals=selective_search", "proposals.mode=single"]
    for views in ("mode=tiles", "flip=true", "scales=[0.5]"):
        with pytest.raises(UsageError, match="given boxes looks at the fitted image, once"):
            evaluate(command(*words, *selective, f"task.inference.{views}"))
    assert "proposals:" not in capsys.readouterr().out, "said before any are made"
    assert evaluate(command(*words, *selective)) == 0
    assert "proposals: boxes made for 5 of 5 images" in capsys.readouterr().out
    words[-1] = f"run_dir={tmp_path / 'tiles'}"
    tiled = ["proposals=null", "task.inference.mode=tiles", "task.inference.flip=true"]
    assert evaluate(command(*words, *tiled)) == 0
    assert "proposals:" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="proposals=null looks at none"):
        command(*words, "proposals=null", "proposals.mode=single")


def test_either_stage_alone_and_no_proposals_where_nothing_reads_them(compose) -> None:
    boxless = [w for w in WORDS[:-1] if not w.startswith("proposals.")]
    key = "augment.object_crops.first_stage_epochs"
    first = compose(*boxless, f"{key}=null", "model.inference=whole")
    assert first["proposals"] is None
    assert compose(*boxless, f"{key}=null")["proposals"] is not None, "for the windows"
    second = compose(*boxless, f"{key}=0", "model.inference=whole")
    assert second["proposals"] is not None, "for the crops"
    assert train(first) == 0


def test_what_is_refused(compose) -> None:
    with pytest.raises(UsageError, match=r"first_stage_epochs=4 is not reached"):
        compose(*WORDS[:-1], "augment.object_crops.first_stage_epochs=4")
    with pytest.raises(UsageError, match=r"proposals\.mode=single would not be read: training"):
        compose(
            *WORDS[:-1],
            "augment.object_crops.first_stage_epochs=null",
            "model.inference=whole",
        )
    with pytest.raises(UsageError, match="it serves task=semantic_segmentation"):
        compose("task=detection", "model=yolo", "augment=object_crops")


@pytest.mark.slow
def test_two_processes(cvtrain, tmp_path) -> None:
    done = cvtrain(*WORDS, "trainer.devices=2", "run_dir=two")
    assert done.returncode == 0, done.stderr
    again = cvtrain("eval", "ckpt=two", "run_dir=again", "trainer.accelerator=cpu")
    assert again.returncode == 0, again.stderr
    scores = [
        json.loads((tmp_path / name / "results.json").read_text())["metrics"]
        for name in ("two", "again")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def rectangles(root: Path, counts: dict[str, int], side: int = 96) -> None:
    """Images of one to three rectangles on noise, a class a color, and their masks."""
    draw = np.random.default_rng(5)
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image = draw.integers(90, 160, (side, side, 3), dtype=np.uint8)
            mask = np.zeros((side, side), np.uint8)
            for label in draw.permutation([1, 2, 3])[: draw.integers(1, 4)]:
                height, width = draw.integers(18, 44, 2)
                y, x = draw.integers(0, side - height), draw.integers(0, side - width)
                image[y : y + height, x : x + width] = 100
                image[y : y + height, x : x + width, label - 1] = 170
                mask[y : y + height, x : x + width] = label
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("background\nred\ngreen\nblue\n")


@pytest.mark.slow
def test_its_defaults_learn_what_rectangles_are(compose, tmp_path) -> None:
    """Both stages, scored in windows of images that were not trained on."""
    rectangles(tmp_path / "data", {"train": 256, "val": 16})
    words = ("model=deconvnet", "model.width=12", "model.hidden=256", "proposals=null")
    words += ("data=masks", f"data.root={tmp_path / 'data'}", "data.image_size=64")
    words += ("data.batch_size=8", "data.num_workers=0", "data.cache=ram", "trainer.max_epochs=30")
    words += ("trainer.check_val_every_n_epoch=10", "trainer.accelerator=cpu")
    assert train(compose(*words, "callbacks.pictures=null")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["mIoU"] > 0.7  # of background alone 0.2
