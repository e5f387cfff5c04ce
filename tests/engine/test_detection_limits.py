"""Images with more objects than a model lets be predicted are said, before and after training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cvtrain.data.table import CROWD, DIFFICULT, Classes, Strings, Table
from cvtrain.engine.checkpoint import load_model
from cvtrain.engine.detection_limits import objects_of, too_few
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.train import train
from cvtrain.errors import UsageError

RPN = {"proposals": [2000, 300]}


@pytest.mark.parametrize(
    ("model", "objects", "said"),
    [
        ({"max_detections": 100}, [100, 3], ""),
        ({"max_detections": 100, "rpn": RPN}, [], ""),
        ({"name": "mine"}, [9000], ""),
        ({"max_detections": 500, "rpn": None}, [400], ""),
        (
            {"max_detections": 100, "rpn": RPN},
            [101, 100, 3],
            "1 image has more objects than model.max_detections=100 let the model predict (up to "
            "101): not all can be found; model.max_detections=101 lifts that, in eval and predict "
            "too",
        ),
        (
            {"max_detections": 100, "rpn": RPN},
            [117, 500, 20],
            "2 images have more objects than model.max_detections=100 and "
            "model.rpn.proposals=[2000,300] let the model predict (up to 500): not all can be "
            "found; model.max_detections=500 model.rpn.proposals=[2000,1000] lifts that, in eval "
            "and predict too",
        ),
    ],
)
def test_what_is_said(model, objects, said) -> None:
    assert too_few(model, np.array(objects, np.int64)) == said


def test_crowds_and_difficult_ones_are_no_objects() -> None:
    table = Table(
        root="/nowhere",
        classes=Classes.from_names(["cat"]),
        files=Strings(f"{i}.jpg" for i in range(3)),
        sizes=np.full((3, 2), 64, np.int32),
        starts=np.array([0, 3, 3, 4]),
        boxes=np.zeros((4, 4)),
        labels=np.zeros(4, np.int64),
        flags=np.array([0, CROWD, 0, DIFFICULT], np.uint8),
        areas=np.full(4, np.nan),
        lines=np.zeros(4, np.int32),
    )
    assert objects_of(table).tolist() == [2, 0, 0]


WORDS = (
    "task=instance_segmentation",
    "model=mask_rcnn",
    "backbone=darknet_tiny",
    "model.channels=16",
    "model.hidden=[16]",
    "model.rpn.candidates=[100,50]",
    "model.max_detections=2",
    "model.min_score=0.0",
    "data.min_objects=3",
    "data.max_objects=4",
    "trainer.max_epochs=1",
)


def test_more_can_be_asked_of_a_trained_model(compose, command, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert train(compose(*WORDS)) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert message.count("more objects than model.max_detections=2 let the model predict") == 2

    def found(*words: str) -> list[int]:
        folder = tmp_path / f"eval{len(list(tmp_path.iterdir()))}"
        assert evaluate(command("eval", f"ckpt={run}", f"run_dir={folder}", *words)) == 0
        entries = json.loads((folder / "predictions.json").read_text())
        return sorted(np.unique([e["image_id"] for e in entries], return_counts=True)[1].tolist())

    assert found() == [2] * 5
    assert "more objects than model.max_detections=2" in " ".join(capsys.readouterr().out.split())
    assert min(found("model.max_detections=7")) > 2
    assert "more objects than" not in capsys.readouterr().out
    few = found("model.max_detections=7", "model.rpn.proposals=[5,1]")
    assert max(few) <= 4  # one region, a detection of it for each of four classes
    with pytest.raises(UsageError, match="is model=mask_rcnn, which has no such key"):
        load_model(run, changes={"head.proposals": [5, 1]})
    with pytest.raises(UsageError, match="max_detections"):
        found("model.max_detections=0")
    with pytest.raises(UsageError, match="proposals"):
        found("model.rpn.proposals=[5,0]")
