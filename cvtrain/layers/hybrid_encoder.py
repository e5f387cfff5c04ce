"""RT-DETR's encoder: attention within the coarsest map, convolutions between the maps.

Paper: Zhao et al. 2023, "DETRs Beat YOLOs on Real-time Object Detection", arXiv 2304.08069,
section 4.2. Attention over the cells of all maps is what makes Deformable DETR slow; here one
transformer layer sees the map of stride 32 alone (AIFI, attention-based intra-scale feature
interaction), and the maps meet in a pyramid down and up again (CCFF, CNN-based cross-scale feature
fusion; CCFM in its first version), which is PAFPN (layers/pafpn.py) with another block.

The fusion block: the two maps joined as channels go through two 1 x 1 convolutions; one of the
results through N RepBlocks, and both are summed. A RepBlock is RepVGG's (Ding et al. 2021, arXiv
2101.03697) without its identity: a 3 x 3 and a 1 x 1 convolution beside each other, each with a
batch norm, which are one 3 x 3 convolution once the statistics are fixed. It is made where the
network is in eval mode, at each forward: that costs less than a thousandth of the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.attention import EncoderLayer, sine_positions
from cvtrain.layers.conv import ConvBlock
from cvtrain.layers.csp import SCALES, conv
from cvtrain.layers.fpn import nearest_maps, resized
from cvtrain.layers.pafpn import PAFPN

STRIDES = (8, 16, 32)
"""Of the maps, pixels."""


class RepBlock(nn.Module):
    """3 x 3 beside 1 x 1, summed, then SiLU; one convolution in eval mode. ``(B, C, H, W)`` kept.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = ConvBlock(channels, channels, 3, act=nn.Identity())
        self.narrow = ConvBlock(channels, channels, 1, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.silu(self.wide(x) + self.narrow(x))
        kernel, bias = _plain(self.wide)
        point, shift = _plain(self.narrow)
        return F.silu(F.conv2d(x, kernel + F.pad(point, [1] * 4), bias + shift, padding=1))


def _plain(block: ConvBlock) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution that does what this and its batch norm do in eval mode."""
    norm = block.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return block.conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Fusion(nn.Module):
    """The fusion block: ``(B, inputs, H, W)`` -> ``(B, outputs, H, W)``.

    Args:
        inputs: channels of the two maps together.
        outputs: channels.
        blocks: RepBlocks.
        width: channels inside, in shares of ``outputs``; a 1 x 1 convolution leads back.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inside = int(outputs * width)
        if blocks < 0 or inside < 1:
            raise ValueError(f"fusion_blocks={blocks} from 0, fusion_width={width} above 0")
        self.through = conv(inputs, inside)
        self.past = conv(inputs, inside)
        self.blocks = nn.Sequential(*(RepBlock(inside) for _ in range(blocks)))
        self.join = nn.Identity() if inside == outputs else conv(inside, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.blocks(self.through(x)) + self.past(x))


class HybridEncoder(nn.Module):
    """Backbone maps -> three maps of ``channels`` channels at strides 8, 16 and 32.

    A backbone without a map of one of these strides lends the nearest, resized, see layers/fpn.py.

    Args:
        in_channels: channels of the backbone's maps.
        in_strides: their strides.
        channels: of the three maps.
        heads: of the attention.
        hidden: units of its connected layers.
        blocks: RepBlocks of a fusion block.
        width: of a fusion block, in shares of ``channels``.

    Attributes:
        sources: the backbone's maps that are taken.

    Raises:
        ValueError: strides that the backbone is too far from, or a number out of range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        channels: int = 256,
        heads: int = 8,
        hidden: int = 1024,
        blocks: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        sine_positions(1, 1, channels, torch.device("cpu"))  # says so where the channels won't do
        self.channels = channels
        self.sources = nearest_maps(in_strides, STRIDES)
        self.project = nn.ModuleList(
            ConvBlock(in_channels[i], channels, 1, act=nn.Identity()) for i in self.sources
        )
        self.within = EncoderLayer(channels, heads, hidden)
        fuse = partial(Fusion, blocks=blocks, width=width)
        self.across = PAFPN([channels] * 3, STRIDES, [channels] * 3, SCALES["l"], block=fuse)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """The backbone's maps of images of (height, width) pixels -> three maps.

        Map i is ``(B, channels, ceil(H / strides[i]), ceil(W / strides[i]))``.
        """
        height, width = image_size
        taken = []
        for source, stride, project in zip(self.sources, STRIDES, self.project, strict=True):
            size = (-(-height // stride), -(-width // stride))
            taken.append(project(resized(maps[source], size)))
        top = taken[-1]
        rows, columns = top.shape[-2:]
        position = sine_positions(rows, columns, self.channels, top.device)  # (h * w, C)
        cells = self.within(top.flatten(2).transpose(1, 2), position)  # (B, h * w, C)
        taken[-1] = cells.transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, h, w)
        return self.across(taken, image_size)
