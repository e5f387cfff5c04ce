"""Checkpoints as strangers may send them, and as people take their models away."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import cvtrain
from cvtrain.engine.checkpoint import (
    AtomicCheckpointIO,
    checkpoint_path,
    load_checkpoint,
    load_model,
)
from cvtrain.errors import CheckpointError, RunError, UsageError


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def content(trained) -> dict:
    return torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)


def refused(path: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_model_is_taken_away_in_two_lines(trained) -> None:
    run = cvtrain.load_model(trained)
    (prediction,) = run.model.predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert prediction.boxes.shape[1] == 4
    assert run.classes.names == ("circle", "square", "triangle", "star")
    assert run.config["data"]["image_size"] == 64
    assert run.path == trained / "checkpoints" / "best.ckpt"
    assert 0 <= run.metrics["mAP50"] <= 1
    assert not run.model.training


def test_it_is_the_averaged_weights(trained, content) -> None:
    weights = load_model(trained / "checkpoints" / "best.ckpt").model.state_dict()
    assert all(
        torch.equal(value, content["state_dict"][f"model.{k}"]) for k, value in weights.items()
    )


def test_files_and_folders(trained) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    assert {checkpoint_path(p) for p in (trained, trained / "checkpoints", best)} == {best}


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file(trained, tmp_path, part) -> None:
    data = (trained / "checkpoints" / "best.ckpt").read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(data[: int(part * len(data))])
    message = refused(path)
    assert str(path) in message
    assert ("empty" if part == 0 else "truncated") in message


@pytest.mark.parametrize(("broken", "whole"), [("best", "last"), ("last", "best")])
def test_a_whole_checkpoint_beside_a_broken_one_is_named(
    trained, tmp_path, monkeypatch, broken, whole
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("best", "last"):
        shutil.copy(trained / "checkpoints" / f"{name}.ckpt", tmp_path)
    file = tmp_path / f"{broken}.ckpt"
    file.write_bytes(file.read_bytes()[:3000])
    message = refused(file, CheckpointError)
    epoch = load_model(message.rpartition("ckpt=")[2]).epoch + 1
    assert message.endswith(f"{whole}.ckpt beside it is whole, of epoch {epoch}: ckpt={whole}.ckpt")
    (tmp_path / f"{whole}.ckpt").write_bytes(b"PK")
    assert refused(file, CheckpointError).endswith("truncated: its end is missing")


def test_a_pickle_payload_is_refused_and_not_run(content, tmp_path) -> None:
    content["extra"] = Payload(tmp_path / "pwned")
    torch.save(content, tmp_path / "bad.ckpt")
    assert "could run code" in refused(tmp_path / "bad.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "pwned")))
    assert "not a checkpoint" in refused(tmp_path / "bad.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_files_of_other_kinds(tmp_path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    refused(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.ckpt")
    assert "not a cvtrain checkpoint" in refused(tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "not a cvtrain checkpoint" in refused(tmp_path / "list.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "b")
    refused(tmp_path / "zip.ckpt")


def test_nothing_there(tmp_path) -> None:
    assert "no such file" in refused(tmp_path / "none.ckpt")
    assert "best.ckpt" in refused(tmp_path)


def test_a_target_outside_the_allow_list(content, tmp_path) -> None:
    content["cvtrain"]["config"]["model"]["loss"] = {"_target_": "os.system", "command": "true"}
    torch.save(content, tmp_path / "bad.ckpt")
    assert "os" in refused(tmp_path / "bad.ckpt", UsageError)


def test_what_a_checkpoint_trusts_does_not_count(content, tmp_path) -> None:
    content["cvtrain"]["config"]["trust"] = ["my_package"]
    content["cvtrain"]["config"]["model"]["_target_"] = "my_package.Model"
    torch.save(content, tmp_path / "bad.ckpt")
    assert "trust=[my_package]" in refused(tmp_path / "bad.ckpt", UsageError)


def test_weights_of_another_shape(content, tmp_path) -> None:
    content["cvtrain"]["config"]["model"]["hidden"] = 48
    torch.save(content, tmp_path / "bad.ckpt")
    assert "do not fit its config" in refused(tmp_path / "bad.ckpt")


def test_a_config_that_builds_nothing(content, tmp_path) -> None:
    del content["cvtrain"]["config"]["model"]
    torch.save(content, tmp_path / "bad.ckpt")
    assert "builds no model" in refused(tmp_path / "bad.ckpt")


def test_files_to_start_from_are_not_asked_for_again(content, tmp_path) -> None:
    content["cvtrain"]["config"]["model"]["backbone"]["weights"] = "/nowhere/weights.pt"
    torch.save(content, tmp_path / "moved.ckpt")
    assert load_model(tmp_path / "moved.ckpt").epoch == content["epoch"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_old_file(content, tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"old": 1}, path)
    real = Path.open

    def onto_full(self: Path, mode: str = "r", *rest, **options):
        target = Path("/dev/full") if "w" in mode else self
        return real(target, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", onto_full)
    with pytest.raises(RunError, match="No space left") as caught:
        AtomicCheckpointIO().save_checkpoint(content, path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_saved_is_what_is_loaded(content, tmp_path) -> None:
    io_plugin = AtomicCheckpointIO()
    io_plugin.save_checkpoint(content, tmp_path / "a.ckpt")
    again = io_plugin.load_checkpoint(tmp_path / "a.ckpt")
    assert again.keys() == content.keys()
    buffer = io.BytesIO()
    torch.save(content["state_dict"], buffer)
    assert all(torch.equal(again["state_dict"][k], v) for k, v in content["state_dict"].items())
    io_plugin.remove_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_memory_mapped_read_is_the_same(trained, tmp_path) -> None:
    path = Path(shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path))
    a, b = load_checkpoint(path), load_checkpoint(path, mmap=True)
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
