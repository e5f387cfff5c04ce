"""U-Net as published: 572 -> 388, 31.0 million parameters, borders mirrored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvtrain.layers.pad import mirror
from cvtrain.losses.boundary_weighted import BoundaryWeighted
from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.models.segmentation.unet import BORDER, UNet, tile_size


def make(**keywords) -> UNet:
    torch.manual_seed(0)
    return UNet(CrossEntropy(), **{"num_classes": 2, "width": 2, **keywords}).eval()


def test_the_papers_numbers() -> None:
    with torch.device("meta"):
        model = UNet(CrossEntropy(), 2, in_channels=1)
        assert model.tile(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    assert sum(p.numel() for p in model.parameters()) == 31_030_658  # 31.0 M
    widths = [block[0].out_channels for block in model.down]
    assert widths == [64, 128, 256, 512, 1024]
    layers = [
        m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
    ]
    assert len(layers) == 23  # the paper's count
    assert tile_size(388) == (572, 388)
    assert tile_size(389) == (588, 404)
    assert tile_size(1) == (188, 4)


@pytest.mark.parametrize("size", [(64, 64), (1, 300), (4, 5), (17, 130)])
def test_the_output_has_the_size_of_any_image(size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert make()(images).shape == (2, 2, *size)


def test_an_inner_tile_says_what_the_whole_image_says() -> None:
    """No convolution is padded: a pixel's logits depend on 92 pixels around it, and no more."""
    model = make()
    x = torch.randn(1, 3, 268, 268)
    with torch.no_grad():
        whole = model.tile(x)  # 84 x 84
        part = model.tile(x[..., 16:204, 48:236])  # 188 -> 4; cut at whole pooled pixels
    torch.testing.assert_close(part, whole[..., 16:20, 48:52], rtol=1e-4, atol=1e-5)


def test_mirrored_borders_as_numpy_has_them() -> None:
    x = torch.randn(2, 3, 5, 4)
    for around in ((2, 1, 3, 0), (11, 9, 7, 13), (0, 0, 0, 0)):
        left, right, top, bottom = around
        want = np.pad(x.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="reflect")
        assert np.array_equal(mirror(x, around).numpy(), want)
    assert torch.equal(mirror(x[..., :1], (2, 3, 0, 0)), x[..., :1].expand(-1, -1, -1, 6))


def test_what_it_computes() -> None:
    """The image in the middle of its mirror images, through the network, cut out again."""
    model = make()
    images = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    with torch.no_grad():
        pixels = model.normalize(images).numpy()
        x = np.pad(pixels, ((0, 0), (0, 0), (92, 92), (92, 98)), mode="reflect")
        want = model.tile(torch.from_numpy(x))  # 204 x 220 -> 20 x 36
        got = model(images)
    assert BORDER == 92
    torch.testing.assert_close(got, want[..., :20, :30], rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        make(width=0)
    with pytest.raises(ValueError, match=r"loss.background=2: the 2 classes count from 0"):
        UNet(BoundaryWeighted(background=2), 2)
