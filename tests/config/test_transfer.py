"""Transfer regimes as typed: what they need, what they make void, what is said of mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
FIXED = "transfer=feature_extraction backbone.pretrained=true"
WRONG = [
    ("transfer=fine_tune", "add backbone.pretrained=true or backbone.weights=FILE_OR_RUN"),
    ("transfer=partial", "add backbone.pretrained=true or backbone.weights=FILE_OR_RUN"),
    ("transfer=feature_extraction", "add backbone.pretrained=true or backbone.weights=FILE_OR_RUN"),
    ("transfer=fine_tune backbone=darknet_tiny", "add backbone.weights=FILE_OR_RUN"),
    ("transfer=scratch backbone.pretrained=true", "omit backbone.pretrained=true"),
    ("transfer=scratch backbone.weights=w.pt", "omit backbone.weights=w.pt"),
    ("transfer=finetune", "did you mean transfer=fine_tune?"),
    ("transfer.stages=2", "transfer.stages is a key of transfer=partial"),
    ("transfer=fine_tune transfer.stages=2", "a key of transfer=partial"),
    ("freeze=10", "transfer=partial transfer.stages=N"),
    (f"{FIXED} augment=light", "transfer.views=8"),
    (f"{FIXED} augment=light", "transfer.cache=false"),
    (f"{FIXED} augment.min_area=3", "transfer.views=8"),
    (f"{FIXED} transfer.views=4 augment=none", "all views of an image are the same"),
    (f"{FIXED} transfer.views=4 augment.mixup=0.5", "are not mixed"),
    (f"{FIXED} transfer.head=knn data.sampler=balanced", "fitted once to all images"),
    (f"{FIXED} data.cache=ram", "images are decoded once"),
    (f"{FIXED} transfer.head=svn", "did you mean transfer.head=svm?"),
    (f"{FIXED} transfer.head=null", "choose linear | mlp"),
    (f"{FIXED} transfer.k=3", "it is of transfer.head=knn"),
    (f"{FIXED} transfer.head=svm transfer.hidden=3", "it is of transfer.head=mlp"),
    (f"{FIXED} transfer.head=svm transfer.C=0", "a number above 0"),
    (f"{FIXED} transfer.head=knn trainer.max_epochs=3", "fitted once, without epochs"),
    (f"{FIXED} transfer.head=svm optimizer=sgd", "fitted once, without epochs"),
    (f"{FIXED} transfer.head=svm optimizer.lr=1", "fitted once, without epochs"),
    (f"{FIXED} transfer.head=svm callbacks.ema.decay=0.9", "fitted once, without epochs"),
    (f"{FIXED} transfer.head=svm transfer.cache=false", "leave transfer.cache=true"),
    (f"{FIXED} transfer.head=svm trainer.devices=2", "trainer.devices=1"),
    (f"{FIXED} transfer.views=0", "an integer from 1, or null"),
    (
        "model=yolo transfer=feature_extraction backbone.weights=w.pt transfer.head=svm",
        "model=yolo",
    ),
    ("model=yolo transfer=feature_extraction backbone.weights=w.pt transfer.views=2", "model=yolo"),
    ("model=yolo transfer=feature_extraction backbone.weights=w.pt transfer.cache=true", "fixed"),
    ("transfer=fine_tune backbone.weights=w.pt transfer.layer_decay=1.5", "at most 1"),
    ("transfer=fine_tune backbone.weights=w.pt transfer.layer_decay=0", "above 0"),
    ("transfer=fine_tune backbone.weights=w.pt transfer.freeze_epochs=30", "none of trainer.max"),
    ("transfer=partial backbone.weights=w.pt transfer.stages=0", "an integer from 1"),
    ("transfer=partial backbone.weights=w.pt transfer.stages=null", "transfer.unfreeze_every=E"),
    ("transfer=partial backbone.weights=w.pt transfer.unfreeze_every=40", "none of trainer.max"),
    (
        "transfer=partial backbone.weights=w.pt transfer.stages=1 transfer.unfreeze_every=1",
        "transfer.stages=1 would not be read",
    ),
    ("eval ckpt=. transfer=fine_tune", "transfer= is read by train, not by eval"),
    ("show transfer=fine_tune", "transfer= is read by train, not by show"),
]


@pytest.mark.parametrize(("command", "said"), WRONG)
def test_mistakes_are_one_line(cli: Cli, here: Path, command: str, said: str) -> None:
    (here / "w.pt").touch()
    done = cli(command)
    assert done.code == 2
    assert said in done.line


def test_a_model_that_takes_no_backbone(cli: Cli, here: Path) -> None:
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "plain.yaml").write_text(
        "# @package _global_\n# A plain net.\nmodel:\n  name: plain\n  tasks: [classification]\n"
        "  default_image_size: 32\n  default_resize: stretch\n  _target_: plain.Net\n"
    )
    done = cli("--config-dir=conf model=plain transfer=fine_tune")
    assert done.line == "transfer=fine_tune would not be read: model=plain takes no backbone"


def test_nothing_is_chosen_by_default(cli: Cli) -> None:
    assert cli("model=classifier").config["transfer"] is None
    assert cli("transfer=null").config["transfer"] is None
    assert cli("~transfer").config["transfer"] is None


def test_cached_features_are_of_plain_images(cli: Cli) -> None:
    config = cli(FIXED).config
    assert config["augment"] is None
    assert config["transfer"]["head"] == "linear"
    assert (config["transfer"]["hidden"], config["transfer"]["C"], config["transfer"]["k"]) == (
        None,
        None,
        None,
    )
    assert cli(f"{FIXED} transfer.views=8").config["augment"]["name"] == "classification"
    assert cli(f"{FIXED} transfer.cache=false").config["augment"]["name"] == "classification"
    assert cli(f"{FIXED} augment=none").config["augment"] is None
    assert cli(f"{FIXED} transfer.views=2 augment=light").config["augment"]["name"] == "light"


def test_views_are_not_mixed(cli: Cli, here: Path) -> None:
    (here / "conf" / "augment").mkdir(parents=True)
    text = "# Mixed.\ndefaults: [light, _self_]\nmixup: 0.5\ncutmix: 0.2\n"
    (here / "conf" / "augment" / "mixed.yaml").write_text(text)
    done = cli("--config-dir=conf augment=mixed")
    assert done.config["augment"]["mixup"] == 0.5
    config = cli(f"--config-dir=conf {FIXED} transfer.views=2 augment=mixed").config
    assert (config["augment"]["mixup"], config["augment"]["cutmix"]) == (0, 0)


@pytest.mark.parametrize("head", ["svm", "logistic_regression", "knn"])
def test_what_is_fitted_has_no_epochs(cli: Cli, head: str) -> None:
    config = cli(f"{FIXED} transfer.head={head}").config
    assert config["trainer"]["max_epochs"] is None
    assert (config["optimizer"], config["scheduler"]) == (None, None)
    assert (config["callbacks"]["ema"], config["callbacks"]["early_stopping"]) == (None, None)
    given = {"knn": {"k"}}.get(head, set())
    assert {k for k in ("hidden", "C", "k") if config["transfer"][k] is not None} == given
    key = "transfer.k=3" if head == "knn" else "transfer.C=3"
    assert cli(f"{FIXED} transfer.head={head} {key}").code == 0
    assert cli(f"{FIXED} transfer.head={head} callbacks=none").code == 0


def test_a_detector_keeps_its_augmentation(cli: Cli, here: Path) -> None:
    (here / "w.pt").touch()
    config = cli("model=yolo transfer=feature_extraction backbone.weights=w.pt").config
    assert config["augment"]["name"] == "yolo"
    assert (config["transfer"]["head"], config["transfer"]["cache"]) == (None, None)


def test_from_scratch_an_experiments_weights_are_left_out(cli: Cli, here: Path) -> None:
    config = cli("experiment=yolo_voc transfer=scratch data.root=.").config
    assert config["backbone"]["weights"] is None
    assert config["model"]["backbone"]["weights"] is None


def test_gradual_unfreezing_instead_of_a_number_of_stages(cli: Cli) -> None:
    config = cli("transfer=partial backbone.pretrained=true transfer.unfreeze_every=3").config
    assert (config["transfer"]["stages"], config["transfer"]["unfreeze_every"]) == (None, 3)


def test_several_regimes_in_one_sweep(cli: Cli) -> None:
    done = cli("-m transfer=fine_tune,scratch backbone.pretrained=true")
    assert "in the job" in done.line
    assert "omit backbone.pretrained=true" in done.line
