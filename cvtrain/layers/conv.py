"""The convolution block: convolution, bias or batch norm, leaky ReLU (darknet's), ReLU or other."""

from __future__ import annotations

from torch import Tensor, nn

LEAK = 0.1
"""Slope of the leaky ReLU below zero (Redmon et al. 2015, equation 2)."""


class ConvBlock(nn.Module):
    """A convolution, "same"-padded unless told otherwise, batch norm where asked for, activation.

    Weights start as He et al. 2015 (arXiv 1502.01852) for this slope, or as ``std`` says, biases
    at 0.

    Args:
        in_channels, out_channels: channels.
        kernel: side of the square kernel, odd, pixels.
        stride: pixels.
        batch_norm: batch normalization in place of the bias.
        padding: zeros around the map, pixels; None: ``kernel // 2``.
        leak: slope below zero; 0: a plain ReLU.
        groups: parts that the channels are divided into, each convolved for itself.
        act: the activation; None: a leaky ReLU.
        std: of the Gaussian that the weights start from; None: He's.
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
        act: nn.Module | None = None,
        std: float | None = None,
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
        if act is None:
            act = nn.LeakyReLU(leak, inplace=True) if leak else nn.ReLU(inplace=True)
        self.act = act
        if std is None:
            nn.init.kaiming_normal_(self.conv.weight, a=leak, nonlinearity="leaky_relu")
        else:
            nn.init.normal_(self.conv.weight, std=std)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` -> ``(B, out, ceil(H / stride), ceil(W / stride))`` where "same"."""
        return self.act(self.norm(self.conv(x)))
