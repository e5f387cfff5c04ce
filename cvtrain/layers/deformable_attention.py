"""Attention that looks at a few points of several maps, wherever it says that they are.

Paper: Zhu et al. 2020, "Deformable DETR", arXiv 2010.04159, section 4.1, equation 3, and appendix
A.4 for queries that have a box. Written from the paper; the samples are torch's ``grid_sample``,
so that it runs on every device without a kernel of its own.

A query attends, in each of M heads, to K points on each of L maps. A linear layer on the query says
where they are, relative to its box: center + offset / K x half of the box's sides. Another gives
their M x L K weights, a softmax over the points of a head. At the start the head's points lie on a
ray of its own, the k-th k / K of the way to the box's border, and all weigh the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.anchors import Size
from cvtrain.layers.attention import check_heads


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention of queries with boxes.

    Args:
        channels: of queries and maps.
        heads: M.
        levels: L, maps.
        points: K, of each head on each map.

    Raises:
        ValueError: channels that do not divide into the heads, or no point.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        check_heads(channels, heads)
        if points < 1:
            raise ValueError(f"points={points} must be at least 1")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.join = nn.Linear(channels, channels)
        for layer in (self.value, self.join):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(self._rays())

    def _rays(self) -> Tensor:
        """Float32 ``(M * L * K * 2,)``: head m at angle 2 pi m / M, on a square."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(dim=-1, keepdim=True)  # (M, 2)
        step = torch.arange(1, self.points + 1, dtype=torch.float32)
        rays = ray[:, None, None] * step[:, None]  # (M, 1, K, 2)
        return rays.expand(-1, self.levels, -1, -1).flatten()

    def values(self, memory: Tensor) -> Tensor:
        """What the points are read from: ``(B, S, C)``, the maps' cells, -> ``(B, S, C)``."""
        return self.value(memory)

    def forward(
        self, query: Tensor, boxes: Tensor, values: Tensor, sizes: Sequence[Size]
    ) -> Tensor:
        """``(B, Q, C)`` -> ``(B, Q, C)``.

        Args:
            query: what the points and their weights follow from.
            boxes: float32 ``(B, Q, 4)``: x, y of the center, width, height, in shares of the maps.
            values: ``(B, S, C)`` of ``values``, map after map, row by row.
            sizes: rows and columns of each map; their products add up to S.
        """
        shape = (self.heads, self.levels, self.points)
        offsets = self.offsets(query).float().unflatten(-1, (*shape, 2))  # (B, Q, M, L, K, 2)
        around = boxes[:, :, None, None, None]  # (B, Q, 1, 1, 1, 4)
        places = around[..., :2] + offsets / self.points * around[..., 2:] * 0.5
        weights = self.weights(query).float().unflatten(-1, (self.heads, -1))  # (B, Q, M, L * K)
        weights = weights.softmax(dim=-1).unflatten(-1, shape[1:])  # (B, Q, M, L, K)
        return self.join(sample_maps(values, sizes, places, weights).to(query.dtype))


def sample_maps(values: Tensor, sizes: Sequence[Size], places: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples, head by head (equation 3 without its linear maps).

    In float32: half floats cannot tell neighboring places apart. Outside the maps there are zeros.

    Args:
        values: ``(B, S, M * D)``, map after map, row by row.
        sizes: rows and columns of the L maps.
        places: float32 ``(B, Q, M, L, K, 2)`` x, y in shares of a map: 0 its left or upper border,
            1 the other.
        weights: float32 ``(B, Q, M, L, K)``.

    Returns:
        float32 ``(B, Q, M * D)``.
    """
    batch, queries, heads = places.shape[:3]
    cells = values.float().unflatten(-1, (heads, -1))  # (B, S, M, D)
    grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, K, 2)
    found = []
    parts = cells.split([rows * columns for rows, columns in sizes], dim=1)
    for level, (part, (rows, columns)) in enumerate(zip(parts, sizes, strict=True)):
        # (B, rows * columns, M, D) -> (B * M, D, rows, columns)
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, rows, columns)
        # (B * M, D, Q, K)
        found.append(F.grid_sample(maps, grid[:, :, level], align_corners=False))
    share = weights.transpose(1, 2).flatten(0, 1).flatten(2)  # (B * M, Q, L * K)
    samples = torch.stack(found, dim=-2).flatten(-2)  # (B * M, D, Q, L * K)
    summed = (samples * share[:, None]).sum(dim=-1)  # (B * M, D, Q)
    return summed.reshape(batch, -1, queries).transpose(1, 2)  # (B, Q, M * D)
