"""``predict`` on files of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtrain.engine.predict import predict
from cvtrain.errors import DataError


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
    folder = tmp_path / "predicted"
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
    said = capsys.readouterr().out
    assert "broken.jpg" in said
    assert "3 images" in said
    assert "1 left out" in said


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
