"""Runs of YOLO9000: a tree from a file, images with only a class, all of it in a checkpoint."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cvtrain.data.shapes import ShapesReader
from cvtrain.engine.checkpoint import load_checkpoint, load_model
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.errors import DataError, UsageError

WORDS = ("task=detection", "model=yolo9000", "model.channels=8", "model.resize_every=2")
TREE = "thing\n  round\n    circle\n    oval\n  polygon\n    square\n    triangle\n    star\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A tree, and six images each of stars and ovals."""
    (tmp_path / "tree.txt").write_text(TREE)
    split = ShapesReader(num_train=40, max_objects=1, scene_size=48).read("train")
    for name in ("star", "oval"):
        (tmp_path / "labeled" / name).mkdir(parents=True)
    for i in range(12):
        image = Image.fromarray(np.asarray(split.table.generator(split.table.files[i])))
        image.save(tmp_path / "labeled" / ("star" if i % 2 else "oval") / f"{i}.png")
    return tmp_path


def joint(files: Path) -> list[str]:
    return [
        *WORDS,
        f"model.tree={files / 'tree.txt'}",
        f"data.classification_root={files / 'labeled'}",
    ]


def test_out_of_the_box_shapes_have_a_tree(compose, tmp_path, capsys) -> None:
    assert train(compose(*WORDS, "trainer.max_epochs=1")) == 0
    message = capsys.readouterr().out
    assert "tree: that of shapes; 6 nodes, 2 of them with others below" in message
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["tree"]
    assert tree["names"] == ["round", "polygon", "circle", "square", "triangle", "star"]
    assert load_model(tmp_path / "run").model.tree.size == 6


def test_both_kinds_of_images_and_an_exact_resume(
    compose, command, killer, files, tmp_path
) -> None:
    words = [*joint(files), "trainer.max_epochs=3", *killer("SIGTERM")]
    whole = compose(*words, run_dir=tmp_path / "whole")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    cut = tmp_path / "cut"
    assert train(compose(*words, run_dir=cut)) == 143
    (files / "tree.txt").unlink()  # what was read is in the run's configuration
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut")
    )
    assert first["cvtrain"]["classes"]["names"] == [
        *("circle", "square", "triangle", "star", "oval"),
    ]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(v, second["state_dict"][k]) for k, v in first["state_dict"].items())
    with (cut / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["train/num_labeled_images"]) for row in table] == [12, 12, 12]
    assert [float(row["val/num_labeled_images"]) for row in table] == [0, 0, 0]

    assert "labeled: 12 images with only a class, 2 classes" in (cut / "train.log").read_text()

    # The checkpoint alone: neither the tree's file nor the class folders are needed.
    results = json.loads((cut / "results.json").read_text())["metrics"]
    moved = shutil.move(files / "labeled" / "oval", tmp_path / "new")
    shutil.rmtree(files / "labeled")
    trust = "trust=[killer_callback]"
    assert evaluate(command("eval", f"ckpt={cut}", f"run_dir={tmp_path / 'again'}", trust)) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())["metrics"]
    assert again == results
    loaded = load_model(cut)
    assert loaded.model.tree.size == 7
    out = tmp_path / "predicted"
    words = ["predict", f"ckpt={cut}", f"source={moved}", f"run_dir={out}", trust]
    assert predict(command(*words)) == 0
    assert len(list((out / "images").iterdir())) == 6


def test_a_tree_without_the_datas_classes_is_one_line(compose, files, tmp_path) -> None:
    (files / "tree.txt").write_text(TREE.replace("    star\n", ""))
    with pytest.raises(DataError, match=r"tree\.txt has no star, which the data set has"):
        train(compose(*joint(files)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.tree=no.txt"], r"model\.tree=no\.txt: there is no such file"),
        (["model.tree=bad.txt"], r"bad\.txt, line 3: star stands in line 2 too"),
        (["data.classification_root=no"], r"data\.classification_root=no"),
        (
            ["data.classification_root=labeled", "augment.mixup=0.5"],
            r"augment\.mixup=0\.5 does not go with data\.classification_root",
        ),
    ],
)
def test_wrong_words(compose, files, tmp_path, monkeypatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("shape\n  star\n  star\n")
    with pytest.raises(UsageError, match=said):
        compose(*WORDS, *words)


def test_other_models_do_not_read_them(command, files) -> None:
    with pytest.raises(UsageError, match=r"would not be read: model=yolov2 .* model=yolo9000"):
        command("model=yolov2", f"data.classification_root={files / 'labeled'}")
    with pytest.raises(UsageError, match=r"read by train, not by check"):
        command("check", f"data.classification_root={files / 'labeled'}")


@pytest.mark.slow
def test_two_processes(cvtrain, files, tmp_path) -> None:
    words = [*joint(files), "trainer.devices=2", "run_dir=two"]
    done = cvtrain(*words, tiny=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tree: ") == 1
    state = load_checkpoint(tmp_path / "two/checkpoints/last.ckpt")["state_dict"]
    assert int(state["model.seen"]) == 28  # of each process: 14 of 28 images, twice
