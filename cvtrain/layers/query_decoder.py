"""Queries: those that the encoder's best cells give, and the decoder that makes boxes of them.

Papers: Zhao et al. 2023, "RT-DETR", arXiv 2304.08069, section 4.3 (the cells are chosen by a score
that is trained towards class and IoU alike); Zhu et al. 2020, "Deformable DETR", arXiv 2010.04159,
appendix A.4 (boxes are corrected layer by layer, each cell proposes one); Zhang et al. 2022,
"DINO", arXiv 2203.03605, section 3.5 (the loss of a layer's boxes trains the layer before as well:
look forward twice). Boxes are x, y of the center, width and height in shares of the image, and here
their logits, to which each layer adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvtrain.layers.anchors import Size, grid_points
from cvtrain.layers.attention import SelfAttention, connected, last_linear
from cvtrain.layers.deformable_attention import DeformableAttention
from cvtrain.layers.dense_head import prior_bias

SIDE = 0.05
"""Side of the box that a cell of the finest map proposes at first, in shares of the image; of each
coarser map twice that of the one before (Deformable DETR's s)."""


class Guess(NamedTuple):
    """What one layer says.

    Attributes:
        logits: float32 ``(B, Q, K)``.
        places: float32 ``(B, Q, 4)``, logits of x, y of the center, width, height in shares of the
            image.
    """

    logits: Tensor
    places: Tensor


class Heads(nn.Module):
    """A class and a box of each query: one linear layer, and three with ReLU between them.

    The boxes stay where they are at the start.

    Args:
        channels: of a query.
        num_classes: K.
        prior: probability of every class at the start, 0..1.
    """

    def __init__(self, channels: int, num_classes: int, prior: float) -> None:
        super().__init__()
        self.classes = nn.Linear(channels, num_classes)
        nn.init.constant_(self.classes.bias, prior_bias(prior))
        self.boxes = connected(channels, channels, 4, layers=3)
        nn.init.zeros_(last_linear(self.boxes).weight)


class QuerySelection(nn.Module):
    """The cells that look most like an object become the queries.

    Args:
        channels: of the maps.
        num_classes: K.
        prior: probability of every class at the start, 0..1.
    """

    def __init__(self, channels: int, num_classes: int, prior: float) -> None:
        super().__init__()
        self.transform = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.heads = Heads(channels, num_classes, prior)

    def forward(self, memory: Tensor, sizes: Sequence[Size], count: int) -> tuple[Tensor, Guess]:
        """The ``count`` cells whose best class is likeliest, fewer where there are fewer cells.

        Args:
            memory: ``(B, S, C)``, map after map, row by row.
            sizes: rows and columns of each map.
            count: queries.

        Returns:
            Their features ``(B, Q, C)``, and what they say, with gradient.
        """
        cells = self.norm(self.transform(memory))
        logits = self.heads.classes(cells).float()  # (B, S, K)
        best = logits.detach().amax(dim=-1).topk(min(count, logits.shape[1]), dim=1).indices
        anchors = cell_places(sizes, memory.device).expand(len(memory), -1, -1)  # (B, S, 4)
        chosen = _gather(cells, best)
        places = _gather(anchors, best) + self.heads.boxes(chosen).float()
        return chosen, Guess(_gather(logits, best), places)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """``(B, S, C)`` and int64 ``(B, Q)`` -> ``(B, Q, C)``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def cell_places(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Float32 ``(S, 4)``: logits of the box that each cell proposes, around its own center."""
    found = []
    for level, (rows, columns) in enumerate(sizes):
        center = grid_points(rows, columns, 1 / rows, 1 / columns, device)  # (rows * columns, 2)
        side = torch.full_like(center, min(0.5, SIDE * 2**level))
        found.append(torch.cat([center, side], dim=1).logit())
    return torch.cat(found)


class DecoderLayer(nn.Module):
    """Queries see each other, then points of the maps, then two connected layers.

    Args:
        channels: of a query.
        heads: of both attentions.
        levels: maps.
        points: that a head looks at on each map.
        hidden: units between the two layers.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.among = SelfAttention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.across = DeformableAttention(channels, heads, levels, points)
        self.norm2 = nn.LayerNorm(channels)
        self.connected = connected(channels, hidden, channels, layers=2)
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        boxes: Tensor,
        values: Tensor,
        sizes: Sequence[Size],
        mask: Tensor | None,
    ) -> Tensor:
        """``(B, Q, C)`` -> ``(B, Q, C)``; see ``SelfAttention`` and ``DeformableAttention``."""
        x = self.norm1(x + self.among(x, position, mask))
        x = self.norm2(x + self.across(x + position, boxes, values, sizes))
        return self.norm3(x + self.connected(x))


class QueryDecoder(nn.Module):
    """Layers of which each corrects the boxes of the one before, and says what they hold.

    Args:
        channels: of a query.
        num_classes: K.
        layers: at least 1.
        heads: of the attentions.
        levels: maps.
        points: that a head looks at on each map.
        hidden: units of the connected layers.
        prior: probability of every class at the start, 0..1.

    Raises:
        ValueError: no layer.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        layers: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        prior: float,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"decoder_layers={layers} must be at least 1")
        self.position = connected(4, 2 * channels, channels, layers=2)
        self.layers = nn.ModuleList(
            DecoderLayer(channels, heads, levels, points, hidden) for _ in range(layers)
        )
        self.heads = nn.ModuleList(Heads(channels, num_classes, prior) for _ in range(layers))

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def values(self, memory: Tensor, layers: int | None = None) -> list[Tensor]:
        """What each of the first ``layers`` (None: all) reads of the maps ``(B, S, C)``."""
        return [layer.across.values(memory) for layer in self._layers()[:layers]]

    def forward(
        self,
        queries: Tensor,
        places: Tensor,
        values: Sequence[Tensor],
        sizes: Sequence[Size],
        mask: Tensor | None = None,
    ) -> list[Guess]:
        """What each layer says, as many layers as there are ``values``.

        Args:
            queries: ``(B, Q, C)``.
            places: float32 ``(B, Q, 4)`` logits of their boxes, without gradient.
            values: of ``values``.
            sizes: rows and columns of each map.
            mask: bool ``(B, Q, Q)``: whom a query sees; None: all see all.
        """
        guesses, x, before = [], queries, places
        for layer, heads, read in zip(self._layers(), self.heads, values, strict=False):
            assert isinstance(heads, Heads)
            boxes = places.sigmoid()
            x = layer(x, self.position(boxes.to(x.dtype)), boxes, read, sizes, mask)
            change = heads.boxes(x).float()
            guesses.append(Guess(heads.classes(x).float(), before + change))
            before = places + change  # with gradient: the next layer's loss reaches this one
            places = before.detach()
        return guesses
