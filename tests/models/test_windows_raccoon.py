"""Sliding window, OverFeat, R-FCN and Light-Head R-CNN learn 16 photographs by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.metrics import metrics_for
from cvtrain.models.base import total_loss
from cvtrain.types import ImageInfo
from tests.models.test_yolo import real_batch

SIZE = 128
EPOCHS = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "lr", "steps"),
    [
        (["model=sliding_window"], 2e-3, 40),
        (["model=rfcn", "model.channels=256"], 1e-3, 80),
        (["model=light_head_rcnn"], 1e-3, 60),
        (
            [
                "model=overfeat",
                "backbone=darknet_tiny",
                "model.hidden=[256]",
                "model.regressor_hidden=[256]",
            ],
            2e-3,
            240,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_16_photographs_can_be_learnt_by_heart(
    words: list[str], lr: float, steps: int, real_data: Path, build_model: Any
) -> None:
    images, targets = real_batch(real_data / "raccoon", 16, SIZE)
    model = build_model(
        "task=detection", *words, "data=shapes", f"data.image_size={SIZE}", num_classes=1
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    metrics = metrics_for("detection", Classes.from_names(["raccoon"]))
    infos = [ImageInfo(i, f"{i}", f"{i}", SIZE, SIZE) for i in range(len(images))]
    value = 0.0
    for step in range(1, steps + 1):
        model.begin_epoch((step - 1) * EPOCHS // steps, EPOCHS)
        loss = total_loss(model.loss(images, targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step >= steps // 2 and step % (steps // 8) == 0:
            metrics.reset()
            metrics.update(model.predict(images), targets, infos)
            value = metrics.compute()["mAP50"]
            if value >= 0.95:
                break
    assert value >= 0.9
