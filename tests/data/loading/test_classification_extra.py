"""Images with boxes and images with only a class, in one training set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.classification_extra import Joint
from cvtrain.data.datamodule import build_datamodule
from cvtrain.errors import DataError

SHAPES = {
    "_target_": "cvtrain.data.shapes.ShapesReader",
    "num_train": 5,
    "num_val": 2,
    "num_test": 0,
    "scene_size": 32,
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """oval: 4 images, star: 3."""
    generator = np.random.default_rng(0)
    for name, count in (("oval", 4), ("star", 3)):
        (tmp_path / "labeled" / name).mkdir(parents=True)
        for k in range(count):
            pixels = generator.integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "labeled" / name / f"{k}.png")
    return tmp_path / "labeled"


@pytest.fixture
def build(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(**changes: Any) -> Any:
        data = {
            "reader": SHAPES,
            "name": "shapes",
            "on_bad": "error",
            "val_fraction": 0.3,
            "channels": 3,
            "batch_size": 4,
            "image_size": 32,
            "resize": "stretch",
            "num_workers": 0,
            "cache": "none",
            "classification_root": str(folders),
            **changes,
        }
        augment = {"name": "a", "transforms": [], "mosaic": 1.0}
        return build_datamodule({"data": data, "augment": augment}, "detection")[0]

    return make


def test_an_epoch_has_every_image_of_both_once(build: Callable[..., Any]) -> None:
    data = build()
    assert data.classes.names == ("circle", "square", "triangle", "star", "oval")
    assert data.classes.ids == (0, 1, 2, 3, 4)
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, Joint)
    assert len(loader.dataset) == 5 + 7
    targets = [t for batch in loader for t in batch.targets]
    assert len(targets) == 12
    labels = sorted(int(t.label) for t in targets if t.label is not None)
    assert labels == [3, 3, 3, 4, 4, 4, 4]
    assert all((t.boxes is None) == (t.label is not None) for t in targets)
    for batch in data.val_dataloader():
        assert all(t.boxes is not None and t.label is None for t in batch.targets)
        assert len(batch.images) == 2


def test_a_sample_depends_on_its_key_alone(build: Callable[..., Any]) -> None:
    first, second = build().train_dataloader().dataset, build().train_dataloader().dataset
    for row in (11, 0, 5, 7):
        assert np.array_equal(first[(3, row)].image, second[(3, row)].image)
    with pytest.raises(IndexError):
        first[(0, 12)]


def test_a_validation_split_of_its_own_is_left_alone(
    build: Callable[..., Any], folders: Path
) -> None:
    for split, names in (("train", ("0", "1", "2")), ("val", ("3",))):
        (folders / split).mkdir()
        (folders / split / "oval").mkdir()
        for name in names:
            (folders / "oval" / f"{name}.png").rename(folders / split / "oval" / f"{name}.png")
    (folders / "oval").rmdir()
    for file in (folders / "star").iterdir():
        file.unlink()
    (folders / "star").rmdir()
    assert len(build().train_dataloader().dataset) == 5 + 3


def test_what_is_no_class_folder_is_one_line(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folders with images found"):
        build(classification_root=str(tmp_path / "empty"))
