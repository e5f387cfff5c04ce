"""The convolution block of darknet: convolution, bias or batch norm, leaky ReLU."""

from __future__ import annotations

from torch import Tensor, nn

LEAK = 0.1
"""Slope of the leaky ReLU below zero (Redmon et al. 2015, equation 2)."""


class ConvBlock(nn.Module):
    """A "same"-padded convolution, batch norm where asked for, and a leaky ReLU of slope 0.1.

    Weights start as He et al. 2015 (arXiv 1502.01852) for this slope, biases at 0.

    Args:
        in_channels, out_channels: channels.
        kernel: side of the square kernel, odd, pixels.
        stride: pixels.
        batch_norm: batch normalisation in place of the bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=not batch_norm
        )
        self.norm = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.act = nn.LeakyReLU(LEAK, inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, a=LEAK, nonlinearity="leaky_relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` -> ``(B, out, ceil(H / stride), ceil(W / stride))``."""
        return self.act(self.norm(self.conv(x)))
