"""Mixup and CutMix in a run: in training alone, exact after a resume; classes that were lost."""

from __future__ import annotations

import csv

import pytest
import torch

from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.train import train

CLASSIFIER = (
    "task=classification",
    "model=classifier",
    "backbone=darknet_tiny",
    "augment=light",
    "augment.mixup=0.5",
    "augment.cutmix=0.5",
    "augment.close_epoch=2",
    "data.image_size=32",
    "trainer.max_epochs=3",
    "callbacks.ema=null",
)


def weights(run):
    return load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_killed_run_goes_on_to_the_same_weights(compose, command, killer, tmp_path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(compose(*CLASSIFIER, run_dir=whole)) == 0
    stop = [*killer("SIGTERM"), "data.num_workers=2"]
    stop = [word.replace("how:SIGTERM", "how:SIGTERM,epoch:1") for word in stop]
    assert train(compose(*CLASSIFIER, *stop, run_dir=cut)) == 143
    assert train(command(f"resume={cut}", "trust=[killer_callback]")) == 0
    one, two = weights(whole), weights(cut)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_batches_are_mixed_in_training_until_it_closes(compose, monkeypatch) -> None:
    from cvtrain.models.classification.classifier import Classifier

    seen: list[tuple[bool, bool]] = []
    original = Classifier.compute_loss

    def spy(self, outputs, targets):
        seen.append((torch.is_grad_enabled(), any(t.probs is not None for t in targets)))
        return original(self, outputs, targets)

    monkeypatch.setattr(Classifier, "compute_loss", spy)
    assert train(compose(*CLASSIFIER)) == 0
    training = [mixed for grad, mixed in seen if grad]
    assert training == [True] * 8 + [False] * 4  # four batches an epoch, two epochs of three
    assert not any(mixed for grad, mixed in seen if not grad)


def test_overfitted_batches_are_not_mixed(compose, monkeypatch) -> None:
    from cvtrain.augment.mix import BatchMix

    monkeypatch.setattr(BatchMix, "__call__", lambda *_: pytest.fail("mixed"))
    assert train(compose(*CLASSIFIER, "trainer.overfit_batches=1")) == 0


def test_classes_that_a_crop_or_their_size_lost_are_named(compose, tmp_path, capsys) -> None:
    words = ["augment=none", "augment.min_area=3000", "trainer.max_epochs=2"]
    assert train(compose(*words)) == 0
    message = capsys.readouterr().out
    assert message.count("not one label of ") == 1
    assert "lower augment.min_area" in message
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_nothing_is_said_where_all_classes_were_seen(compose, capsys) -> None:
    assert train(compose("trainer.max_epochs=1")) == 0
    assert "not one label" not in capsys.readouterr().out
