"""Small classifiers and detectors that start from a file of weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.callbacks import console as consoles
from cvtrain.cli import args
from cvtrain.cli.main import configuration
from cvtrain.config.groups import ConfDirs
from cvtrain.models.backbones.darknet import DarknetTiny

WIDTHS, BLOCKS = [4, 8, 16], [1, 1, 1]
COLORS = {"blue": (40, 60, 240), "green": (30, 220, 40), "red": (230, 30, 30)}
WORDS = (
    "task=classification",
    "backbone=darknet_tiny",
    "backbone.widths=[4,8,16]",
    "backbone.blocks=[1,1,1]",
    "backbone.narrow=null",
    "data=folder",
    "data.image_size=32",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "callbacks=none",
)
"""A classifier of a few thousand weights."""

DETECTOR = (
    "task=detection",
    "model=yolo",
    "model.hidden=32",
    "data=shapes",
    "data.num_train=8",
    "data.num_val=3",
    "data.image_size=64",
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test's own stdout and caches; the plots at the end of runs are left out."""
    for name in ("curves.plot_curves", "labels.plot_labels", "plots.plot_details"):
        monkeypatch.setattr(f"cvtrain.report.{name}", lambda *_, **__: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    consoles._CONSOLE = None
    yield
    consoles._CONSOLE = None


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the backbone, with statistics that a fresh one does not have."""
    torch.manual_seed(5)
    backbone = DarknetTiny(WIDTHS, BLOCKS, narrow=None)
    for name, buffer in backbone.named_buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer) * (0.1 if name.endswith("mean") else 0.5))
    path = tmp_path_factory.mktemp("weights") / "backbone.pt"
    torch.save(backbone.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 15 training and 6 validation images of three classes: noise with a color."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root)
    return root


def write_photos(root: Path, count: int = 5) -> None:
    generator = np.random.default_rng(3)
    for split, number in (("train", count), ("val", 2)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                image = generator.integers(0, 160, (36, 40, 3), np.uint8)
                image[8:24, 6:30] = np.array(color) * generator.uniform(0.5, 1)
                Image.fromarray(image).save(folder / f"{i}.png")
                os.utime(folder / f"{i}.png", (1_000_000_000, 1_000_000_000))


@pytest.fixture
def compose(tmp_path: Path, weights: Path, photos: Path) -> Callable[..., dict[str, Any]]:
    """The configuration of a small classifier with further words; ``run_dir`` below tmp_path."""

    def make(*words: str, run: str = "run", scratch: bool = False) -> dict[str, Any]:
        base = [f"data.root={photos}", f"run_dir={tmp_path / run}", *WORDS]
        if not scratch:
            base.append(f"backbone.weights={weights}")
        chosen = {word.partition("=")[0].lstrip("~+") for word in words}
        if any(word in ("transfer.head=svm", "transfer.head=knn") for word in words) or (
            "transfer.head=logistic_regression" in words
        ):
            chosen.add("trainer.max_epochs")
        if "data=shapes" in words:
            chosen |= {"data", "data.root"}
        base = [word for word in base if word.partition("=")[0] not in chosen]
        return configuration(args.parse([*base, *words]), ConfDirs([]))

    return make


@pytest.fixture
def state(tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """The weights in a run's checkpoint."""

    def load(run: str = "run", name: str = "last", key: str = "state_dict") -> Any:
        path = tmp_path / run / "checkpoints" / f"{name}.ckpt"
        return torch.load(path, weights_only=True)[key]

    return load


@pytest.fixture
def command() -> Callable[..., dict[str, Any]]:
    """The configuration of any command."""
    return lambda *words: configuration(args.parse(list(words)), ConfDirs([]))
