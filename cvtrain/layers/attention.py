"""What transformers are made of: attention of a set to itself, two connected layers, positions.

Papers: Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762; as in DETR (Carion et
al. 2020, arXiv 2005.12872) positions are added to queries and keys at every layer, not to values,
and those of a map are sines and cosines of its rows and columns. Norms come after the sum
(post-norm). There is no dropout, as in Deformable DETR's successors.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 10_000.0
"""The longest wave of a position, in units of 2 pi map cells."""


class SelfAttention(nn.Module):
    """Multi-head attention of a set to itself.

    Args:
        channels: of an element.
        heads: parts that the channels are divided into, each with weights of its own.

    Raises:
        ValueError: channels that do not divide into the heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.join = nn.Linear(channels, channels)
        for layer in (self.query_key, self.value, self.join):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, N, C)`` and positions that broadcast to it -> ``(B, N, C)``.

        Args:
            x: the set.
            position: added to queries and keys.
            mask: bool ``(B, N, N)``: whether the element of a row sees that of a column; in each
                row at least one. None: all see all.
        """
        query, key = self.query_key(x + position).chunk(2, dim=-1)
        query, key, value = (self._split(part) for part in (query, key, self.value(x)))
        seen = None if mask is None else mask[:, None]  # (B, 1, N, N)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.join(out.transpose(1, 2).flatten(2))  # (B, N, C)

    def _split(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, heads, N, C / heads)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention of a set to itself, then two connected layers, each summed with its input.

    Args:
        channels: of an element.
        heads: of the attention.
        hidden: units between the two layers.
    """

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.connected = connected(channels, hidden, channels, layers=2, act=nn.GELU)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """``(B, N, C)`` and positions that broadcast to it -> ``(B, N, C)``."""
        x = self.norm1(x + self.attention(x, position))
        return self.norm2(x + self.connected(x))


def connected(
    inputs: int, hidden: int, outputs: int, layers: int, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """``layers`` connected layers of ``hidden`` units, the last of ``outputs``, ``act`` between."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    found: list[nn.Module] = []
    for before, after in pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        found += [linear, act()]
    return nn.Sequential(*found[:-1])


def last_linear(layers: nn.Sequential) -> nn.Linear:
    """The layer of ``connected`` that gives its outputs."""
    layer = layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def sine_positions(rows: int, columns: int, channels: int, device: torch.device) -> Tensor:
    """Positions of a map's cells, row by row: float32 ``(rows * columns, channels)``.

    A quarter of the channels each: sines and cosines of the column, sines and cosines of the row,
    their waves from 2 pi to nearly ``TEMPERATURE`` times as many cells, evenly in the logarithm.

    Raises:
        ValueError: channels that are no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"channels={channels} must be a multiple of 4: positions have four parts")
    quarter = channels // 4
    step = torch.arange(quarter, device=device, dtype=torch.float32) / quarter
    wave = torch.exp(-math.log(TEMPERATURE) * step)  # (quarter,)
    y = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * wave  # (rows, quarter)
    x = torch.arange(columns, device=device, dtype=torch.float32)[:, None] * wave
    shape = (rows, columns, quarter)
    parts = [part[None].expand(shape) for part in (x.sin(), x.cos())]
    parts += [part[:, None].expand(shape) for part in (y.sin(), y.cos())]
    return torch.cat(parts, dim=-1).flatten(0, 1)


def check_heads(channels: int, heads: int) -> None:
    """Raise ValueError where the channels do not divide into the heads."""
    if heads < 1 or channels % heads:
        raise ValueError(f"channels={channels} must be a multiple of heads={heads}")
