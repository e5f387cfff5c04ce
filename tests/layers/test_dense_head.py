"""Towers of dense detectors: how their weights start."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.dense_head import tower


@pytest.mark.parametrize("channels", [64, 256])
def test_a_tower_without_norms_keeps_the_signal(channels: int) -> None:
    """A Gaussian of 0.01 would leave a thousandth of it at 64 channels."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, 12, 12).relu()
    with torch.no_grad():
        y = tower(channels, 4)(x)
    assert 0.5 < float(y.square().mean() / x.square().mean()) < 2


def test_a_tower_with_norms_starts_small() -> None:
    torch.manual_seed(0)
    convs = [m for m in tower(64, 2, group_norm=True) if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 2
    for conv in convs:
        assert float(conv.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
