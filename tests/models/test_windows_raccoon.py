"""Sliding window, OverFeat, R-FCN and Light-Head R-CNN overfit 16 photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SIZE = 128


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "lr", "steps"),
    [
        (["model=sliding_window"], 2e-3, 40),
        (["model=rfcn", "model.channels=256"], 1e-3, 120),
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
def test_16_photographs_can_be_learned_by_heart(
    words: list[str], lr: float, steps: int, real_data: Path, learn_photographs: Any
) -> None:
    folder = real_data / "raccoon"
    assert learn_photographs(folder, *words, size=SIZE, steps=steps, lr=lr, one_cycle=True) >= 0.9
