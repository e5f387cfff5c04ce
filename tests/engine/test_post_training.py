"""A model with stages through whole runs: what they leave, cut in any of them, trained on."""

from __future__ import annotations

import json
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cvtrain.engine import post_training as stages_module
from cvtrain.engine.checkpoint import load_checkpoint, load_model
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.train import train
from cvtrain.errors import RunError
from cvtrain.models.detection.rcnn_stages import BoxRegressors, SVMs
from cvtrain.signals import Interrupted

from .conftest import TINY

WORDS = (
    "task=detection",
    "model=rcnn",
    "proposals.mode=single",
    "proposals.max_boxes=40",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cvtrain" / "features"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run in ``run`` and its cache. Not to be written to."""
    return tmp_path_factory.mktemp("staged")


@pytest.fixture
def whole(finished: Path, compose: Callable[..., Any], monkeypatch: Any) -> Path:
    """The run of WORDS, never interrupted."""
    if not (finished / "run" / "results.json").exists():
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(finished / "cache"))
            assert train(compose(*WORDS, run_dir=finished / "run")) == 0
    return finished / "run"


def weights(folder: Path, name: str = "best.ckpt") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / name)["state_dict"]


def assert_same(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    message = [(folder / "predictions.json").read_bytes() for folder in (first, second)]
    assert message[0] == message[1]
    assert len(message[0]) > 100


def interrupt(*_: Any) -> Any:
    raise Interrupted(signal.SIGTERM)


def test_a_run_goes_through_its_stages(whole, command, tmp_path) -> None:
    assert sorted(p.name for p in (whole / "stages").iterdir()) == [
        "boxes.pt",
        "features.pt",
        "svms.pt",
    ]
    for path in (whole / "stages").iterdir():
        torch.load(path, weights_only=True)
    results = json.loads((whole / "results.json").read_text())
    assert [stage["name"] for stage in results["stages"]] == ["features", "svms", "boxes"]
    assert all(stage["said"] and stage["seconds"] > 0 for stage in results["stages"])
    loaded = load_model(whole)
    for name in ("svms", "boxes"):
        assert loaded.model.stages[name].fitted
        assert loaded.model.stages[name].weight.any()
    assert loaded.metrics["mAP50"] == results["metrics"]["mAP50"]
    log = (whole / "train.log").read_text()
    for name in ("features", "svms", "boxes"):
        assert f"stage {name}: " in log
    again = tmp_path / "again"
    assert evaluate(command("eval", f"ckpt={whole}", f"run_dir={again}")) == 0
    assert json.loads((again / "results.json").read_text())["metrics"] == results["metrics"]
    assert (again / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()


@pytest.mark.parametrize("stage", ["examples", "svms", "boxes", "scores"])
def test_a_run_cut_in_a_stage_goes_on_with_it(
    stage, whole, compose, command, cache, tmp_path, monkeypatch, capsys
) -> None:
    run = tmp_path / "run"
    where = {
        "examples": ("cvtrain.models.detection.rcnn.RCNN.examples", ()),
        "svms": ("cvtrain.models.detection.rcnn_stages.SVMs.fit", ()),
        "boxes": ("cvtrain.models.detection.rcnn_stages.BoxRegressors.fit", (SVMs,)),
        "scores": ("cvtrain.engine.train.score", (SVMs, BoxRegressors)),
    }
    place, kept = where[stage]
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt)
        assert train(compose(*WORDS)) == 143
    message = capsys.readouterr().out.replace("\n", "")
    assert f"resume={run}" in message
    assert ("with the remaining stages" in message) == (stage != "scores")
    assert not (run / "results.json").exists()
    assert cache.exists()
    assert len([p for p in cache.iterdir() if "partial" not in p.name]) == (stage != "examples")
    last = (run / "checkpoints" / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        for done in kept:  # what is there is not fitted again
            patch.setattr(done, "fit", interrupt)
        if stage != "examples":
            patch.setattr("cvtrain.models.detection.rcnn.RCNN.examples", interrupt)
        assert train(command(f"resume={run}")) == 0
    assert_same(whole, run)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == last
    results = json.loads((run / "results.json").read_text())
    assert [entry["name"] for entry in results["stages"]] == ["features", "svms", "boxes"]
    assert all(entry["seconds"] > 0 for entry in results["stages"])


def test_a_run_cut_in_an_epoch_ends_as_if_nothing_had_been(
    whole, compose, command, killer, tmp_path
) -> None:
    config = compose(*WORDS, *killer("SIGTERM"))
    config["callbacks"]["killer"]["epoch"] = 1
    assert train(config) == 143
    assert train(command(f"resume={tmp_path / 'run'}", "trust=[killer_callback]")) == 0
    first, second = weights(whole), weights(tmp_path / "run")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_that_is_trained_on_fits_its_stages_anew(whole, command, tmp_path, capsys) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert train(command(f"resume={run}")) == 0
    assert "this run is finished" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    last = weights(run, "last.ckpt")
    assert not any(last[f"model.stages.{name}.fitted"] for name in ("svms", "boxes"))
    old = (run / "stages" / "svms.pt").read_bytes()
    assert train(command(f"resume={run}")) == 0
    better = load_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == 2
    assert ((run / "stages" / "svms.pt").read_bytes() != old) == better
    assert all(weights(run)[f"model.stages.{name}.fitted"] for name in ("svms", "boxes"))


def test_stages_that_are_left_out_are_not_there(compose, tmp_path) -> None:
    assert train(compose(*WORDS, "model.svm=false", "model.box_regression=false")) == 0
    assert not (tmp_path / "run" / "stages").exists()
    assert "stages" not in json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.parametrize(
    ("word", "images"), [("limit_train_batches=2", 8), ("overfit_batches=1", 4)]
)
def test_stages_learn_from_the_images_that_the_network_may(compose, word, images, capsys) -> None:
    assert train(compose(*WORDS, f"trainer.{word}", "trainer.max_epochs=1")) == 0
    assert f"stage features: {images} training images" in capsys.readouterr().out


def test_too_small_a_disk_is_told_before_it_is_full(compose, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2000, 1000, 1000))
    monkeypatch.setattr("cvtrain.transfer.feature_cache._TRIED", 1)
    with pytest.raises(RunError, match=r"GB are needed.*XDG_CACHE_HOME.*model\.fit_boxes") as info:
        train(compose(*WORDS))
    assert "\n" not in str(info.value)


def test_a_damaged_stage_is_one_line(whole, command, tmp_path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "results.json").unlink()
    (run / "stages" / "svms.pt").write_bytes(b"half")
    with pytest.raises(RunError, match=r"svms\.pt cannot be read: delete it"):
        train(command(f"resume={run}"))


def test_only_models_with_stages_have_them(compose, monkeypatch) -> None:
    monkeypatch.setattr(stages_module.Stages, "fit", interrupt)
    assert train(compose("trainer.max_epochs=1")) == 0


@pytest.mark.slow
def test_two_processes(cvtrain, tmp_path) -> None:
    own = [word for word in TINY if not word.startswith(("task=", "model"))]
    done = cvtrain(*WORDS, *own, "trainer.devices=2", "run_dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stage svms: ") == 1
    again = cvtrain("eval", "ckpt=two", "run_dir=again", "trainer.accelerator=cpu")
    assert again.returncode == 0, again.stderr
    scores = [
        json.loads((tmp_path / name / "results.json").read_text())["metrics"]
        for name in ("two", "again")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
