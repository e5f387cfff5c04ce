"""Runs on features that are kept: the same numbers, without the backbone."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.data.views import Views
from cvtrain.engine.build import build_model, build_task, build_transfer
from cvtrain.engine.checkpoint import load_model
from cvtrain.engine.data import load_data, loaders
from cvtrain.engine.device import Device
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.features import feature_loaders
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from cvtrain.engine.trainer import build_trainer
from cvtrain.errors import UsageError
from cvtrain.models.backbones.darknet import DarknetTiny

Compose = Callable[..., dict[str, Any]]
State = Callable[..., dict[str, torch.Tensor]]
FIXED = "transfer=feature_extraction"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes with which a backbone is called."""
    sizes: list[int] = []
    original = DarknetTiny.forward

    def counted(self: DarknetTiny, x: torch.Tensor) -> Any:
        sizes.append(len(x))
        return original(self, x)

    monkeypatch.setattr(DarknetTiny, "forward", counted)
    return sizes


def numbers(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)
        ]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def kept(tmp_path: Path) -> set[str]:
    return {p.name for p in (tmp_path / "cache" / "cvtrain" / "features").iterdir()}


def compute(config: dict[str, Any]) -> None:
    """The features of a run, without the run."""
    data, _ = load_data(config)
    model = build_model(config, len(data.classes))
    task = build_task(config, model, data.classes, transfer=build_transfer(config, model))
    trainer = build_trainer(config, Device("cpu", 1, 1, "32-true"), None, Path(), [], [])
    feature_loaders(config, task, trainer, *loaders(data, config, trainer))


# The backbone is called once an image ------------------------------------------------------------


def test_the_backbone_sees_each_image_once_whatever_the_epochs(
    compose: Compose, calls: list[int], tmp_path: Path
) -> None:
    assert train(compose(FIXED, "trainer.max_epochs=5")) == 0
    assert calls == [4, 4, 4, 3, 4, 2], "15 training and 6 validation images, before epoch 1"
    assert len(numbers(tmp_path / "run")) == 5
    assert results(tmp_path / "run")["images"] == 6


def test_a_second_run_does_not_call_it_at_all_and_says_so(
    compose: Compose, calls: list[int], tmp_path: Path
) -> None:
    assert train(compose(FIXED, run="first")) == 0
    calls.clear()
    assert train(compose(FIXED, run="second")) == 0
    assert calls == []
    message = [(tmp_path / run / "train.log").read_text() for run in ("first", "second")]
    assert message[0].count("computed in") == 2
    assert message[1].count("taken from") == 2
    assert "computed in" not in message[1]
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")


def test_every_view_is_computed_once(compose: Compose, calls: list[int]) -> None:
    assert train(compose(FIXED, "transfer.views=3", "trainer.max_epochs=4")) == 0
    assert sum(calls) == 3 * 15 + 6


# The same numbers as without the cache -----------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_uncached_run_on_the_same_views_gives_the_same_metrics(
    head: str, compose: Compose, state: State, calls: list[int], tmp_path: Path
) -> None:
    words = [FIXED, "transfer.views=3", f"transfer.head={head}", "model.dropout=0.3"]
    words += ["callbacks=default", "callbacks.pictures=null", "optimizer.lr=0.05"]
    assert train(compose(*words, run="cached")) == 0
    calls.clear()
    assert train(compose(*words, "transfer.cache=false", run="uncached")) == 0
    assert sum(calls) == 2 * (3 * 15 - 1 + 6) + 6, "two epochs of all views, and an evaluation"
    cached, uncached = numbers(tmp_path / "cached"), numbers(tmp_path / "uncached")
    for a, b in zip(cached, uncached, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert cached[0]["train/loss"] != cached[1]["train/loss"]
    for name, value in state("cached").items():
        torch.testing.assert_close(value, state("uncached")[name], rtol=1e-3, atol=1e-4)


def test_views_are_augmented_differ_and_stay(compose: Compose) -> None:
    data, _ = load_data(compose(FIXED, "transfer.views=3"))
    loader = data.train_dataloader()
    views: Any = loader.dataset
    assert isinstance(views, Views)
    assert (len(views), len(loader)) == (45, 11), "a last batch of one is left out, as ever"
    assert sorted(key[1] for key in loader.sampler) == list(range(45))
    one, other = views[0, 7], views[5, 7]
    assert (one.image == other.image).all(), "the same in every epoch"
    assert one.info.file_name == views[22].info.file_name, "15 further: the next view of the image"
    assert not np.array_equal(one.image, views[22].image)
    assert (views[22].image == data.dataset("train", train=True)[1, 7].image).all()
    assert views.described(22).target.label == views[22].target.label
    assert views.described(22).info == views[22].info
    with pytest.raises(IndexError):
        views[45]


def test_what_is_said_of_an_image_without_opening_it(compose: Compose) -> None:
    data, _ = load_data(compose("transfer=null"))
    for samples in (data.dataset("val"), data.dataset("train", train=True)):
        for row in range(len(samples)):
            whole, described = samples[row], samples.described(row)
            assert whole.info == described.info
            assert whole.target == described.target
            assert whole.truth == described.truth


# What is kept belongs to what it was made of ------------------------------------------------------


def test_other_weights_images_and_sizes_have_features_of_their_own(
    compose: Compose, weights: Path, photos: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    base = [FIXED, f"data.root={root}", "trainer.max_epochs=1"]
    state = torch.load(weights, weights_only=True)
    state["blocks.2.0.norm.running_var"][3] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    changes: list[tuple[list[str], int]] = [
        ([], 2),
        ([], 0),
        (["seed=3"], 0),  # plain images are the same
        (["transfer.head=mlp"], 0),
        (["data.batch_size=8"], 0),
        ([f"backbone.weights={tmp_path / 'other.pt'}"], 2),
        (["data.image_size=40"], 2),
        (["data.resize=letterbox"], 2),
        (["transfer.views=2"], 1),  # validation images have no views
        (["transfer.views=2", "seed=3"], 1),
        (["transfer.views=2", "augment=light"], 1),
        (["transfer.views=3"], 1),
    ]
    before: set[str] = set()
    for number, (words, new) in enumerate(changes):
        chosen = {word.partition("=")[0] for word in words}
        words = [*(w for w in base if w.partition("=")[0] not in chosen), *words]
        compute(compose(*words, run=str(number)))
        now = kept(tmp_path)
        assert len(now - before) == new, words
        before = now
    image = root / "val" / "red" / "0.png"
    Image.new("RGB", (40, 36), (9, 9, 9)).save(image)
    compute(compose(*base, run="changed"))
    assert len(kept(tmp_path) - before) == 1, "a file of the validation set has changed"


def test_a_truncated_file_is_computed_anew(
    compose: Compose, calls: list[int], tmp_path: Path
) -> None:
    assert train(compose(FIXED, run="first")) == 0
    calls.clear()
    for name in kept(tmp_path):
        file = tmp_path / "cache/cvtrain/features" / name / "features.npy"
        file.write_bytes(file.read_bytes()[:-4])
    assert train(compose(FIXED, run="second")) == 0
    assert sum(calls) == 21
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")


# Such a run is a run ------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp", "svm", "logistic_regression", "knn"])
def test_checkpoints_hold_the_whole_model(
    head: str, compose: Compose, command: Any, photos: Path, tmp_path: Path, weights: Path
) -> None:
    assert train(compose(FIXED, f"transfer.head={head}", "callbacks=default")) == 0
    run = tmp_path / "run"
    loaded = load_model(run)
    file = torch.load(weights, weights_only=True)
    state = loaded.model.backbone.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(state[name], value) for name, value in file.items())
    scored = tmp_path / "scored"
    words = (f"ckpt={run}", f"run_dir={scored}", "trainer.accelerator=cpu")
    assert evaluate(command("eval", *words)) == 0
    for name, value in results(run)["metrics"].items():
        assert results(scored)["metrics"][name] == pytest.approx(value, abs=1e-6)
    assert results(scored)["losses"]["loss"] == pytest.approx(results(run)["losses"]["loss"])
    assert predict(command("predict", f"ckpt={run}", f"source={photos / 'val'}",
                           f"run_dir={tmp_path / 'predicted'}")) == 0  # fmt: skip
    message = [
        json.loads((tmp_path / f / "predictions.json").read_text()) for f in ("run", "scored")
    ]
    for ours, theirs in zip(*message, strict=True):
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-5)
        assert ours == theirs
    assert (run / "plots" / "predictions.png").exists(), "drawn from the images themselves"


@pytest.mark.parametrize("head", ["svm", "logistic_regression", "knn"])
def test_a_fitted_head_needs_no_epochs(head: str, compose: Compose, tmp_path: Path, capsys) -> None:
    config = compose(FIXED, f"transfer.head={head}", "transfer.views=2")
    assert train(config) == 0
    assert len(numbers(tmp_path / "run")) == 1
    assert results(tmp_path / "run")["metrics"]["accuracy"] > 0.6
    captured = capsys.readouterr()
    assert "fitted" in captured.out
    assert captured.err == ""
    config["resume"] = config["run_dir"]
    assert train(config) == 0
    assert "this run is finished (1 epoch)\n" in capsys.readouterr().out


def test_a_run_on_features_goes_on_exactly_without_its_weights_file(
    compose: Compose, state: State, weights: Path, tmp_path: Path, calls: list[int]
) -> None:
    copy = Path(shutil.copy(weights, tmp_path / "copy.pt"))
    words = [FIXED, f"backbone.weights={copy}", "callbacks=default", "callbacks.pictures=null"]
    assert train(compose(*words, "trainer.max_epochs=4", "scheduler=none", run="whole")) == 0
    config = compose(*words, "trainer.max_epochs=2", "scheduler=none", run="cut")
    assert train(config) == 0
    copy.unlink()
    (tmp_path / "cut" / "results.json").unlink()
    calls.clear()
    config["trainer"]["max_epochs"] = 4
    config["resume"] = config["run_dir"]
    assert train(config) == 0
    assert calls == []
    whole, cut = state("whole"), state("cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")


def test_overfitting_one_batch_of_features(compose: Compose, tmp_path: Path) -> None:
    assert train(compose(FIXED, "trainer.overfit_batches=1")) == 0
    assert (results(tmp_path / "run")["split"], results(tmp_path / "run")["images"]) == ("train", 4)


def test_generated_images_have_features_too(compose: Compose, tmp_path: Path) -> None:
    words = [FIXED, "data=shapes", "data.num_train=6", "data.num_val=4", "trainer.max_epochs=1"]
    for run, word in (("a", "data.num_val=4"), ("b", "data.num_val=4"), ("c", "data.num_val=5")):
        config = compose(*[w for w in words if not w.startswith("data.num_val")], word, run=run)
        compute(config)
    assert len(kept(tmp_path)) == 4


def test_a_model_without_features_of_its_own(compose: Compose, monkeypatch) -> None:
    from cvtrain.models.classification.classifier import Classifier

    monkeypatch.setattr(Classifier, "features", None)
    with pytest.raises(UsageError, match=r"has no features\(images\).*transfer\.cache=false"):
        train(compose(FIXED))


def test_a_fitted_head_without_features(compose: Compose) -> None:
    config = compose(FIXED, "transfer.head=svm")
    config["transfer"]["cache"] = False
    with pytest.raises(UsageError, match=r"say transfer\.cache=true"):
        train(config)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[FIXED], ["transfer=fine_tune", "transfer.freeze_epochs=1"]])
def test_two_processes(words: list[str], compose: Compose, tmp_path: Path) -> None:
    """Rank 0 computes features, both read them; stages come free in both."""
    import subprocess
    import sys

    words = [*words, "trainer.devices=2", "trainer.strategy=ddp"]
    config = compose(*words)
    command = [sys.executable, "-m", "cvtrain", *config["overrides"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("epoch 2/2") == 1
    assert done.stdout.count("computed in") == (2 if words[0] == FIXED else 0)
    assert results(tmp_path / "run")["images"] == 6
    scored = load_model(tmp_path / "run")
    assert scored.metrics["accuracy"] == results(tmp_path / "run")["metrics"]["accuracy"]


def test_several_labels_an_image_drawn_evenly(
    compose: Compose, photos: Path, tmp_path: Path, calls: list[int]
) -> None:
    """Features of a multi-label set, each view of a rare class drawn more than once an epoch."""
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    for split in ("train", "val"):
        files = sorted(p.relative_to(root).as_posix() for p in (root / split).rglob("*.png"))
        rows = [f"{f},{'blue;red' if 'blue' in f else f.split('/')[1]}" for f in files]
        (root / f"{split}.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    words = ["task=multilabel_classification", "model=classifier", "data=csv", f"data.root={root}"]
    words += [FIXED, "transfer.views=2", "data.sampler=balanced"]
    assert train(compose(*words)) == 0
    assert sum(calls) == 2 * 15 + 6
    assert results(tmp_path / "run")["task"] == "multilabel_classification"
