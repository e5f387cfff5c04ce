"""Small images with regions in them, and tables of them on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvtrain.data.table import Classes, Strings, Table


def patches(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """uint8 ``(H, W, 3)``: noisy rectangles of random colors on a noisy ground."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(40, 216, 3), np.int64)
    for _ in range(6):
        x0, x1 = np.sort(rng.integers(0, width + 1, 2))
        y0, y1 = np.sort(rng.integers(0, height + 1, 2))
        image[y0:y1, x0:x1] = rng.integers(0, 256, 3)
    noise = rng.integers(-12, 13, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def image() -> Callable[..., np.ndarray]:
    return patches


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Table]:
    """A table of PNG files, one object each: ``photos(count, folder="a")``."""

    def make(count: int = 4, folder: str = "photos", names: list[str] | None = None) -> Table:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        files = names or [f"{i:03d}.png" for i in range(count)]
        for i, name in enumerate(files):
            (root / name).parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(root / name), patches(i)[:, :, ::-1])
        return Table(
            root=str(root),
            classes=Classes.from_names(["a", "b"]),
            files=Strings(files),
            sizes=np.tile(np.array([[40, 48]], np.int32), (len(files), 1)),
            starts=np.arange(len(files) + 1, dtype=np.int64),
            boxes=np.tile(np.array([[4.0, 6.0, 30.0, 28.0]]), (len(files), 1)),
            labels=np.arange(len(files), dtype=np.int64) % 2,
            flags=np.zeros(len(files), np.uint8),
            areas=np.full(len(files), np.nan),
            lines=np.zeros(len(files), np.int64),
        )

    return make
