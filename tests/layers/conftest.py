"""Random boxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def random_boxes() -> Callable[..., Tensor]:
    """``(count, 4)`` xyxy boxes inside ``size`` pixels, sides of 1 to half of it."""

    def draw(count: int, size: float = 100.0, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        side = torch.rand(count, 2, generator=generator) * (size / 2 - 1) + 1
        low = torch.rand(count, 2, generator=generator) * (size - side)
        return torch.cat([low, low + side], dim=1)

    return draw
