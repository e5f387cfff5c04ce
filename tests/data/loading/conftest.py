"""Small tables for the loader's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cvtrain.data.shapes import ShapesReader
from cvtrain.data.table import Classes, Strings, Table


@pytest.fixture
def shapes() -> Callable[..., dict[str, Table]]:
    """Tables of drawn scenes: ``shapes(task, num_train=..., ...)``."""

    def make(task: str = "detection", **options: Any) -> dict[str, Table]:
        settings = {"num_train": 13, "num_val": 7, "num_test": 0, "scene_size": [48, 64], **options}
        reader = ShapesReader(task=task, **settings)
        return {split: reader.read(split).table for split in reader.splits()}

    return make


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Table]:
    """A table of PNG files of one color each, image i of value ``10 * (i + 1)``, no objects."""

    def make(count: int = 4, height: int = 24, width: int = 32, **fields: Any) -> Table:
        names = [f"{i:03d}.png" for i in range(count)]
        for i, name in enumerate(names):
            image = np.full((height, width, 3), 10 * (i + 1), np.uint8)
            assert cv2.imwrite(str(tmp_path / name), image)
        given = {
            "root": str(tmp_path),
            "classes": Classes.from_names(["a", "b", "c"]),
            "files": Strings(names),
            "sizes": np.tile(np.array([[height, width]], np.int32), (count, 1)),
            "starts": np.zeros(count + 1, np.int64),
            "boxes": np.zeros((0, 4)),
            "labels": np.zeros(0, np.int64),
            "flags": np.zeros(0, np.uint8),
            "areas": np.zeros(0),
            "lines": np.zeros(0, np.int64),
        }
        return Table(**{**given, **fields})

    return make
