"""``cvtrain anchors``: what it is given, what it refuses, what it writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cvtrain.cli import main as cli_main
from cvtrain.cli.completion import candidates
from cvtrain.config.groups import ConfDirs
from cvtrain.config.rules import span
from cvtrain.storage import RUN_MARKER

Cli = Callable[..., Any]
SMALL = ["data.num_train=12", "data.num_val=2", "data.num_test=1", "data.image_size=64"]


def test_defaults_of_the_verb(cli: Cli) -> None:
    done = cli("anchors seed=3")
    assert done.verb == "anchors"
    config = done.config
    assert (config["task"]["name"], config["model"]["name"]) == ("detection", "yolov2")
    assert (config["k"], config["seed"], config["data"]["resize"]) == ("1..15", 3, "stretch")
    assert cli("anchors data.resize=letterbox k=4").config["k"] == 4
    assert cli("anchors task=instance_segmentation").code == 0


@pytest.mark.parametrize(
    ("value", "numbers"),
    [(5, (5, 5)), ("5", (5, 5)), ("2..7", (2, 7)), ("7..2", None), ("0..2", None), ("2..", None)],
)
def test_how_many(value: Any, numbers: Any) -> None:
    assert span(value) == numbers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("anchors k=0", "k=0: it takes a number of anchors from 1"),
        ("anchors k=9..3", "it takes a number of anchors from 1, or several: 1..15"),
        ("anchors model.anchors=3", "model.anchors= is read by train, not by anchors"),
        ("anchors data.batch_size=3", "anchors, which looks only at the boxes"),
        ("anchors data.num_workers=3", "anchors, which looks only at the boxes"),
        ("anchors task=classification", "anchors are made from boxes"),
        ("anchors optimizer.lr=1", "read by train, not by anchors"),
        ("anchors data=voc", "needs data.root=FOLDER"),
        ("check k=4", "k= is read by anchors, not by check"),
        ("ancors data=voc", "did you mean anchors?"),
        ("model=yolov2 model.anchors=0", "or how many to make from the training set"),
        ("model=yolov2 model.anchors=[0.1,0.2]", "it takes [width, height] of each"),
        ("model=ssd model.anchors=5", "model.anchors is a key of model=yolo"),
    ],
)
def test_wrong_commands(cli: Cli, words: str, said: str) -> None:
    done = cli(words)
    assert done.code == 2
    assert said in done.line


def test_completion_knows_the_keys() -> None:
    offered = lambda line: candidates(line, ConfDirs())  # noqa: E731
    assert "k=" in offered("cvtrain anchors ")
    assert offered("cvtrain anc") == ["anchors"]
    assert "k=" not in offered("cvtrain check ")


def test_the_whole_verb_on_shapes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["anchors", "k=2..7", "run_dir=out", *SMALL]) == 0
    page = capsys.readouterr().out
    out = here / "out"
    assert {p.name for p in out.iterdir()} == {
        *(RUN_MARKER, "anchors.json", "anchors.csv", "anchors.png")
    }
    message = json.loads((out / "anchors.json").read_text())
    rows = message["clusters"]
    assert [row["k"] for row in rows] == [2, 3, 4, 5, 6, 7]
    assert all(len(row["anchors"]) == row["k"] for row in rows)
    assert all(0.2 * 0.9 < side < 0.7 for row in rows for pair in row["anchors"] for side in pair)
    iou = [row["average_iou"] for row in rows]
    assert iou == sorted(iou)
    assert iou[-1] > message["model"]["average_iou"] > 0.5
    table = list(csv.DictReader((out / "anchors.csv").open()))
    assert [float(row["average_iou"]) for row in table] == iou
    word = table[3]["anchors"]
    assert word in page.splitlines()  # as many as the model has by default
    with Image.open(out / "anchors.png") as picture:
        assert min(picture.size) > 200

    # The line is one that a command takes as it stands.
    config = cli_main.configuration(cli_main.args.parse(["model=yolov2", word]), ConfDirs())
    assert config["model"]["anchors"] == rows[3]["anchors"]

    assert cli_main.main(["anchors", "k=99", "run_dir=no", *SMALL]) == 1
    assert "boxes, too few for k=99 anchors" in capsys.readouterr().err
    assert cli_main.main(["anchors", "model=ssd", "run_dir=no", *SMALL]) == 2
    assert "model=ssd takes no anchors of this kind" in capsys.readouterr().err
    assert not (here / "no").exists()
