"""Class weights and balanced drawing in whole runs: said once, stored, gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from cvtrain.engine.checkpoint import load_model
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.errors import UsageError

MULTI = ("task=multilabel_classification", "model=classifier", "backbone=darknet_tiny")
SINGLE = ("task=classification", "model=classifier", "backbone=darknet_tiny")
SMALL = ("data.image_size=32", "augment=none")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return last["state_dict"]


def test_counted_weights_are_said_and_stored(compose, tmp_path, capsys) -> None:
    config = compose(*SINGLE, *SMALL, "loss.class_weights=auto", "trainer.max_epochs=1")
    assert train(config) == 0
    message = capsys.readouterr().out
    assert "weights of classes, auto (training images): circle " in message
    run = tmp_path / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["loss"]["class_weights"] == "auto"
    loaded = load_model(run)  # counts nothing: the checkpoint brings its own
    weights = loaded.model.criterion.weights
    assert weights.shape == (4,)
    assert "weights of classes" in (run / "train.log").read_text()


def test_several_labels_go_the_same_way(compose, command, tmp_path, capsys) -> None:
    """Drawn balanced, stopped after an epoch and gone on with: as if nothing had been."""
    words = (*MULTI, *SMALL, "loss.class_weights=effective", "data.sampler=balanced")
    words += ("scheduler=none", "data.max_objects=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(compose(*words, "trainer.max_epochs=2", run_dir=whole)) == 0
    assert "choose one of both" in capsys.readouterr().out
    assert train(compose(*words, "trainer.max_epochs=1", run_dir=parts)) == 0
    config = yaml.safe_load((parts / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 2
    (parts / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(command(f"resume={parts}")) == 0
    first, second = tensors(whole), tensors(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    results = json.loads((whole / "results.json").read_text())
    assert {"mAP", "f1_macro", "f1_micro", "exact_match"} <= results["metrics"].keys()
    assert evaluate(command("eval", f"ckpt={whole}", f"run_dir={tmp_path}/e")) == 0
    again = json.loads((tmp_path / "e" / "results.json").read_text())
    for name, value in results["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, abs=1e-6)
    entries = json.loads((whole / "predictions.json").read_text())
    assert entries[0].keys() == {"image_id", "file_name", "category_ids", "categories", "scores"}


def test_predict_names_every_likely_class(compose, command, tmp_path, capsys) -> None:
    from PIL import Image

    assert train(compose(*MULTI, *SMALL, "trainer.max_epochs=1")) == 0
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    words = ("predict", f"ckpt={tmp_path}/run", f"source={tmp_path}/red.png")
    assert predict(command(*words, f"run_dir={tmp_path}/p")) == 0
    (entry,) = json.loads((tmp_path / "p" / "predictions.json").read_text())
    message = capsys.readouterr().out
    for name in entry["categories"]:
        assert f"{name} {entry['scores'][name]:.2f}" in message
    assert bool(entry["categories"]) != ("nothing (" in message)


def test_a_list_of_another_length_is_one_line(compose, tmp_path) -> None:
    with pytest.raises(UsageError) as caught:
        train(compose(*SINGLE, *SMALL, "loss.class_weights=[1,2,3]"))
    assert str(caught.value) == (
        "loss.class_weights has 3 numbers, the data 4 classes: circle, square, triangle, star"
    )
    assert not (tmp_path / "run").exists()
