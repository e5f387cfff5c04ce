"""The convolution block: convolution, bias or batch norm, leaky ReLU (darknet's) or ReLU."""

from __future__ import annotations

from torch import Tensor, nn

LEAK = 0.1
"""Slope of the leaky ReLU below zero (Redmon et al. 2015, equation 2)."""


class ConvBlock(nn.Module):
    """A convolution, "same"-padded unless told otherwise, batch norm where asked for, leaky ReLU.

    Weights start as He et al. 2015 (arXiv 1502.01852) for this slope, biases at 0.

    Args:
        in_channels, out_channels: channels.
        kernel: side of the square kernel, odd, pixels.
        stride: pixels.
        batch_norm: batch normalisation in place of the bias.
        padding: zeros around the map, pixels; None: ``kernel // 2``.
        leak: slope below zero; 0: a plain ReLU.
        groups: parts that the channels are divided into, each convolved for itself.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        batch_norm: bool = True,
        padding: int | None = None,
        leak: float = LEAK,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=kernel // 2 if padding is None else padding,
            groups=groups,
            bias=not batch_norm,
        )
        self.norm = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.act: nn.Module = nn.LeakyReLU(leak, inplace=True) if leak else nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, a=leak, nonlinearity="leaky_relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` -> ``(B, out, ceil(H / stride), ceil(W / stride))`` where "same"."""
        return self.act(self.norm(self.conv(x)))
