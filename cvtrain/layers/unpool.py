"""Max pooling that remembers where its values came from, and its reverse.

The switches of a pooling are the places of the values that it kept; unpooling puts values back to
these places, in a map of the size before, with zeros elsewhere. Paper: Noh, Hong, Han, "Learning
Deconvolution Network for Semantic Segmentation", arXiv 1505.04366, section 3.2.1, after Zeiler and
Fergus. Written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pool_with_switches(x: Tensor, size: int = 2) -> tuple[Tensor, Tensor]:
    """The largest value of every ``size`` x ``size`` cell, and where it was.

    Cells do not overlap; rows and columns that fill no cell are left out. Of equal values the first
    (row by row) is taken, so that it goes back to one place alone.

    Args:
        x: ``(B, C, H, W)``.
        size: side of a cell.

    Returns:
        ``(B, C, H // size, W // size)``, and int64 of that shape: ``row * W + column`` in ``x``.
    """
    pooled, switches = F.max_pool2d(x, size, return_indices=True)
    return pooled, switches


def unpool(x: Tensor, switches: Tensor, size: Sequence[int]) -> Tensor:
    """Values back to the places that they have in a larger map, zeros elsewhere.

    Args:
        x: ``(B, C, h, w)``.
        switches: int64 of that shape, as ``pool_with_switches`` gives them.
        size: height and width of the larger map.

    Returns:
        ``(B, C, *size)``.
    """
    height, width = size
    flat = x.new_zeros((*x.shape[:2], height * width))
    # (B, C, h, w) -> (B, C, h w); a place is written once, so the order does not matter
    flat = flat.scatter(2, switches.flatten(2), x.flatten(2))
    return flat.view(*x.shape[:2], height, width)
