"""Features of regions: what a map, or a pyramid of maps, has inside a box, in a grid of fixed size.

- ``pool``: the largest value of each cell, edges rounded to whole map pixels (RoI pooling, Girshick
  2015, arXiv 1504.08083).
- ``align``: the mean of points in each cell, interpolated, nothing rounded (RoIAlign, He et al.
  2017, arXiv 1703.06870).
- Position-sensitive, either way: each cell reads channels of its own (R-FCN, Dai et al. 2016, arXiv
  1605.06409; with points Light-Head R-CNN, Li et al. 2017, arXiv 1711.07264).

The operators are torchvision's, run in float32 whatever the maps are. There may be no boxes at all;
one without width or height is taken for one map pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import ps_roi_align, ps_roi_pool, roi_align, roi_pool

from cvtrain.layers.boxes import area

Method = Literal["align", "pool"]

CANONICAL_SIDE, CANONICAL_STRIDE = 224.0, 16
"""A box of 224 x 224 pixels (ImageNet's) is read at stride 16, level 4 (FPN paper, equation 1)."""
EPS = 1e-6
"""Added to a level before it is rounded down: a side of exactly 224 is not level 3."""


def assign_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Which level of a pyramid a box is read from (Lin et al. 2017, arXiv 1612.03144, equation 1).

    ``k = floor(k0 + log2(sqrt(w h) / 224))``, k0 the level of stride 16, cut to those there are.

    Args:
        boxes: ``(N, 4)`` xyxy pixels.
        strides: of the levels, each twice the one before.

    Returns:
        int64 ``(N,)`` places in ``strides``.
    """
    side = area(boxes).sqrt()
    first = torch.log2(torch.tensor(CANONICAL_STRIDE / strides[0]))  # k0 counted from our first
    level = torch.floor(first.to(side.device) + torch.log2(side / CANONICAL_SIDE) + EPS)
    return level.clamp(0, len(strides) - 1).long()


def with_image(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes ``(N_b, 4)`` of each image -> float32 ``(R, 5)``, the image's place first."""
    places = [b.new_full((len(b), 1), i, dtype=torch.float32) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat(places), torch.cat(list(boxes)).float()], dim=1)


class RoIPool(nn.Module):
    """A grid of features for every box, from one map or from the level that fits its size.

    Args:
        strides: image pixels per pixel of each map.
        size: rows and columns of the grid.
        method: ``align`` or ``pool``.
        points: along each side of a cell, with ``align``; 0: one a map pixel.
        half_pixel: with ``align``, whether map pixels are centered at half numbers (Detectron2);
            no: as torchvision's detectors have them.

    Raises:
        ValueError: an unknown method, or a size below 1.
    """

    def __init__(
        self,
        strides: Sequence[int],
        size: int = 7,
        method: Method = "align",
        points: int = 2,
        half_pixel: bool = False,
    ) -> None:
        super().__init__()
        _check(method, size)
        self.strides, self.size, self.method = list(strides), size, method
        self.points, self.half_pixel = points, half_pixel

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C, H_i, W_i)``, one a stride, and for each image boxes ``(N_b, 4)`` pixels.

        Returns:
            float32 ``(R, C, size, size)``, R the boxes of all images, in their order.
        """
        rois = with_image(boxes)  # (R, 5)
        if len(self.strides) == 1:
            return self._read(maps[0], rois, self.strides[0])
        level = assign_levels(rois[:, 1:], self.strides)
        found, order = [], []
        for i, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            mine = (level == i).nonzero().flatten()
            found.append(self._read(x, rois[mine], stride))
            order.append(mine)
        return torch.cat(found)[torch.cat(order).argsort()]

    def _read(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        if self.method == "pool":
            return roi_pool(x.float(), rois, self.size, 1 / stride)
        return roi_align(x.float(), rois, self.size, 1 / stride, self.points, self.half_pixel)


class PSRoIPool(nn.Module):
    """Position-sensitive: cell (i, j) of output c is read from map channel ``(c n + i) n + j``.

    Args:
        stride: image pixels per map pixel.
        size: n, rows and columns of the grid.
        method: ``pool`` takes the mean over each cell, its edges rounded; ``align`` the mean of
            points in it.
        points: along each side of a cell, with ``align``; 0: one a map pixel.

    Raises:
        ValueError: an unknown method, or a size below 1.
    """

    def __init__(
        self, stride: int, size: int = 7, method: Method = "pool", points: int = 2
    ) -> None:
        super().__init__()
        _check(method, size)
        self.stride, self.size, self.method, self.points = stride, size, method, points

    def forward(self, x: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """A map ``(B, C n n, H, W)`` and boxes ``(N_b, 4)`` of each image -> ``(R, C, n, n)``."""
        rois = with_image(boxes)  # (R, 5)
        if self.method == "pool":
            # torchvision's kernel stops before the last row and column: here they are zeros.
            x = F.pad(x.float(), (0, 1, 0, 1))
            return ps_roi_pool(x, rois, self.size, 1 / self.stride)
        return ps_roi_align(x.float(), rois, self.size, 1 / self.stride, self.points)


def _check(method: str, size: int) -> None:
    if method not in get_args(Method):
        raise ValueError(f"roi method {method}: expected {' | '.join(get_args(Method))}")
    if size < 1:
        raise ValueError(f"roi size={size} must be at least 1")
