"""The pyramid over ResNet-like maps is torchvision's; any other backbone gets exact strides too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from cvtrain.layers.fpn import FPN, nearest_maps, resized
from cvtrain.layers.pad import conv_down, pad_to_multiple

STRIDES, CHANNELS = [2, 4, 8, 16, 32], [4, 6, 8, 10, 12]


def maps_of(strides: list[int], channels: list[int], size: tuple[int, int]) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(2, c, -(-size[0] // s), -(-size[1] // s), generator=generator)
        for s, c in zip(strides, channels, strict=True)
    ]


@pytest.mark.parametrize("extra", ["map", "pyramid"])
def test_equal_to_torchvision_with_p6_and_p7(extra: Any) -> None:
    fpn = FPN(CHANNELS, STRIDES, channels=16, extra=extra)
    assert fpn.strides == [8, 16, 32, 64, 128]
    blocks = LastLevelP6P7(12 if extra == "map" else 16, 16)
    theirs = FeaturePyramidNetwork(CHANNELS[2:], 16, blocks)
    theirs.load_state_dict(
        {
            **fpn.pyramid.state_dict(),
            **{f"extra_blocks.p6.{k}": v for k, v in fpn.convs[0].state_dict().items()},
            **{f"extra_blocks.p7.{k}": v for k, v in fpn.convs[1].state_dict().items()},
        }
    )
    size = (96, 130)
    maps = maps_of(STRIDES, CHANNELS, size)
    expected = theirs({str(i): m for i, m in enumerate(maps[2:])})
    for a, b in zip(fpn(maps, size), expected.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_pooled_level_of_the_paper() -> None:
    fpn = FPN(CHANNELS, STRIDES, channels=16, finest=4, laterals=4, levels=5, extra="pool")
    assert fpn.strides == [4, 8, 16, 32, 64]
    theirs = FeaturePyramidNetwork(CHANNELS[1:], 16, LastLevelMaxPool())
    theirs.load_state_dict(fpn.pyramid.state_dict())
    maps = maps_of(STRIDES, CHANNELS, (64, 64))
    expected = theirs({str(i): m for i, m in enumerate(maps[1:])})
    for a, b in zip(fpn(maps, (64, 64)), expected.values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(64, 64), (50, 131), (1, 500), (7, 7)])
@pytest.mark.parametrize("extra", ["map", "pyramid", "pool"])
@pytest.mark.parametrize(
    ("strides", "channels"),
    [
        ([16], [9]),
        ([2, 6, 12], [3, 5, 7]),
        ([2, 4, 8, 16], [2, 3, 4, 5]),
        ([16, 32, 64], [2, 3, 4]),
    ],
)
def test_any_backbone_gives_levels_of_exact_strides(
    strides: list[int], channels: list[int], extra: Any, size: tuple[int, int]
) -> None:
    fpn = FPN(channels, strides, channels=8, extra=extra)
    out = fpn(maps_of(strides, channels, size), size)
    assert len(out) == len(fpn.strides) == 5
    for x, stride in zip(out, fpn.strides, strict=True):
        assert x.shape == (2, 8, -(-size[0] // stride), -(-size[1] // stride))
    if size == (64, 64):
        torch.cat([x.flatten() for x in out]).square().sum().backward()
        assert all(p.grad is not None for p in fpn.parameters())


def test_the_coarsest_map_is_always_used() -> None:
    assert FPN([1, 2, 3, 4], [8, 16, 32, 64], channels=8).sources == [0, 1, 2, 3]
    assert FPN(CHANNELS, STRIDES, channels=8).sources == [2, 3, 4]


def test_maps_are_chosen_by_stride() -> None:
    assert nearest_maps([4, 8, 16, 32], [8, 16, 32]) == [1, 2, 3]
    assert nearest_maps([4, 16], [8]) == [1]
    assert nearest_maps([2, 6, 12], [8, 16, 32]) == [1, 2, 2]
    with pytest.raises(ValueError, match="has them at 64, which is too far from 8: choose another"):
        nearest_maps([64], [8])


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="extra=up"):
        FPN(CHANNELS, STRIDES, extra="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="laterals=6 levels=5"):
        FPN(CHANNELS, STRIDES, laterals=6)


def test_resizing_by_hand() -> None:
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert resized(x, (2, 2)) is x
    assert resized(x, (1, 1)).item() == 4
    assert resized(x, (4, 4)).shape == (1, 1, 4, 4)
    assert resized(x, (1, 4)).shape == (1, 1, 1, 4)


def test_padding_by_hand() -> None:
    x = torch.ones(1, 1, 3, 4)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert padded[..., 3, :].sum() == 0
    assert pad_to_multiple(padded, 4) is padded


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (4, 5)])
def test_a_strided_convolution_is_the_plain_one_and_finite_in_bfloat16(
    size: tuple[int, int],
) -> None:
    conv = torch.nn.Conv2d(64, 64, 3, stride=2, padding=1)
    x = torch.randn(2, 64, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv_down(conv, x), conv(x))
    for _ in range(20):
        freed = [torch.full((40_000,), torch.nan) for _ in range(8)]
        del freed  # what a kernel that reads uninitialized memory may find there
        conv.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = conv_down(conv, x)
        out.float().sum().backward()
        assert torch.isfinite(conv.weight.grad).all()
