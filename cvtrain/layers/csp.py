"""Cross-stage partial blocks: the parts of CSPDarknet and of YOLOX's neck.

Papers: Wang et al. 2019, "CSPNet", arXiv 1911.11929; Redmon & Farhadi 2018, "YOLOv3", arXiv
1804.02767 (the residual unit); He et al. 2014, arXiv 1406.4729 (spatial pyramid pooling); Howard et
al. 2017, arXiv 1704.04861 (depthwise separable convolutions). Every convolution is followed by
batch norm and SiLU (Elfwing et al. 2017, arXiv 1702.03118).

Weights start from a Gaussian of one width, ``STD``, however few inputs a convolution has. The batch
norm makes what it says independent of their scale, but not how fast they turn: Adam moves each
weight by the learning rate at most, so that what starts ten times as large turns ten times as
slowly (van Laarhoven 2017, arXiv 1706.05350). He's width is 0.47 for the 9 inputs of a depthwise
convolution and 0.18 for 64: narrow networks would hardly leave their start in a short run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock

STD = 0.02
"""Of the Gaussian that weights start from: He's for 4,608 inputs, 3 x 3 of 512 channels."""
Size = Literal["nano", "tiny", "s", "m", "l"]


@dataclass(frozen=True)
class Scale:
    """What a size of YOLOX stands for.

    Attributes:
        depth: units in a block, times those of the large model.
        width: channels, times those of the large model.
        depthwise: 3 x 3 convolutions are depthwise separable.
    """

    depth: float
    width: float
    depthwise: bool = False

    def units(self, count: int) -> int:
        """Units of a block that has ``count`` in the large model, at least 1."""
        return max(1, round(count * self.depth))

    def channels(self, count: int) -> int:
        """Channels where the large model has ``count``."""
        return int(count * self.width)


SCALES: dict[str, Scale] = {
    "nano": Scale(1 / 3, 0.25, depthwise=True),
    "tiny": Scale(1 / 3, 0.375),
    "s": Scale(1 / 3, 0.5),
    "m": Scale(2 / 3, 0.75),
    "l": Scale(1.0, 1.0),
}


def scale_of(size: str) -> Scale:
    """The scale of a size by name.

    Raises:
        ValueError: no such size.
    """
    if size not in SCALES:
        raise ValueError(f"size={size}: expected {' | '.join(get_args(Size))}")
    return SCALES[size]


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> ConvBlock:
    """Convolution, batch norm, SiLU."""
    return ConvBlock(inputs, outputs, kernel, stride, act=nn.SiLU(inplace=True), std=STD)


def conv3(inputs: int, outputs: int, stride: int = 1, depthwise: bool = False) -> nn.Module:
    """A 3 x 3 ``conv``, or one of each channel by itself and a 1 x 1 ``conv`` over them."""
    if not depthwise:
        return conv(inputs, outputs, 3, stride)
    act = nn.SiLU(inplace=True)
    each = ConvBlock(inputs, inputs, 3, stride, groups=inputs, act=act, std=STD)
    return nn.Sequential(each, conv(inputs, outputs))


class Unit(nn.Module):
    """1 x 1, then 3 x 3, and the input added where ``shortcut``; ``(B, channels, H, W)`` kept."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.narrow = conv(channels, channels)
        self.wide = conv3(channels, channels, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.wide(self.narrow(x))
        return out + x if self.shortcut else out


class CSP(nn.Module):
    """Half of the channels go through ``count`` units, half past them; ``(B, outputs, H, W)``.

    Args:
        inputs: channels.
        outputs: channels.
        count: units.
        shortcut: whether the units are residual.
        depthwise: whether their 3 x 3 convolutions are depthwise separable.
    """

    def __init__(
        self, inputs: int, outputs: int, count: int, shortcut: bool = True, depthwise: bool = False
    ) -> None:
        super().__init__()
        width = outputs // 2
        self.through = conv(inputs, width)
        self.past = conv(inputs, width)
        self.units = nn.Sequential(*(Unit(width, shortcut, depthwise) for _ in range(count)))
        self.join = conv(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.units(self.through(x)), self.past(x)], dim=1)
        return self.join(both)


class SPP(nn.Module):
    """A map beside its maxima over 5 x 5, 9 x 9 and 13 x 13; ``(B, outputs, H, W)``.

    A pooling of 5 on one of 5 is one of 9: the three are made one of the other, which is faster.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = conv(inputs, inputs // 2)
        self.join = conv(inputs // 2 * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.narrow(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, stride=1, padding=2))
        return self.join(torch.cat(pooled, dim=1))  # (B, 4 * inputs / 2, H, W)
