"""Heads of dense detectors: 3 x 3 convolutions that every level of a pyramid shares."""

from __future__ import annotations

import math

from torch import Tensor, nn

GROUPS = 32
"""Groups of the group norm (Wu & He 2018, arXiv 1803.08494), fewer where channels are."""
PER_GROUP = 4
"""Channels of a group at least: a group of one has no variance on a map of one pixel."""


def tower(channels: int, convs: int, group_norm: bool = False) -> nn.Sequential:
    """``convs`` times convolution, group norm where asked for, ReLU; ``(B, channels, H, W)`` kept.

    With a norm, weights start as RetinaNet's: a Gaussian of 0.01. Without, each convolution would
    leave a third of the signal at 256 channels and a sixth at 64, and the first hundreds of steps
    would go into growing it again: they start as He et al. 2015 (arXiv 1502.01852). Biases 0.

    Raises:
        ValueError: channels that do not divide into the norm's groups.
    """
    if group_norm and channels % PER_GROUP:
        raise ValueError(f"channels={channels} must be a multiple of {PER_GROUP} (group norm)")
    layers: list[nn.Module] = []
    for _ in range(convs):
        conv = predictor(channels, channels)
        layers.append(conv)
        if not group_norm:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        else:
            layers.append(nn.GroupNorm(math.gcd(GROUPS, channels // PER_GROUP), channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def predictor(channels: int, outputs: int, bias: float = 0.0) -> nn.Conv2d:
    """A 3 x 3 convolution of small random weights, its bias given."""
    conv = nn.Conv2d(channels, outputs, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(_bias(conv), bias)
    return conv


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def prior_bias(probability: float) -> float:
    """The logit at which a sigmoid gives ``probability``, 0..1: rare objects from the start.

    Raises:
        ValueError: no probability between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"prior={probability} must be above 0 and below 1")
    return math.log(probability / (1 - probability))
