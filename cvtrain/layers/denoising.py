"""Queries that are objects with noise, to be put right: contrastive denoising.

Papers: Li et al. 2022, "DN-DETR", arXiv 2203.01305; Zhang et al. 2022, "DINO", arXiv 2203.03605,
section 3.3. Of each object a pair: one whose corners are moved by less than half of the box's
sides, to be put right, and one moved by half to a whole side, to be called background. Their labels
are told to them, some of them wrong. The pairs are repeated in groups that do not see each other.
They need no matching, so that the decoder learns from the first step on; nobody makes them where
the network predicts.

Where we deviate:

- Each image has groups of its own, as many as there is room for; in the papers as many as the image
  with the most objects has room for. So an image's loss does not depend on the others.
- Of more objects than there is room for some are drawn.
- They do not see the queries that are matched (DN-DETR finds no difference), which is why both can
  go through the decoder one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvtrain.layers.boxes import center_size
from cvtrain.layers.sampler import fixed_draws

EPS = 1e-4
"""Sides and distances from the border are at least so much, in shares of the image."""


class Noised(NamedTuple):
    """The queries of a batch, padded to the longest image's.

    Attributes:
        queries: ``(B, M, C)``.
        places: float32 ``(B, M, 4)`` logits of their boxes.
        mask: bool ``(B, M, M)``: whom a query sees.
        owner: int64 ``(B, M)``: the object to be found, -1 where it is background.
        real: bool ``(B, M)``: False for what pads.
        share: float32 ``(B,)``: 1 / groups, so that every object counts once.
    """

    queries: Tensor
    places: Tensor
    mask: Tensor
    owner: Tensor
    real: Tensor
    share: Tensor


class Denoising(nn.Module):
    """Makes such queries; in training the draws are the global generator's, else fixed ones.

    Args:
        channels: of a query.
        num_classes: K.
        pairs: of an image, about; at least 1.
        label_noise: part of the queries whose label is drawn anew, 0..1.
        box_noise: largest move of a corner of the first of a pair, in halves of the sides; 0..1.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        pairs: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ) -> None:
        super().__init__()
        if pairs < 1:
            raise ValueError(f"denoising={pairs} must be at least 1, or null for none")
        if not 0 <= label_noise <= 1 or not 0 <= box_noise <= 1:
            raise ValueError(f"label_noise={label_noise} and box_noise={box_noise} are in 0..1")
        self.pairs, self.num_classes = pairs, num_classes
        self.label_noise, self.box_noise = label_noise, box_noise
        self.labels = nn.Embedding(num_classes, channels)

    def forward(self, objects: Sequence[Tensor], labels: Sequence[Tensor], scale: Tensor) -> Noised:
        """The queries of a batch; one that pads, where no image has an object.

        Args:
            objects: for each image ``(N, 4)`` xyxy pixels.
            labels: for each int64 ``(N,)``.
            scale: ``(4,)`` width, height, width, height of the images, pixels.
        """
        device = scale.device
        made = [self._image(len(o)) for o in objects]
        longest = max(1, *(len(m.owner) for m in made))
        padded = torch.zeros(len(made), longest, dtype=torch.int64, device=device)
        kinds, group, owner = padded, padded - 1, padded - 1
        places = torch.zeros(len(made), longest, 4, device=device)
        kinds, real = kinds.clone(), torch.zeros_like(padded, dtype=torch.bool)
        for b, (m, boxes, names) in enumerate(zip(made, objects, labels, strict=True)):
            count = len(m.owner)
            of, move, positive = (t.to(device) for t in (m.owner, m.move, m.positive))
            kind, redrawn = m.kind.to(device), m.redrawn.to(device)
            kinds[b, :count] = torch.where(redrawn, kind, names[of])
            places[b, :count] = self._moved(boxes[of] / scale, move).logit()
            group[b, :count] = m.group.to(device)
            owner[b, :count] = torch.where(positive, of, -1)
            real[b, :count] = True
        same = (group[:, :, None] == group[:, None]) & real[:, None]  # (B, M, M)
        mask = same | torch.eye(longest, dtype=torch.bool, device=device)  # a row sees something
        share = torch.tensor([1 / m.groups for m in made], device=device)
        return Noised(self.labels(kinds), places, mask, owner, real, share)

    def _image(self, count: int) -> _Draws:
        """The draws of an image with ``count`` objects, on the CPU: the same on every device."""
        draws = fixed_draws(self.training)
        chosen = torch.arange(count)
        if count > self.pairs:
            chosen = torch.randperm(count, generator=draws)[: self.pairs].sort().values
        groups = max(1, self.pairs // max(1, len(chosen)))
        total = groups * len(chosen)
        positive = torch.arange(2 * total) < total
        away = torch.rand(2 * total, 4, generator=draws) + (~positive)[:, None]
        sign = torch.randint(0, 2, (2 * total, 4), generator=draws) * 2 - 1
        return _Draws(
            owner=chosen.repeat(2 * groups),
            group=torch.arange(groups).repeat_interleave(len(chosen)).repeat(2),
            positive=positive,
            move=away * sign,
            redrawn=torch.rand(2 * total, generator=draws) < self.label_noise,
            kind=torch.randint(0, self.num_classes, (2 * total,), generator=draws),
            groups=groups,
        )

    def _moved(self, boxes: Tensor, move: Tensor) -> Tensor:
        """Boxes with noise: ``(M, 4)`` -> ``(M, 4)`` x, y of the center, width, height.

        Args:
            boxes: xyxy in shares of the image.
            move: how far each edge goes, in halves of the box's sides; it ends in the image.
        """
        half = (boxes[:, 2:] - boxes[:, :2]) / 2
        edges = (boxes + move * self.box_noise * torch.cat([half, half], dim=1)).clamp(0, 1)
        low = torch.minimum(edges[:, :2], edges[:, 2:])
        high = torch.maximum(edges[:, :2], edges[:, 2:])
        return center_size(torch.cat([low, high], dim=1)).clamp(EPS, 1 - EPS)


class _Draws(NamedTuple):
    """What is drawn for an image: int64, bool or float32 ``(2 P, ...)``; ``groups``: how many."""

    owner: Tensor
    group: Tensor
    positive: Tensor
    move: Tensor
    redrawn: Tensor
    kind: Tensor
    groups: int
