"""``cvtrain proposals``: what it is given, what it refuses, what it writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.cli import main as cli_main
from cvtrain.cli.completion import candidates
from cvtrain.config.groups import ConfDirs
from cvtrain.proposals.color import SPACES
from cvtrain.proposals.selective_search import MODES
from cvtrain.storage import RUN_MARKER

Cli = Callable[..., Any]
SMALL = ["data.num_train=3", "data.num_val=2", "data.num_test=1", "data.image_size=96"]


def test_defaults_of_the_verb(cli: Cli) -> None:
    done = cli("proposals proposals.mode=quality seed=3")
    assert done.verb == "proposals"
    assert (done.config["task"]["name"], done.config["command"]) == ("detection", "proposals")
    node = done.config["proposals"]
    assert (node["name"], node["mode"], node["seed"]) == ("selective_search", "quality", 3)
    assert node["max_boxes"] == 2000
    assert cli("model=yolo").config["proposals"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("proposals proposals.mode=slow", "it takes single | fast | quality"),
        ("proposals proposals.max_boxes=0", "it takes an integer from 1"),
        ("proposals proposals.colors=[XYZ]", "color spaces, each once, of RGB"),
        ("proposals proposals.similarities=[CC]", "sums of C, T, S and F"),
        ("proposals proposals.thresholds=[0]", "numbers above 0"),
        ("proposals proposals=file", "proposals.path= is needed"),
        ("proposals proposals=file proposals.path=no.npz", "there is no such file"),
        ("proposals proposals.mod=fast", "did you mean proposals.mode=fast?"),
        ("proposals data.batch_size=4", "is not read by proposals"),
        ("proposals data.train_per_class=4", "is not read by proposals"),
        ("proposals optimizer.lr=1", "read by train, not by proposals"),
        ("proposals model=yolo", "is not read by proposals: no model is run"),
        ("proposals task=classification", "proposals are held against boxes"),
        ("proposals ckpt=a", "ckpt= is read by eval, predict and export, not"),
        ("proposals data=voc", "needs data.root=FOLDER"),
        ("proposals data=voc data.root=. data.image_size=64", "made on the original images"),
        ("model=yolo proposals=selective_search", "would not be read: model=yolo makes its own"),
        ("check proposals=file", "read by train, eval, predict, show and proposals, not by check"),
        ("propsals data=voc", "did you mean proposals?"),
    ],
)
def test_wrong_commands(cli: Cli, words: str, said: str) -> None:
    done = cli(words)
    assert done.code == 2
    assert said in done.line


def test_a_model_that_is_given_boxes(cli: Cli, here: Path) -> None:
    (here / "conf/model").mkdir(parents=True)
    (here / "conf/model/boxed.yaml").write_text(
        "# @package _global_\n# Takes boxes.\ndefaults: [override /proposals: selective_search]\n"
        "model: {name: boxed, tasks: [detection], proposals: true, _target_: torch.nn.Identity}\n"
    )
    done = cli("--config-dir conf model=boxed trust=[torch.nn] proposals.mode=quality")
    assert done.code == 0, done.err
    assert done.config["proposals"]["mode"] == "quality"
    none = cli("--config-dir conf model=boxed trust=[torch.nn] proposals=null")
    assert none.code == 2
    assert "model=boxed is given its boxes: proposals=selective_search, or" in none.line
    (here / "p.npz").touch()
    given = cli(
        "--config-dir conf model=boxed trust=[torch.nn] proposals=file proposals.path=p.npz"
    )
    assert given.config["proposals"]["path"] == str(here / "p.npz")


def test_choices_are_those_of_the_search() -> None:
    from cvtrain.config import rules

    assert tuple(MODES) == rules.MODES
    assert set(rules.COLORS) == set(SPACES)


def test_completion_knows_the_keys(here: Path) -> None:
    offered = lambda line: candidates(line, ConfDirs())  # noqa: E731
    assert "proposals.mode=" in offered("cvtrain proposals proposals.mo")
    assert offered("cvtrain proposals proposals.mode=q") == ["proposals.mode=quality"]
    assert "proposals.path=" in offered("cvtrain proposals proposals=file proposals.")
    assert offered("cvtrain propo") == ["proposals", "proposals="]
    assert "proposals." in offered("cvtrain proposals propo")


def test_the_whole_verb_on_shapes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["proposals", "data.num_workers=0", *SMALL]
    assert cli_main.main([*words, "run_dir=out"]) == 0
    page = capsys.readouterr().out
    assert "train: 3 images" in page
    assert "test: 1 image, " in page
    assert "boxes made for 6 of 6 images" in page
    out = here / "out"
    names = {"proposals.npz", "recall.json", "recall.csv", "recall.png", "boxes.png"}
    names |= {RUN_MARKER}
    assert {p.name for p in out.iterdir()} == names
    message = json.loads((out / "recall.json").read_text())
    assert set(message["splits"]) == {"train", "val", "test"}
    last = message["splits"]["train"]["curve"][-1]
    assert 0.7 < last["MABO"] <= 1
    assert 0.9 <= last["recall50"] <= 1
    rows = list(csv.DictReader((out / "recall.csv").open()))
    assert {r["split"] for r in rows} == {"train", "val", "test"}
    assert float(rows[-1]["MABO"]) == message["splits"]["test"]["curve"][-1]["MABO"]
    with np.load(out / "proposals.npz", allow_pickle=False) as arrays:
        assert len(arrays["files"]) == 6
        assert arrays["starts"][-1] == len(arrays["boxes"])
    for name in ("recall.png", "boxes.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200

    # The file it wrote, read again, says the same of one split.
    read = ["proposals", "proposals=file", "proposals.path=out/proposals.npz", *SMALL]
    assert cli_main.main([*read, "split=val", "run_dir=again"]) == 0
    again = json.loads((here / "again/recall.json").read_text())
    assert list(again["splits"]) == ["val"]
    assert again["splits"]["val"] == message["splits"]["val"]
    capsys.readouterr()
    other = [w.replace("num_val=2", "num_val=4") for w in read] + ["run_dir=no"]
    assert cli_main.main(other) == 1
    assert "lacks 2 of the 8 images: val/000002.png, val/000003.png" in capsys.readouterr().err
    assert not (here / "no").exists()


def test_run_dir_of_something_else(
    here: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").touch()
    for folder, message in ((finished_run, "holds a training run"), (here / "file", "is a file")):
        assert cli_main.main(["proposals", *SMALL, f"run_dir={folder}"]) == 2
        assert message in capsys.readouterr().err
