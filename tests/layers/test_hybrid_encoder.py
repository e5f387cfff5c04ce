"""RT-DETR's encoder: levels of the right size, all seen by all; RepBlocks that become one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cvtrain.layers.hybrid_encoder import Fusion, HybridEncoder, RepBlock


def maps_of(channels: list[int], strides: list[int], size: tuple[int, int]) -> list[torch.Tensor]:
    sides = [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    return [
        torch.randn(2, c, h, w, requires_grad=True)
        for c, (h, w) in zip(channels, sides, strict=True)
    ]


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (1, 70), (32, 32)])
@pytest.mark.parametrize(
    ("channels", "strides"),
    [([4, 6, 8, 10, 12], [2, 4, 8, 16, 32]), ([6, 8], [8, 16]), ([16], [16])],
)
def test_maps_over_any_backbone(
    channels: list[int], strides: list[int], size: tuple[int, int]
) -> None:
    encoder = HybridEncoder(channels, strides, 16, heads=2, hidden=16, blocks=1).eval()
    out = encoder(maps_of(channels, strides, size), size)
    assert [tuple(x.shape[1:]) for x in out] == [
        (16, -(-size[0] // s), -(-size[1] // s)) for s in (8, 16, 32)
    ]


def test_every_map_sees_every_map() -> None:
    encoder = HybridEncoder([4, 6, 8], [8, 16, 32], 16, heads=2, hidden=16, blocks=1).eval()
    maps = maps_of([4, 6, 8], [8, 16, 32], (64, 64))
    for level in encoder(maps, (64, 64)):
        gradients = torch.autograd.grad(level.square().sum(), maps, retain_graph=True)
        assert all(bool(g.any()) for g in gradients)


def test_attention_is_within_the_coarsest_map() -> None:
    encoder = HybridEncoder([4, 6, 8], [8, 16, 32], 16, heads=2, hidden=16, blocks=1)
    seen = []
    encoder.within.register_forward_hook(lambda _, given, out: seen.append(out.shape))
    encoder(maps_of([4, 6, 8], [8, 16, 32], (64, 96)), (64, 96))
    assert seen == [(2, 2 * 3, 16)]  # stride 32 alone: 6 cells


def test_two_convolutions_become_one() -> None:
    block = RepBlock(6)
    for _ in range(5):
        block(torch.randn(4, 6, 7, 5) * 2 + 1)  # the norms' statistics move
    for norm in (block.wide.norm, block.narrow.norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    block.eval()
    x = torch.randn(2, 6, 7, 5)
    torch.testing.assert_close(block(x), F.silu(block.wide(x) + block.narrow(x)))


def test_a_fusion_block_adds_its_two_paths() -> None:
    block = Fusion(8, 6, blocks=2, width=1.0).eval()
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), block.blocks(block.through(x)) + block.past(x))
    assert [len(Fusion(8, 6, n).blocks) for n in (0, 3)] == [0, 3]
    narrow = Fusion(8, 6, width=0.5)
    assert narrow.through.conv.out_channels == 3
    assert narrow(x).shape == (2, 6, 5, 5)


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Fusion(8, 6, width=0.01)
    with pytest.raises(ValueError, match="channels=6 must be a multiple of 4"):
        HybridEncoder([4], [16], 6, heads=2)
    with pytest.raises(ValueError, match="too far from 32"):
        HybridEncoder([4], [4], 16, heads=2)
