from __future__ import annotations

import pytest
import torch

from cvtrain.layers.conv import ConvBlock


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 9), (3, 2, 5), (7, 2, 5), (1, 1, 9)])
def test_same_padding(kernel: int, stride: int, side: int) -> None:
    block = ConvBlock(3, 5, kernel, stride)
    assert block(torch.zeros(2, 3, 9, 9)).shape == (2, 5, side, side)


def test_bias_or_batch_norm_but_not_both() -> None:
    assert {n for n, _ in ConvBlock(2, 3).named_parameters()} == {
        "conv.weight",
        "norm.weight",
        "norm.bias",
    }
    plain = ConvBlock(2, 3, batch_norm=False)
    assert {n for n, _ in plain.named_parameters()} == {"conv.weight", "conv.bias"}


def test_leaks_a_tenth() -> None:
    block = ConvBlock(1, 1, 1, batch_norm=False)
    torch.nn.init.ones_(block.conv.weight)
    assert block(torch.tensor([[[[-2.0]], [[3.0]]]]).view(2, 1, 1, 1)).flatten().tolist() == [
        pytest.approx(-0.2),
        3.0,
    ]


def test_starts_with_about_unit_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 16)
    with torch.no_grad():
        y = ConvBlock(64, 64, batch_norm=False)(x)
    assert 0.8 < float(y.square().mean()) < 1.25


def test_the_width_of_the_start_can_be_given() -> None:
    torch.manual_seed(0)
    block = ConvBlock(64, 64, 1, std=0.02)
    assert float(block.conv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
