from __future__ import annotations

import errno
import os

import pytest
import pytorch_lightning as pl
import torch

from cvtrain.callbacks.checkpoint import BestAndLast
from cvtrain.errors import RunError


class Scores(pl.Callback):
    """Puts given values in the place of a validation's result."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        pl_module.results["accuracy"] = self.values[trainer.current_epoch]


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", (0.1, 0.5, 0.3), 1),
        ("min", (0.1, 0.5, 0.3), 0),
        ("max", (0.2, 0.2, 0.2), 0),
        ("max", (float("nan"), 0.1, float("nan")), 1),
    ],
)
def test_exactly_best_and_last(make_task, fit, header, tmp_path, mode, values, best) -> None:
    folder = tmp_path / "checkpoints"
    fit(make_task(mode), Scores(*values), BestAndLast(folder, header), epochs=3)
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    loaded = {n: torch.load(folder / f"{n}.ckpt", weights_only=True) for n in ("best", "last")}
    assert loaded["best"]["epoch"] == best
    assert loaded["last"]["epoch"] == 2
    assert loaded["best"]["cvtrain"]["metrics"]["accuracy"] == pytest.approx(values[best])
    assert {k: loaded["last"]["cvtrain"][k] for k in header} == header


def test_epochs_that_are_not_validated_are_last_never_best(
    make_task, fit, header, tmp_path
) -> None:
    saver = BestAndLast(tmp_path / "c", header)
    fit(make_task(), saver, epochs=1, check_val_every_n_epoch=2)
    assert [p.name for p in saver.folder.iterdir()] == ["last.ckpt"]


def test_a_resume_remembers_the_best(make_task, fit, header, tmp_path) -> None:
    first = BestAndLast(tmp_path, header)
    fit(make_task(), Scores(0.9), first, epochs=1)
    second = BestAndLast(tmp_path, header)
    fit(make_task(), Scores(0.9, 0.5), second, epochs=2, ckpt_path=str(first.last_path))
    assert (second.best, second.best_epoch) == (0.9, 0)
    assert torch.load(first.best_path, weights_only=True)["epoch"] == 0
    assert torch.load(first.last_path, weights_only=True)["epoch"] == 1


class FullDisk(pl.Callback):
    """From an epoch on, nothing can be written any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
        self.monkeypatch, self.epoch = monkeypatch, epoch

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.epoch:
            self.monkeypatch.setattr("cvtrain.engine.checkpoint._RememberingFile.write", full)


def full(self, data) -> int:
    self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise self.error


def test_a_full_disk_leaves_the_previous_checkpoint(
    make_task, fit, header, tmp_path, monkeypatch
) -> None:
    saver = BestAndLast(tmp_path / "c", header)
    with pytest.raises(RunError) as caught:
        fit(make_task(), FullDisk(monkeypatch, 1), saver, epochs=3)
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in saver.folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert torch.load(saver.last_path, weights_only=True)["epoch"] == 0


def test_without_hard_links_the_file_is_copied(
    make_task, fit, header, tmp_path, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    saver = BestAndLast(tmp_path, header)
    fit(make_task(), saver, epochs=1)
    assert saver.best_path.read_bytes() == saver.last_path.read_bytes()
