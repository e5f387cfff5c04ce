"""Details of a metric, tables, and a look into the figures that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cvtrain.data.table import Classes, Strings, Table
from cvtrain.metrics import metrics_for
from cvtrain.structures import ImageInfo, Prediction, Target

ODD_NAMES = (
    "person",
    "日本語",
    "$x^{$",
    "a_b\\c",
    "un nom très long " * 4,
    "new\nline\ttab",
    "\udcff",
)


@pytest.fixture
def odd_names() -> tuple[str, ...]:
    return ODD_NAMES


@pytest.fixture
def detection_details() -> Callable[..., dict[str, Any]]:
    def make(names: tuple[str, ...], absent: int = 0, images: int = 30, seed: int = 0) -> Any:
        """The last ``absent`` classes have no ground truth."""
        rng = np.random.default_rng(seed)
        k = len(names)
        metrics = metrics_for("detection", Classes.from_names(names))
        for i in range(images):
            n = 5
            corner = rng.uniform(0, 300, (n, 2))
            boxes = np.concatenate([corner, corner + rng.uniform(10, 120, (n, 2))], axis=1)
            labels = rng.integers(0, max(1, k - absent), n)
            gt = slice(0, 0) if absent == k else slice(None)
            found = boxes + rng.normal(0, 4, boxes.shape)
            found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
            guessed = np.where(rng.random(n) < 0.7, labels, rng.integers(0, k, n))
            metrics.update(
                [
                    Prediction(
                        boxes=torch.tensor(found, dtype=torch.float32),
                        scores=torch.tensor(rng.random(n), dtype=torch.float32),
                        labels=torch.tensor(guessed),
                    )
                ],
                [
                    Target(
                        boxes=torch.tensor(boxes[gt], dtype=torch.float32),
                        labels=torch.tensor(labels[gt]),
                    )
                ],
                [ImageInfo(i, f"{i}.jpg", f"{i}.jpg", 500, 500)],
            )
        return metrics.details() | {"metrics": metrics}

    return make


@pytest.fixture
def classification_details() -> Callable[..., dict[str, Any]]:
    def make(names: tuple[str, ...], images: int = 200, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        k = len(names)
        metrics = metrics_for("classification", Classes.from_names(names))
        probs = torch.softmax(2 * torch.randn(images, k, generator=generator), dim=1)
        labels = torch.multinomial(probs, 1, generator=generator)[:, 0]
        metrics.update(
            [Prediction(probs=p) for p in probs],
            [Target(label=label) for label in labels],
            [ImageInfo(i, f"{i}.jpg", f"{i}.jpg", 8, 8) for i in range(images)],
        )
        return metrics.details() | {"metrics": metrics}

    return make


@pytest.fixture
def make_table() -> Callable[..., Table]:
    def make(
        names: tuple[str, ...], images: int = 40, boxes: bool = True, labels: bool = False
    ) -> Table:
        rng = np.random.default_rng(3)
        counts = rng.integers(0, 9, images) if boxes else np.zeros(images, np.int64)
        m = int(counts.sum())
        corner = rng.uniform(0, 200, (m, 2))
        return Table(
            root="/nowhere",
            classes=Classes.from_names(names),
            files=Strings(f"{i}.jpg" for i in range(images)),
            sizes=np.array([[480, 640], [300, 400]], np.int32)[rng.integers(0, 2, images)],
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=np.concatenate([corner, corner + rng.uniform(5, 100, (m, 2))], axis=1),
            labels=rng.integers(0, len(names), m),
            flags=(rng.random(m) < 0.1).astype(np.uint8),
            areas=np.full(m, np.nan),
            lines=np.zeros(m, np.int32),
            image_labels=rng.integers(0, len(names), images) if labels else None,
        )

    return make


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure drawn during the test, to look at titles, lines and ticks."""
    drawn: list[Figure] = []

    class Remembered(Figure):
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            drawn.append(self)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr("cvtrain.report.figure.Figure", Remembered)
    return drawn


@pytest.fixture
def look() -> Callable[[Path], SimpleNamespace]:
    """What a PNG shows: its size, the share of pixels that are not white, its colors."""

    def inspect(path: Path) -> SimpleNamespace:
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        return SimpleNamespace(
            height=pixels.shape[0],
            width=pixels.shape[1],
            ink=float((pixels < 250).any(axis=2).mean()),
            colors=len(np.unique(pixels.reshape(-1, 3), axis=0)),
            pixels=pixels,
        )

    return inspect
