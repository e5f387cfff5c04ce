"""Which of many boxes a loss counts: balanced samples, hard negatives, hard examples.

Random draws come from torch's global generator, which training seeds anew for each epoch; those of
a validation from one of their own (``fixed_draws``), so that it says the same every time, image by
image, and takes no draw from the training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

SEED = 0
"""Of the draws in validation."""


def fixed_draws(training: bool) -> torch.Generator | None:
    """Where the draws of one image come from: in training None (the global generator), else a
    generator that is the same for every image.
    """
    return None if training else torch.Generator().manual_seed(SEED)


def sample_balanced(
    positive: Tensor,
    negative: Tensor,
    count: int,
    positive_fraction: float,
    draws: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A random sample of one image's boxes (Girshick 2015, arXiv 1504.08083, section 2.3).

    Args:
        positive: bool ``(A,)``.
        negative: bool ``(A,)``; boxes that are neither are never drawn.
        count: boxes to draw; negatives fill up where positives are few, never the other way.
        positive_fraction: of positives at most, 0..1.
        draws: a generator on the CPU; None: the global one.

    Returns:
        Indices int64 ``(P,)`` and ``(N,)`` of the positives and the negatives drawn, each in the
        order of the boxes; P + N at most ``count``.
    """
    p = positive.nonzero().flatten()
    n = negative.nonzero().flatten()
    p = _draw(p, int(count * positive_fraction), draws)
    return p, _draw(n, count - len(p), draws)


def _draw(index: Tensor, count: int, draws: torch.Generator | None) -> Tensor:
    if len(index) <= count:
        return index
    # On the CPU whatever the device: the same draws everywhere.
    chosen = torch.randperm(len(index), generator=draws)[:count].to(index.device)
    return index[chosen].sort().values


def hard_negatives(
    loss: Tensor, positive: Tensor, negative: Tensor, ratio: float = 3.0, least: int = 0
) -> Tensor:
    """The negatives of highest loss, image by image (Liu et al. 2016, arXiv 1512.02325, 2.2).

    Args:
        loss: ``(B, A)`` of each box, were it a negative.
        positive: bool ``(B, A)``.
        negative: bool ``(B, A)``; boxes that are neither are never chosen.
        ratio: negatives a positive.
        least: negatives of an image with fewer positives than would give so many.

    Returns:
        bool ``(B, A)``: the negatives chosen; of equal losses the first.
    """
    wanted = (ratio * positive.sum(dim=1)).clamp(min=least)  # (B,)
    wanted = wanted.minimum(negative.sum(dim=1))
    ranked = loss.detach().float().masked_fill(~negative, -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(loss.shape[1], device=loss.device).expand_as(order)
    )
    return place < wanted[:, None]


def hard_examples(
    loss: Tensor, count: int, boxes: Tensor | None = None, iou: float = 0.7
) -> Tensor:
    """The examples of highest loss (OHEM, Shrivastava et al. 2016, arXiv 1604.03540).

    Args:
        loss: ``(N,)``.
        count: examples to take.
        boxes: ``(N, 4)``; where given, of examples that overlap by more than ``iou`` only the worst
            is taken, as their losses are of the same place.
        iou: 0..1, the paper's 0.7.

    Returns:
        Indices int64, ``count`` at most, highest loss first.
    """
    loss = loss.detach().float()
    if boxes is None:
        return loss.sort(descending=True, stable=True).indices[:count]
    return nms(boxes.detach().float(), loss, iou)[:count]
