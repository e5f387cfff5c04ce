"""``eval`` gives the number that training gave, to anyone who scores again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvtrain.engine.evaluate import _check_root, evaluate
from cvtrain.engine.train import train
from cvtrain.errors import DataError, UsageError


@pytest.fixture
def run(command, tmp_path):
    """Runs eval on a checkpoint; returns its folder."""

    def go(ckpt: Path, *words: str) -> Path:
        folder = tmp_path / f"eval{len(list(tmp_path.iterdir()))}"
        assert evaluate(command("eval", f"ckpt={ckpt}", f"run_dir={folder}", *words)) == 0
        return folder

    return go


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_numbers_of_training_come_back_to_the_digit(trained, run) -> None:
    folder = run(trained)
    assert results(folder)["metrics"] == results(trained)["metrics"]
    for name in ("predictions.json", "ground_truth.json"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()
    assert results(folder)["checkpoint"] == str(trained / "checkpoints" / "best.ckpt")


def test_pycocotools_scores_the_files_alike(trained, run) -> None:
    folder = run(trained)
    truth = COCO(str(folder / "ground_truth.json"))
    scored = COCOeval(truth, truth.loadRes(str(folder / "predictions.json")), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    metrics = results(folder)["metrics"]
    assert scored.stats[0] == pytest.approx(metrics["mAP"], abs=1e-6)
    assert scored.stats[1] == pytest.approx(metrics["mAP50"], abs=1e-6)


def test_another_split_and_other_batches(trained, run) -> None:
    train = results(run(trained, "split=train"))
    assert (train["split"], train["images"]) == ("train", 16)
    one = run(trained, "data.batch_size=1")
    ours, theirs = results(one)["metrics"], results(trained)["metrics"]
    assert ours["mAP50"] == pytest.approx(theirs["mAP50"], abs=1e-6)


def test_other_data_by_name(trained, run) -> None:
    folder = run(trained, "data=shapes", "data.num_val=7", "data.num_train=4")
    assert results(folder)["images"] == 7


def test_other_classes_are_refused(trained, command, tmp_path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["cvtrain"]["classes"]["names"][0] = "disc"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    config = command("eval", f"ckpt={tmp_path}/other.ckpt", f"run_dir={tmp_path}/e")
    with pytest.raises(DataError) as caught:
        evaluate(config)
    assert "not in the data: disc" in str(caught.value)
    assert "not in the model: circle" in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_a_split_that_is_not_there(trained, command, tmp_path) -> None:
    config = command("eval", f"ckpt={trained}", f"run_dir={tmp_path}/e")
    config["split"] = "holdout"
    with pytest.raises(DataError, match="holdout"):
        evaluate(config)


def test_another_evaluation_is_not_written_over(trained, command, run) -> None:
    folder = run(trained)
    config = command("eval", f"ckpt={trained}")
    config["run_dir"] = str(folder)
    with pytest.raises(UsageError, match="already holds predictions: choose another run_dir"):
        evaluate(config)


def test_a_root_that_the_reader_took_over_moves_with_the_key() -> None:
    from cvtrain.engine.evaluate import set_key

    settings = {"data": {"root": "/a", "reader": {"root": "/a", "split_file": "x"}}}
    set_key(settings, "data.root", "/b")
    assert settings["data"] == {"root": "/b", "reader": {"root": "/b", "split_file": "x"}}
    with pytest.raises(UsageError, match="no such key"):
        set_key(settings, "data.deep.key", 1)


def test_a_part_of_the_classes_stays_the_same_part(compose, run, tmp_path) -> None:
    words = ("backbone=darknet_tiny", "data.classes=[star,circle]", "data.train_per_class=4")
    config = compose(*words, "task=classification", "model=classifier", "data.num_val=12")
    assert train(config) == 0
    trained = tmp_path / "run"
    message = json.loads((trained / "check.json").read_text())["selection"]
    assert message["classes"] == ["star", "circle"]
    assert message["splits"]["train"]["images"] <= 8
    assert results(run(trained))["metrics"] == results(trained)["metrics"]
    other = run(trained, "data=shapes", "data.num_val=9", "data.scene_seed=4")
    message = json.loads((other / "check.json").read_text())["selection"]
    assert message["classes"] == ["star", "circle"], "other data, the model's classes"
    with pytest.raises(DataError, match="not in the data: star, circle"):
        run(trained, "data.classes=[square,triangle]")


def test_data_that_have_moved_are_named_as_resume_names_them(tmp_path) -> None:
    """A wrong command (2), as with resume: the data set is elsewhere, and a key says where."""
    gone = tmp_path / "gone"
    with pytest.raises(UsageError) as caught:
        _check_root({"root": str(gone), "download": None}, "runs/a")
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"the data of this run are no longer in {gone}; where they are now says "
        "cvtrain eval ckpt=runs/a data.root=FOLDER"
    )
    _check_root({"root": str(gone), "download": False}, "runs/a")
    _check_root({"root": str(tmp_path)}, "runs/a")
    _check_root({"root": None}, "runs/a")
