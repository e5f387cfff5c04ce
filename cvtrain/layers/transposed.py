"""The transposed convolution, as a matrix and as a layer that starts as bilinear interpolation.

A convolution is linear: the pixels of its input, as one vector, times a sparse matrix C of the
kernel's weights are the pixels of its output (``convolution_matrix``). The transposed convolution
of the same kernel multiplies by C transposed, so it takes the small map back to the large one's
size (not to its values); its gradient with regard to its input multiplies by C itself.

Papers: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", arXiv 1603.07285,
chapter 4; Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", arXiv
1411.4038, section 3.3 (bilinear kernels, learned or fixed). Written from the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution_matrix(
    kernel: Tensor, size: tuple[int, int], stride: int = 1, padding: int = 0
) -> Tensor:
    """The matrix C of a convolution of one channel with one kernel: ``output = C @ input``.

    Args:
        kernel: ``(kh, kw)``.
        size: height, width of the input.
        stride: pixels.
        padding: zeros around the input, pixels.

    Returns:
        ``(out_h * out_w, height * width)``, pixels row by row.

    Raises:
        ValueError: the kernel does not fit into the padded input.
    """
    (height, width), (kh, kw) = size, kernel.shape
    out_h = (height + 2 * padding - kh) // stride + 1
    out_w = (width + 2 * padding - kw) // stride + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"a kernel of {kh} x {kw} does not fit into {height} x {width}")
    matrix = kernel.new_zeros(out_h, out_w, height + 2 * padding, width + 2 * padding)
    for y in range(out_h):
        for x in range(out_w):
            matrix[y, x, y * stride : y * stride + kh, x * stride : x * stride + kw] = kernel
    inner = matrix[..., padding : padding + height, padding : padding + width]
    return inner.reshape(out_h * out_w, height * width)  # (out_h, out_w, H, W) -> 2-d


def bilinear_kernel(stride: int) -> Tensor:
    """The kernel ``(2 stride, 2 stride)`` by which a transposed convolution interpolates.

    A tent of height 1: pixel centers of the large map that lie between two of the small one get
    shares of both that add up to 1.
    """
    at = (torch.arange(2 * stride, dtype=torch.float64) + 0.5) / stride - 1  # -1..1
    tent = 1 - at.abs()
    return torch.outer(tent, tent).float()


class Upsample(nn.Module):
    """Enlarges a map ``stride`` times by a transposed convolution that starts as bilinear.

    Kernel ``2 stride``, no bias; at the start, and always where it is fixed, the output equals
    ``F.interpolate(mode="bilinear", align_corners=False)`` to the last pixel: the map's border is
    repeated once before, and what that adds is cut off.

    Args:
        channels: of the map, in and out.
        stride: how many times larger the output is, even.
        learned: whether the kernels are parameters, each output channel from all input channels;
            else they are fixed, a buffer, and a channel sees itself alone.

    Raises:
        ValueError: an odd stride, or one below 2.
    """

    weight: Tensor

    def __init__(self, channels: int, stride: int, learned: bool = True) -> None:
        super().__init__()
        if stride < 2 or stride % 2:
            raise ValueError(f"stride={stride} must be an even number from 2")
        self.channels, self.stride, self.learned = channels, stride, learned
        kernel = bilinear_kernel(stride)
        if learned:
            weight = torch.zeros(channels, channels, 2 * stride, 2 * stride)
            weight[range(channels), range(channels)] = kernel
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", kernel.repeat(channels, 1, 1, 1))  # (C, 1, 2s, 2s)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, stride H, stride W)``."""
        return F.conv_transpose2d(
            F.pad(x, (1, 1, 1, 1), mode="replicate"),  # -> (B, C, H + 2, W + 2)
            self.weight,
            stride=self.stride,
            padding=self.stride + self.stride // 2,
            groups=1 if self.learned else self.channels,
        )
