"""``predict`` on files of the user's own."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.engine.predict import _Predicting, predict
from cvtrain.errors import DataError, RunError
from cvtrain.text import printable


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep er").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("a.jpg", (50, 70)), ("deep er/ü.png", (90, 40)), ("a.png", (30, 30))):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    return folder


def run(command, trained, tmp_path, *words: str) -> tuple[int, Path]:
    folder = tmp_path / "predict_batch"
    words = ("predict", f"ckpt={trained}", f"run_dir={folder}", *words)
    return predict(command(*words)), folder


def test_a_folder_with_a_broken_file(command, trained, images, tmp_path, capsys) -> None:
    code, folder = run(command, trained, tmp_path, f"source={images}", "score_threshold=0")
    assert code == 1
    entries = json.loads((folder / "predictions.json").read_text())
    assert {e["file_name"] for e in entries} == {"a.jpg", "a.png", "deep er/ü.png"}
    sizes = {"a.jpg": (70, 50), "deep er/ü.png": (40, 90), "a.png": (30, 30)}
    for entry in entries:
        x, y, w, h = entry["bbox"]
        width, height = sizes[entry["file_name"]]
        assert 0 <= x <= x + w <= width + 1e-3
        assert 0 <= y <= y + h <= height + 1e-3
        assert entry["score"] > 0
        assert entry["category"] in ("circle", "square", "triangle", "star")
        assert entry["image_id"] == entry["file_name"]
    drawn = sorted(
        str(p.relative_to(folder / "images")) for p in (folder / "images").rglob("*.png")
    )
    assert len(drawn) == 3
    with Image.open(folder / "images" / "deep er" / "ü.png") as picture:
        assert picture.width >= 40
    message = capsys.readouterr().out
    assert "broken.jpg" in message
    assert "3 images" in message
    assert "1 skipped" in message


ODD = [b"x" * 251 + b".jpg", b"y" * 237 + b".jpg", b"caf\xe9.jpg", b"[a].jpg", b"\x1b[31mred\n.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
def test_odd_names_cost_nothing(command, trained, tmp_path, capsys) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ODD:
        Image.new("RGB", (40, 30)).save(io := BytesIO(), format="JPEG")
        (folder / os.fsdecode(name)).write_bytes(io.getvalue())
    code, out = run(command, trained, tmp_path, f"source={folder}", "score_threshold=0")
    assert code == 0
    entries = json.loads((out / "predictions.json").read_text())
    assert {os.fsencode(e["file_name"]) for e in entries} == set(ODD)
    assert len(list((out / "images").iterdir())) == len(ODD)
    message = capsys.readouterr().out
    for text in (message, (out / "train.log").read_text("utf-8")):
        assert "\x1b" not in text
        for name in ODD:
            assert printable(os.fsdecode(name)) in text


def test_class_names_are_printed_as_they_are(command, trained, images, tmp_path, capsys) -> None:
    names = ["stop [/sign]", "\x1b[31mred", "[a].png", "_a$b$"]
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["cvtrain"]["classes"]["names"] = names
    path = tmp_path / "odd.ckpt"
    torch.save(checkpoint, path)
    code, out = run(command, path, tmp_path, f"source={images}/a.jpg", "score_threshold=0")
    assert code == 0
    for text in (capsys.readouterr().out, (out / "train.log").read_text()):
        assert all(printable(name) in text for name in names)
        assert "\x1b" not in text


@pytest.mark.parametrize("broken", ["draw", "save", "predict_batch", "memory"])
def test_one_image_that_fails_costs_itself_alone(
    command, trained, images, tmp_path, capsys, monkeypatch, broken
) -> None:
    """Drawing, writing and predicting fail for images of 70 x 50 pixels."""
    from cvtrain.engine import predict as module
    from cvtrain.tasks.base import Task

    drawn: list[Path] = []
    if broken in ("draw", "save"):
        real = getattr(module, broken)

        def fails(*given, **named):
            if broken == "draw" and given[0].shape[:2] == (50, 70):
                raise ValueError("odd")
            if broken == "save" and given[0].name == "a.png" and not drawn:
                drawn.append(given[0])
                raise OSError(errno.ENAMETOOLONG, "File name too long")
            return real(*given, **named)

        monkeypatch.setattr(module, broken, fails)
    else:
        real = Task.predict_batch

        def fails(self, batch):
            if any(info.width == 70 for info in batch.infos):
                raise RunError("odd") if broken == "predict_batch" else MemoryError()
            return real(self, batch)

        monkeypatch.setattr(Task, "predict_batch", fails)
    code, out = run(command, trained, tmp_path, f"source={images}", "score_threshold=0")
    assert code == 1
    entries = json.loads((out / "predictions.json").read_text())
    assert {e["file_name"] for e in entries} == {"a.png", "deep er/ü.png"}
    message = capsys.readouterr().out
    assert "skipped: a.jpg" in message
    assert "2 skipped" in message
    assert "skipped: a.jpg" in (out / "train.log").read_text()


def test_a_prediction_that_is_not_finite_is_its_images_fault(
    command, trained, images, tmp_path, capsys, monkeypatch
) -> None:
    from cvtrain.tasks.base import Task

    real = Task.predict_batch

    def fails(self, batch):
        found = real(self, batch)
        return [
            replace(p, scores=p.scores * float("nan")) if info.width == 70 else p
            for p, info in zip(found, batch.infos, strict=True)
        ]

    monkeypatch.setattr(Task, "predict_batch", fails)
    monkeypatch.setattr(_Predicting, "_cut", lambda self, prediction: prediction)
    code, _ = run(command, trained, tmp_path, f"source={images}", "score_threshold=0")
    assert code == 1
    message = capsys.readouterr().out
    assert "skipped: a.jpg: its prediction is not finite" in message
    assert "diverged" not in message


def test_a_full_disk_ends_all(command, trained, images, tmp_path, monkeypatch) -> None:
    from cvtrain.engine import predict as module

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    with pytest.raises(RunError, match="No space left"):
        run(command, trained, tmp_path, f"source={images}")


def test_the_threshold_cuts(command, trained, images, tmp_path, capsys) -> None:
    code, folder = run(command, trained, tmp_path, f"source={images}/a.jpg", "score_threshold=1")
    assert code == 0
    assert json.loads((folder / "predictions.json").read_text()) == []
    assert "nothing" in capsys.readouterr().out


def test_nothing_readable_is_a_failure(command, trained, images, tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        run(command, trained, tmp_path, f"source={images}/broken.jpg")
    assert "\n" not in str(caught.value)


def test_a_glob(command, trained, images, tmp_path) -> None:
    code, folder = run(command, trained, tmp_path, f"source={images}/*.png", "score_threshold=0")
    assert code == 0
    entries = json.loads((folder / "predictions.json").read_text())
    assert {e["file_name"] for e in entries} == {"a.png"}


def test_predictions_are_those_of_an_evaluation(command, trained, tmp_path) -> None:
    """The embedded scenes, written to files, get the boxes that training's evaluation gave."""
    from cvtrain.data.datamodule import build_datamodule
    from cvtrain.engine.checkpoint import load_model

    config = load_model(trained).config
    data, _ = build_datamodule(config, "detection", seed=config["seed"], progress=False)
    dataset = data.dataset("val")
    folder = tmp_path / "scenes"
    for row in range(len(dataset)):
        path = (folder / dataset.table.files[row]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(dataset.image(row))).save(path)
    _, out = run(command, trained, tmp_path, f"source={folder}", "score_threshold=0")
    ours = json.loads((out / "predictions.json").read_text())
    theirs = json.loads((trained / "predictions.json").read_text())
    assert len(ours) == len(theirs)
    key = lambda e: (Path(e["file_name"]).stem, -e["score"], e["category_id"], e["bbox"])  # noqa: E731
    for a, b in zip(sorted(ours, key=key), sorted(theirs, key=key), strict=True):
        assert Path(a["file_name"]).stem == Path(b["file_name"]).stem
        assert a["score"] == pytest.approx(b["score"], abs=1e-6)
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
