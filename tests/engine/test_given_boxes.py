"""Models that are given their boxes: through training, evaluation and prediction."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.errors import DataError, UsageError
from cvtrain.proposals.file import write_proposals
from cvtrain.proposals.selective_search import Boxes

MODEL = '''
"""Says of every box it is given that it is of class 0, the first most surely."""
import torch
from torch import nn
from cvtrain.models.base import Model
from cvtrain.structures import Prediction

class Given(Model):
    def __init__(self, num_classes):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, images, proposals):
        assert len(images) == len(proposals)
        limit = torch.tensor([images.shape[3], images.shape[2]] * 2)
        for boxes in proposals:
            assert boxes.dtype == torch.float32 and len(boxes)
            assert (boxes >= 0).all() and (boxes <= limit).all()
        return proposals

    def compute_loss(self, outputs, targets):
        counted = self.bias.new_tensor(sum(map(len, outputs)))
        return {"given": (self.bias - 1) ** 2, "num_given": counted}

    def decode(self, outputs):
        return [
            Prediction(
                boxes=b,
                scores=self.bias.sigmoid() / torch.arange(1.0, len(b) + 1),
                labels=torch.zeros(len(b), dtype=torch.int64),
            )
            for b in outputs
        ]
'''


@pytest.fixture
def config(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of such a model on selective search's boxes, five an image."""
    (tmp_path / "given_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "given_model", raising=False)
    made = compose("augment=none", "callbacks.ema=null", "data.num_train=4", "data.num_val=3")
    made["model"] = {"name": "given", "proposals": True, "_target_": "given_model.Given"}
    made["trust"] = ["given_model"]
    made["proposals"] = {
        "name": "selective_search",
        "_target_": "cvtrain.proposals.source.SelectiveSearch",
        "mode": "single",
        "max_boxes": 5,
    }
    return made


def test_boxes_reach_training_evaluation_and_prediction(config, command, tmp_path, capsys) -> None:
    assert train(config) == 0
    run = tmp_path / "run"
    assert "proposals: boxes made for 7 of 7 images" in capsys.readouterr().out
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["train/num_given"]) for r in rows] == [20.0, 20.0]
    assert float(rows[-1]["val/mAP50"]) >= 0

    words = ["eval", f"ckpt={run}", "trust=[given_model]", f"run_dir={tmp_path / 'three'}"]
    assert evaluate(command(*words, "proposals.max_boxes=3")) == 0
    entries = json.loads((tmp_path / "three" / "predictions.json").read_text())
    assert len(entries) == 3 * 3

    source = tmp_path / "photos"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)
    noise[10:30, 20:60] = 200
    Image.fromarray(noise).save(source / "a.png")
    words = ["predict", f"ckpt={run}", "trust=[given_model]", f"source={source}"]
    assert predict(command(*words, f"run_dir={tmp_path / 'said'}", "score_threshold=0")) == 0
    entries = json.loads((tmp_path / "said" / "predictions.json").read_text())
    assert len(entries) == 5
    first = entries[0]["bbox"]
    assert first[0] + first[2] <= 80.001
    assert first[1] + first[3] <= 50.001


def test_a_wrong_model_is_said_before_boxes_are_made(config, tmp_path) -> None:
    config["model"]["width"] = 3
    with pytest.raises(UsageError, match="width"):
        train(config)
    assert not list(tmp_path.rglob("proposals/**/*.npz"))
    del config["model"]["width"]
    assert train(config) == 0
    assert list(tmp_path.rglob("proposals/**/*.npz"))


def test_a_file_of_boxes_for_prediction(config, command, tmp_path) -> None:
    assert train(config) == 0
    source = tmp_path / "photos"
    source.mkdir()
    Image.new("RGB", (80, 50)).save(source / "a.png")
    box = np.array([[10, 10, 30, 40]], np.float32)
    made = Boxes(box, np.ones(1, np.float32), 1)
    file = write_proposals(tmp_path / "b.npz", ["a.png"], np.array([[50, 80]]), [made], {})
    words = ["predict", f"ckpt={tmp_path / 'run'}", "trust=[given_model]", f"source={source}"]
    words += ["proposals=file", f"proposals.path={file}", "score_threshold=0"]
    assert predict(command(*words, f"run_dir={tmp_path / 'said'}")) == 0
    (entry,) = json.loads((tmp_path / "said" / "predictions.json").read_text())
    assert entry["bbox"] == pytest.approx([10, 10, 20, 30], abs=1e-3)

    Image.new("RGB", (60, 50)).save(source / "a.png")
    with pytest.raises(DataError, match="none of the 1 images"):
        predict(command(*words, f"run_dir={tmp_path / 'again'}"))


def test_no_boxes_for_a_model_that_needs_some(config, command, tmp_path) -> None:
    assert train(config) == 0
    words = ["eval", f"ckpt={tmp_path / 'run'}", "trust=[given_model]", "proposals=null"]
    with pytest.raises(UsageError, match="proposals=null: model=given is given its boxes"):
        evaluate(command(*words, f"run_dir={tmp_path / 'said'}"))


def test_boxes_for_a_model_that_makes_its_own(command, trained, tmp_path) -> None:
    for verb in ("eval", "predict source=."):
        with pytest.raises(UsageError, match="model=yolo makes its own boxes"):
            command(*verb.split(), f"ckpt={trained}", "proposals=selective_search")
