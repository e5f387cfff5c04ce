"""Runs that an earlier version wrote still evaluate, predict and resume.

``tests/old_runs/<task>`` is a run folder as commit 58c110e, the last before modules and keys moved,
wrote it on a CPU; overrides.txt has its command. Kept are config.yaml, metrics.csv, last.ckpt and,
in evaluated.json, what that commit's ``cvtrain eval`` made of it. ``configurations.json.gz`` holds
the configurations that the same commit composed with each option of each group.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cvtrain.config import moved
from cvtrain.config.groups import dotted_keys
from cvtrain.config.runs import run_config
from cvtrain.engine.build import build_model
from cvtrain.engine.checkpoint import load_checkpoint, without_downloads
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.errors import UsageError
from cvtrain.instantiate import judge
from cvtrain.models.base import Model
from cvtrain.outside import outside
from cvtrain.shipped import targets

RUNS = Path(__file__).parents[1] / "old_runs"
TASKS = sorted(path.name for path in RUNS.iterdir() if path.is_dir())
LAST = "checkpoints/last.ckpt"


@pytest.fixture(params=TASKS)
def old_run(request, tmp_path) -> Path:
    return Path(shutil.copytree(RUNS / request.param, tmp_path / "old"))


@pytest.fixture(scope="module")
def configurations() -> dict[str, dict[str, Any]]:
    """``model yolo``, ``augment strong``, ... -> a configuration with it, as it was stored."""
    with gzip.open(RUNS / "configurations.json.gz") as file:
        return json.load(file)


def test_there_is_a_run_of_every_task() -> None:
    conf = Path(__file__).parents[2] / "conf" / "task"
    assert sorted(path.stem for path in conf.glob("*.yaml")) == TASKS


def test_it_evaluates_to_the_same_numbers(old_run, command, no_plots, tmp_path) -> None:
    assert evaluate(command("eval", f"ckpt={old_run}", f"run_dir={tmp_path / 'new'}")) == 0
    before = json.loads((old_run / "evaluated.json").read_text())
    after = json.loads((tmp_path / "new" / "results.json").read_text())
    for kind in ("metrics", "losses"):
        assert after[kind] == pytest.approx(before[kind], abs=1e-6)


def test_a_checkpoint_without_its_folder_predicts(old_run, command, tmp_path) -> None:
    alone, source = tmp_path / "last.ckpt", tmp_path / "image.png"
    (old_run / LAST).rename(alone)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (50, 70, 3), np.uint8)).save(source)
    out = tmp_path / "predicted"
    words = [f"ckpt={alone}", f"source={source}", f"run_dir={out}"]
    assert predict(command("predict", *words, "trainer.accelerator=cpu")) == 0
    assert (out / "predictions.json").is_file()
    assert len(list((out / "images").iterdir())) == 1


def test_it_resumes(old_run, command, no_plots) -> None:
    stored = torch.load(old_run / LAST, weights_only=True)
    epochs = stored["epoch"] + 1
    assert train(command(f"resume={old_run}", f"trainer.max_epochs={epochs + 1}")) == 0
    with (old_run / "metrics.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(epochs + 1))
    now = torch.load(old_run / LAST, weights_only=True)
    assert now["epoch"] == epochs
    assert now["global_step"] > stored["global_step"]
    assert stored["callbacks"].keys() <= now["callbacks"].keys(), "a state that nobody took up"
    config = now["cvtrain"]["config"]
    assert config == yaml.safe_load((old_run / "config.yaml").read_text())
    assert config == moved.up_to_date(config), "an old name was stored again"


def test_its_backbone_starts_another_run(compose, capsys) -> None:
    backbone = ["backbone.widths=[8,12,16,24]", "backbone.narrow=null"]
    weights = f"backbone.weights={RUNS / 'classification'}"
    words = ["task=localization", "model=box_regression", "backbone=darknet_tiny", *backbone]
    assert train(compose(*words, weights, "trainer.max_epochs=1")) == 0
    assert "took 24 of the backbone's 24 tensors" in capsys.readouterr().out


def test_every_target_that_a_configuration_named_is_still_one(configurations) -> None:
    for name, config in configurations.items():
        before = json.dumps(config)
        judge(moved.up_to_date(config))
        assert json.dumps(config) == before, f"{name}: the stored one was changed"


def test_every_model_that_a_configuration_named_is_still_built(configurations) -> None:
    built = [name for name in configurations if name.split()[0] in ("model", "backbone", "loss")]
    assert len(built) > 60
    for name in built:
        config = without_downloads(moved.up_to_date(configurations[name]))
        with torch.device("meta"):
            assert isinstance(build_model(config, 4), Model), name


def test_every_moved_target_is_one_that_was_stored(configurations) -> None:
    named = {target for config in configurations.values() for _, target in targets(config)}
    for old, new in moved.MOVED_TARGETS.items():
        assert any(f"{target}.".startswith(f"{old}.") for target in named), f"{old} never was one"
        named.add(new)


def test_a_target_that_never_was_is_refused(tmp_path) -> None:
    folder = Path(shutil.copytree(RUNS / "detection", tmp_path / "old"))
    path = folder / "config.yaml"
    text = path.read_text()
    assert "cvtrain.losses.boxes.IoULoss" in text
    path.write_text(text.replace("losses.boxes.IoULoss", "losses.boxes2.IoULoss"))
    config = run_config(folder)
    assert config is not None
    with pytest.raises(UsageError, match=r"cvtrain\.losses\.boxes2\.IoULoss is not among"):
        judge(config)


# Renamed keys, by rows that stand for whatever is renamed -----------------------------------------

ROWS = {
    "model.candidates": "model.pre_nms_topk",
    "model.rpn": "model.proposal_network",
    "backbone.size": "backbone.scale",
    "transfer.head": "head.name",
    "optimizer.a": "optimizer.b",
    "optimizer.b": "optimizer.c",
}


@pytest.fixture
def renamed(monkeypatch) -> None:
    monkeypatch.setattr(moved, "RENAMED_KEYS", ROWS)


OLD = {
    "model": {"candidates": 9, "rpn": {"scales": [8]}, "backbone": {"size": "s"}, "loss": None},
    "backbone": {"size": "s"},
    "transfer": {"head": "mlp"},
    "head": None,
    "optimizer": {"a": 1},
}
NEW = {
    "model": {
        "pre_nms_topk": 9,
        "proposal_network": {"scales": [8]},
        "backbone": {"scale": "s"},
        "loss": None,
    },
    "backbone": {"scale": "s"},
    "transfer": {},
    "head": {"name": "mlp"},
    "optimizer": {"c": 1},
}


def test_a_stored_key_is_moved(renamed) -> None:
    before = json.dumps(OLD)
    assert moved.up_to_date(OLD) == NEW
    assert json.dumps(OLD) == before
    assert moved.up_to_date(NEW) == NEW
    both = {"model": {"candidates": 9, "pre_nms_topk": 5}}
    assert moved.up_to_date(both) == both


def test_run_folder_and_checkpoint_are_brought_up_to_date(renamed, tmp_path) -> None:
    folder = Path(shutil.copytree(RUNS / "detection", tmp_path / "old"))
    config, state = run_config(folder), load_checkpoint(folder / LAST)
    assert config is not None
    for one in (config, state["cvtrain"]["config"]):
        assert one["model"]["pre_nms_topk"] == 1000
        assert "candidates" not in one["model"]
        assert one["loss"]["_target_"] == "cvtrain.losses.box_regression.IoULoss"


@pytest.mark.parametrize(
    ("typed", "write"),
    [
        ("model.candidates=5", "model.pre_nms_topk=5"),
        ("model.rpn.scales=[4,8]", "model.proposal_network.scales=[4,8]"),
        ("model.backbone.size=m", "model.backbone.scale=m"),
        ("backbone.size=m", "backbone.scale=m"),
        ("+transfer.head=mlp", "+head.name=mlp"),
        ("~optimizer.a", "~optimizer.c"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "eval ckpt=x", "show"])
def test_a_typed_key_is_refused_with_the_new_one_named(renamed, cli, verb, typed, write) -> None:
    done = cli(*verb.split(), typed)
    assert done.code == 2
    assert done.line.endswith(f"has another name now; write {write}")


def test_every_renamed_key_is_one_that_was_stored(configurations) -> None:
    """None of them leads out of a run: its seal is for the old name, and would be lost."""
    named = {key for config in configurations.values() for key in dotted_keys(config)}
    sealed = {key for config in configurations.values() for key in outside(config)}
    for old, new in moved.RENAMED_KEYS.items():
        assert old in named, f"{old} never was a key"
        assert not any(f"{key}.".startswith(f"{old}.") for key in sealed), old
        named.add(new)
