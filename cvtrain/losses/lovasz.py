"""Lovasz-softmax: a convex surrogate of the IoU itself.

Paper: Berman, Triki, Blaschko, "The Lovasz-Softmax loss: A tractable surrogate for the optimization
of the intersection-over-union measure in neural networks", arXiv 1705.08790, equations 8 to 11 and
algorithm 1. Written from the paper.

For each class the errors of its probability are sorted, the largest first, and each is weighed with
what taking this pixel wrong, after those before it, costs in IoU. The mean over the classes that
the masks have, over a batch as if it were one image, or image by image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cvtrain.structures import IGNORE_INDEX


class LovaszLoss(nn.Module):
    """Lovasz-softmax.

    Args:
        per_image: whether the IoU is taken of each image, and then their mean; images that are void
            altogether are left out.
    """

    def __init__(self, per_image: bool = False) -> None:
        super().__init__()
        self.per_image = per_image

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` and class maps int64 ``(B, H, W)``, 255 void -> scalar."""
        probs = logits.float().softmax(dim=1).movedim(1, -1)  # (B, H, W, K)
        groups = zip(probs, masks, strict=True) if self.per_image else [(probs, masks)]
        losses = []
        for group, mask in groups:
            counted = mask != IGNORE_INDEX
            if counted.any():
                losses.append(_lovasz(group[counted], mask[counted]))
        return torch.stack(losses).mean() if losses else (probs * 0).sum()


def _lovasz(probs: Tensor, labels: Tensor) -> Tensor:
    """``(N, K)`` probabilities and int64 ``(N,)`` labels, N at least 1 -> scalar."""
    losses = []
    for label in labels.unique():
        own = (labels == label).float()
        errors = (own - probs[:, label]).abs()
        order = errors.detach().argsort(descending=True, stable=True)
        losses.append(errors[order] @ lovasz_gradient(own[order]))
    return torch.stack(losses).mean()


def lovasz_gradient(own: Tensor) -> Tensor:
    """What each further error costs in IoU (algorithm 1).

    Args:
        own: float32 ``(N,)``, whether the pixel is of the class, the largest error first.

    Returns:
        ``(N,)``, adding up to at most 1.
    """
    total = own.sum()
    missed = own.cumsum(0)  # if the first n are wrong: true pixels lost, ...
    added = (1 - own).cumsum(0)  # ... and false ones won
    jaccard = 1 - (total - missed) / (total + added)
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
