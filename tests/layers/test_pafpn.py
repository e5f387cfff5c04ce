"""PAFPN: levels of the right size over any backbone, every level seen by every other."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.csp import SCALES, scale_of
from cvtrain.layers.pafpn import PAFPN


def maps_of(channels: list[int], strides: list[int], size: tuple[int, int]) -> list[torch.Tensor]:
    sides = [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    return [
        torch.randn(1, c, h, w, requires_grad=True)
        for c, (h, w) in zip(channels, sides, strict=True)
    ]


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (1, 70), (32, 32)])
@pytest.mark.parametrize(
    ("channels", "strides"),
    [([4, 6, 8, 10, 12], [2, 4, 8, 16, 32]), ([6, 8], [8, 16]), ([16], [16])],
)
def test_levels_over_any_backbone(
    channels: list[int], strides: list[int], size: tuple[int, int]
) -> None:
    neck = PAFPN(channels, strides, [8, 16, 24], SCALES["s"]).eval()
    assert neck.strides == [8, 16, 32]
    out = neck(maps_of(channels, strides, size), size)
    want = [(8 * k, -(-size[0] // s), -(-size[1] // s)) for k, s in ((1, 8), (2, 16), (3, 32))]
    assert [tuple(x.shape[1:]) for x in out] == want


def test_every_level_sees_every_map() -> None:
    neck = PAFPN([4, 6, 8], [8, 16, 32], [8, 16, 24], SCALES["nano"]).eval()
    maps = maps_of([4, 6, 8], [8, 16, 32], (64, 64))
    for level in neck(maps, (64, 64)):
        gradients = torch.autograd.grad(level.square().sum(), maps, retain_graph=True)
        assert all(bool(g.any()) for g in gradients)


def test_a_backbone_too_far_away_is_refused() -> None:
    with pytest.raises(ValueError, match="too far from 32"):
        PAFPN([4], [4], [8, 16, 24], SCALES["s"])


@pytest.mark.parametrize(("size", "units"), [("nano", 1), ("s", 1), ("m", 2), ("l", 3)])
def test_units_follow_the_size(size: str, units: int) -> None:
    neck = PAFPN([4, 6, 8], [8, 16, 32], [8, 16, 24], scale_of(size))
    assert [len(block.units) for block in [*neck.down, *neck.up]] == [units] * 4
