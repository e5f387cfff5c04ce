"""A trainer of one-parameter models: fast enough to run whole fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvtrain.callbacks.console import LOG
from cvtrain.data.table import Classes
from cvtrain.engine.checkpoint import AtomicCheckpointIO
from cvtrain.metrics import metrics_for
from cvtrain.models.base import Model
from cvtrain.structures import Batch, ImageInfo, Prediction, Target
from cvtrain.tasks.classification import ClassificationTask


class TinyClassifier(Model):
    """A linear layer on mean colors, with a batch norm for its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images.float().mean((2, 3)) / 255))

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        labels = torch.stack([t.label for t in targets])
        lost = torch.tensor(float(len(targets)))
        return {"class": nn.functional.cross_entropy(outputs, labels), "num_lost_objects": lost}

    def decode(self, outputs: Tensor) -> list[Prediction]:
        return [Prediction(probs=p) for p in outputs.softmax(1).detach()]


def make_batches(count: int, truths: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(count)
    batches = []
    for n in range(count):
        images = torch.randint(0, 255, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
        targets = [Target(label=torch.tensor(k % 2)) for k in range(4)]
        infos = [ImageInfo(4 * n + k, f"{n}_{k}.png", f"{n}_{k}.png", 8, 8) for k in range(4)]
        batches.append(Batch(images, targets, infos, targets if truths else None))
    return batches


@pytest.fixture
def make_task() -> Callable[..., ClassificationTask]:
    def make(mode: str = "max", monitor: str = "accuracy", lr: float = 0.1) -> ClassificationTask:
        torch.manual_seed(0)
        classes = Classes.from_names(["even", "odd"])
        return ClassificationTask(
            TinyClassifier(),
            classes,
            metrics_for("classification", classes),
            {"name": "sgd", "lr": lr, "momentum": 0.9},
            {"name": "none"},
            monitor,
            mode,
            "classification",
        )

    return make


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def run(
        task: ClassificationTask,
        *callbacks: pl.Callback,
        epochs: int = 2,
        loggers: list | None = None,
        ckpt_path: str | None = None,
        **options,
    ) -> pl.Trainer:
        checkpointing = any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks)
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, callbacks=list(callbacks),
            logger=loggers or False, enable_checkpointing=checkpointing,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            inference_mode=False, default_root_dir=tmp_path, plugins=[AtomicCheckpointIO()],
            enable_autolog_hparams=False, **options,
        )  # fmt: skip
        train = DataLoader(make_batches(3, truths=False), batch_size=None)
        val = DataLoader(make_batches(2, truths=True), batch_size=None)
        trainer.fit(task, train, val, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def header() -> dict:
    return {
        "version": "0",
        "config": {"a": 1},
        "classes": {"names": ["even", "odd"], "ids": [0, 1]},
    }


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What a run says."""
    old = LOG.propagate, LOG.level
    LOG.propagate = True
    LOG.setLevel("INFO")
    yield lambda: caplog.text
    LOG.propagate = old[0]
    LOG.setLevel(old[1])
