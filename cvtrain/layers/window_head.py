"""A classifier or regressor of windows, run over a whole map at once, and where its windows lie.

Paper: Sermanet et al. 2013, "OverFeat", arXiv 1312.6229, section 3.3. A head takes ``g x g`` cells
of the last map pooled by ``p x p`` without overlap. On a larger map the paper pools at each of the
``p x p`` offsets (Delta_x, Delta_y in 0..p-1), slides the head over each pooled map as a
convolution, and interleaves the outputs: one for every cell of the unpooled map instead of one for
every p-th. That is the same as pooling with stride 1 and a convolution dilated by p, since the
cells of one offset meet only cells of the same offset; it is computed so here, for maps of any
size, and tested against the paper's way.

The output at row i, column j is that of the head on cells ``i .. i + p g - 1`` times
``j .. j + p g - 1`` of the map, to rounding. It is that of the whole network on the same window of
the image only if no convolution pads: padding puts zeros at the border of a window that was cut
out, where the whole image has its neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.boxes import area


class DenseHead(nn.Module):
    """Max pooling, then connected layers with ReLU between them, over every window of a map.

    Args:
        channels: of the map.
        hidden: units of each hidden layer, at least one layer.
        outputs: units of the last layer.
        grid: pooled cells of a window, rows and columns: what the first layer connects to.
        pool: side of the max pooling, map cells.
        dropout: share of the inputs of the second and later layers dropped in training.

    Attributes:
        extent: rows and columns of a window, cells of the map before pooling.
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int],
        outputs: int,
        grid: tuple[int, int],
        pool: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.extent = (grid[0] * pool, grid[1] * pool)
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden[0], grid, dilation=pool)]
        for width, following in zip(hidden, [*hidden[1:], outputs], strict=True):
            layers += [nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Conv2d(width, following, 1)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    @property
    def last(self) -> nn.Conv2d:
        """The layer that gives the outputs."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, outputs, h - p g + 1, w - p g + 1)``: one a window."""
        return self.layers(F.max_pool2d(maps, self.pool, stride=1))  # (B, C, h - p + 1, w - p + 1)


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows of a dense head lie in the image that was given to the network.

    Attributes:
        stride: image pixels from one window to the next, both ways.
        height, width: of a window, image pixels.
    """

    stride: int
    height: int
    width: int

    def boxes(self, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
        """float32 ``(rows * columns, 4)`` xyxy, row by row, in pixels of the scaled image."""
        y = torch.arange(rows, device=device) * self.stride
        x = torch.arange(columns, device=device) * self.stride
        y, x = torch.meshgrid(y, x, indexing="ij")  # (rows, columns) each
        corners = torch.stack([x, y, x + self.width, y + self.height], dim=-1)
        return corners.reshape(-1, 4).float()


def overlap(boxes: Tensor, windows: Tensor) -> Tensor:
    """How much a box and a window have in common, as a share of the smaller of the two.

    Args:
        boxes: ``(N, 4)`` xyxy.
        windows: ``(M, 4)`` xyxy.

    Returns:
        ``(N, M)`` in 0..1; 0 for boxes without area.
    """
    low = torch.maximum(boxes[:, None, :2], windows[None, :, :2])  # (N, M, 2)
    high = torch.minimum(boxes[:, None, 2:], windows[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=2)  # (N, M)
    return common / torch.minimum(area(boxes)[:, None], area(windows)).clamp(min=1e-9)


def to_window(boxes: Tensor, windows: Tensor) -> Tensor:
    """``(..., 4)`` xyxy in pixels -> edges in units of the window, 0..1 inside it."""
    origin = torch.cat([windows[..., :2]] * 2, dim=-1)
    size = torch.cat([windows[..., 2:] - windows[..., :2]] * 2, dim=-1)
    return (boxes - origin) / size


def from_window(edges: Tensor, windows: Tensor) -> Tensor:
    """The inverse of ``to_window``."""
    origin = torch.cat([windows[..., :2]] * 2, dim=-1)
    size = torch.cat([windows[..., 2:] - windows[..., :2]] * 2, dim=-1)
    return edges * size + origin
