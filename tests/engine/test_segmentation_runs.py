"""Semantic segmentation as a user runs it: images of unequal size, fitted, whole and in tiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.predict import predict
from cvtrain.engine.train import train
from tests.engine.conftest import compose_words

NAMES = ["background", "disc", "bar"]
SIZES = [(70, 96), (70, 96), (48, 40), (100, 33), (64, 64), (64, 64), (20, 150)]


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask: discs, bars, a strip of void at the left."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    mask[np.hypot(y - height * rng.random(), x - width * rng.random()) < height / 3] = 1
    mask[np.abs(y - height * rng.random()) < height / 8] = 2
    colors = np.array([[90, 90, 90], [220, 60, 60], [60, 60, 220]], np.uint8)
    image = colors[mask] + rng.integers(0, 30, (height, width, 3)).astype(np.uint8)
    mask[:, :3] = 255
    return image, mask


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 7), ("val", 7)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for k in range(count):
            image, mask = scene(*SIZES[k], seed=k + 10 * (split == "val"))
            if split == "val" and k == 4:
                mask[:] = 255  # nothing to be scored
            Image.fromarray(image).save(root / "images" / split / f"{k}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{k}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def segmented(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was validated in tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("run") / "run"
        words = [
            *("task=semantic_segmentation", "model=fcn", "backbone=darknet_tiny"),
            *("backbone.narrow=null", "data=masks", f"data.root={pairs}", "data.image_size=64"),
            *("data.batch_size=4", "data.num_workers=0", "trainer.max_epochs=2"),
            *("trainer.accelerator=cpu", "callbacks.pictures.count=3", f"run_dir={folder}"),
            *("task.inference.mode=tiles", "task.inference.tile_size=32"),
        ]
        assert train(compose_words(words)) == 0
    return folder


@pytest.fixture
def run(command: Callable, tmp_path: Path) -> Callable[..., Path]:
    def go(ckpt: Path, *words: str) -> Path:
        folder = tmp_path / f"eval{len(list(tmp_path.iterdir()))}"
        assert evaluate(command("eval", f"ckpt={ckpt}", f"run_dir={folder}", *words)) == 0
        return folder

    return go


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def metrics(folder: Path) -> dict[str, float]:
    return results(folder)["metrics"]


def recomputed(folder: Path, pairs: Path) -> float:
    """mIoU from the PNG files alone, by a slow loop."""
    both, either = np.zeros(3), np.zeros(3)
    for k in range(len(SIZES)):
        true = np.array(Image.open(pairs / "masks" / "val" / f"{k}.png"))
        message = np.array(next(Image.open(p) for p in folder.rglob(f"masks/**/{k}.png")))
        assert message.shape == SIZES[k]
        for c in range(3):
            a, b = (true == c), (message == c) & (true != 255)
            both[c] += (a & b).sum()
            either[c] += (a | b).sum()
    return float((both / either).mean())


def test_training_eval_and_the_masks_on_disk_are_of_one_number(segmented, pairs, run) -> None:
    folder = run(segmented)
    assert metrics(folder) == pytest.approx(metrics(segmented), abs=1e-6)
    assert metrics(folder)["mIoU"] == pytest.approx(recomputed(folder, pairs), abs=1e-6)
    assert "1 image is void altogether" in " ".join(results(folder)["notes"])
    one = run(segmented, "data.batch_size=1")  # of images and of tiles
    assert metrics(one)["mIoU"] == pytest.approx(metrics(folder)["mIoU"], abs=1e-6)
    for picture in ("predictions.png", "worst.png", "class_iou.png"):
        with Image.open(folder / "plots" / picture) as image:
            assert min(image.size) > 100


@pytest.mark.parametrize("mode", ["fit", "whole"])
def test_an_evaluation_looks_otherwise_when_told(segmented, pairs, run, mode) -> None:
    folder = run(segmented, f"task.inference.mode={mode}", "task.inference.flip=true")
    assert metrics(folder)["mIoU"] == pytest.approx(recomputed(folder, pairs), abs=1e-6)
    stored = (folder / "config.yaml").read_text()
    assert f"mode: {mode}" in stored


def test_a_folder_of_all_kinds_of_images(segmented, command, tmp_path, capsys) -> None:
    source = tmp_path / "in"
    source.mkdir()
    image, _ = scene(70, 90, 3)
    Image.fromarray(image).save(source / "a.jpg")
    Image.fromarray(image[:30, :20, 0]).save(source / "gray.png")
    Image.fromarray(np.dstack([image, image[..., 0]])).save(source / "rgba.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(image).save(source / "turned.jpg", exif=turned)
    Image.fromarray(np.resize(image, (1, 5000, 3))).save(source / "thin.png")
    (source / "broken.png").write_bytes(b"\x89PNG no")
    for words in ([], ["task.inference.mode=fit"], ["task.inference.scales=[0.5,1]"]):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        message = command(
            "predict", f"ckpt={segmented}", f"source={source}", f"run_dir={out}", *words
        )
        assert predict(message) == 1  # broken.png was left out
        shapes = {p.name: Image.open(p).size for p in (out / "masks").iterdir()}
        assert shapes == {
            "a.png": (90, 70),
            "gray.png": (20, 30),
            "rgba.png": (90, 70),
            "turned.png": (70, 90),
            "thin.png": (5000, 1),
        }
        assert len(list((out / "images").iterdir())) == 5
        assert "skipped: " in capsys.readouterr().out
