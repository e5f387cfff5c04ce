"""Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899).

Applied to a whole batch on the device, in training alone: every image is mixed with another one of
the batch, and its target becomes the shares of both classes (``Target.probs``). As in the papers'
code one share is drawn a batch. Images keep their type, so that models normalize as ever.

For detection (mixup alone) the objects of both images are put together, at full weight (Zhang et
al. 2019, "Bag of Freebies for Training Object Detection", arXiv 1902.04103, which draws the share
from Beta(1.5, 1.5)); those of an image that is hardly to be seen count neither as objects nor as
background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.augment.config import closing_epoch, settled
from cvtrain.structures import Batch, Target

FAINT = 0.1
"""Objects of an image blended in with a smaller share than this are to be ignored."""

_STREAM = 2  # after (seed, epoch, batch): no sample's and no epoch's order is drawn from these


class BatchMix:
    """Mixes the images of a training batch, or not: drawn from (seed, epoch, batch, rank).

    Args:
        num_classes: K.
        mixup: share of the batches whose images are blended.
        mixup_alpha: of Beta(alpha, alpha), which the blend is drawn from; the paper: 0.1 to 0.4.
        cutmix: share of the batches whose images get a rectangle of another one.
        cutmix_alpha: the same for the rectangle's area; the paper: 1, all areas alike.
        closes: the first epoch in which nothing is mixed; None: every epoch is.
        seed: of the run.
        rank: of this process.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.0,
        mixup_alpha: float = 0.2,
        cutmix: float = 0.0,
        cutmix_alpha: float = 1.0,
        closes: int | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.num_classes, self.closes = num_classes, closes
        self.mixup, self.mixup_alpha = mixup, mixup_alpha
        self.cutmix, self.cutmix_alpha = cutmix, cutmix_alpha
        self.seed, self.rank = seed, rank

    def __call__(self, batch: Batch, epoch: int, index: int) -> Batch:
        """Batch ``index`` of an epoch, mixed where the draw says so; the given one is not changed.

        Returns:
            A batch of the same images where nothing is mixed; otherwise images ``(B, C, H, W)`` of
            the same type, and targets with ``probs (K,)``, or with the boxes of both images.
        """
        if self.closes is not None and epoch >= self.closes:
            return batch
        generator = np.random.default_rng([self.seed, epoch, index, _STREAM + self.rank])
        draw = generator.random()
        if draw >= self.mixup + self.cutmix:
            return batch
        cut = draw < self.cutmix
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        share = float(generator.beta(alpha, alpha))
        ring = generator.permutation(len(batch))
        partners = np.empty_like(ring)
        partners[ring] = np.roll(ring, 1)  # each has another one: nothing is mixed with itself
        order = torch.from_numpy(partners).to(batch.images.device)
        if cut:
            images, share = _cut(batch.images, order, share, generator)
        else:
            images = _blend(batch.images, order, share)
        if all(t.boxes is not None for t in batch.targets):
            targets = [
                joined(target, batch.targets[k], share)
                for target, k in zip(batch.targets, partners, strict=True)
            ]
            return replace(batch, images=images, targets=targets, proposals=_both(batch, partners))
        probs = torch.stack([self._probs(t) for t in batch.targets])  # (B, K)
        mixed = share * probs + (1 - share) * probs[order]
        targets = [replace(t, probs=p) for t, p in zip(batch.targets, mixed, strict=True)]
        return replace(batch, images=images, targets=targets)

    def _probs(self, target: Target) -> Tensor:
        if target.probs is not None:
            return target.probs.float()
        if target.label is None:
            raise ValueError("mixup and cutmix need a label or probs in every target")
        return F.one_hot(target.label, self.num_classes).float()  # () -> (K,)


def joined(one: Target, other: Target, share: float) -> Target:
    """The objects of two images, of which the first has ``share`` of the light, 0..1."""
    marked = []
    for target, part in ((one, share), (other, 1 - share)):
        assert target.boxes is not None
        ignore = target.ignore
        if ignore is None or part < FAINT:
            ignore = target.boxes.new_full((len(target.boxes),), part < FAINT, dtype=torch.bool)
        marked.append(replace(target, ignore=ignore))
    names = ("boxes", "labels", "ignore", "areas")
    pairs = {name: [getattr(t, name) for t in marked] for name in names}
    fields: dict[str, Any] = {
        name: torch.cat(pair)
        for name, pair in pairs.items()
        if all(value is not None for value in pair)
    }
    return Target(**fields)


def _both(batch: Batch, partners: np.ndarray) -> list[Tensor] | None:
    """The proposals of each image and of its partner by turns, so that the best come first."""
    if batch.proposals is None:
        return None
    mixed = []
    for own, k in zip(batch.proposals, partners, strict=True):
        other = batch.proposals[k]
        rank = torch.cat([torch.arange(len(own)), torch.arange(len(other))])
        mixed.append(torch.cat([own, other])[rank.argsort(stable=True).to(own.device)])
    return mixed


def _blend(images: Tensor, order: Tensor, share: float) -> Tensor:
    """``share`` of each image and the rest of its partner."""
    mixed = (images.float() * share).add_(images[order].float(), alpha=1 - share)
    return (mixed if images.is_floating_point() else mixed.round_()).to(images.dtype)


def _cut(
    images: Tensor, order: Tensor, share: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """A rectangle of ``1 - share`` of the area, around a uniform center, from the partners.

    What lies outside the image is cut off; the share returned is that of the pixels.
    """
    height, width = images.shape[-2:]
    side = float(np.sqrt(1 - share))
    cy, cx = generator.random(2) * [height, width]
    half_height, half_width = side * height / 2, side * width / 2
    top, bottom = (int(np.clip(round(v), 0, height)) for v in (cy - half_height, cy + half_height))
    left, right = (int(np.clip(round(v), 0, width)) for v in (cx - half_width, cx + half_width))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[order][..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def build_mix(
    augment: Mapping[str, Any] | None,
    num_classes: int,
    *,
    epochs: int | None,
    seed: int = 0,
    rank: int = 0,
) -> BatchMix | None:
    """The mixing that an ``augment`` node asks for; None where it asks for none.

    Raises:
        UsageError: a value out of range.
    """
    node = settled(augment)
    if not node["mixup"] and not node["cutmix"]:
        return None
    keys: Sequence[str] = ("mixup", "mixup_alpha", "cutmix", "cutmix_alpha")
    given = {key: node[key] for key in keys if node[key] is not None}
    closes = closing_epoch(node["close_epoch"], epochs)
    return BatchMix(num_classes, closes=closes, seed=seed, rank=rank, **given)
