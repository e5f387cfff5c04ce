"""One minus the overlap of the predicted and the true pixels of each class.

Papers: Milletari, Navab, Ahmadi, "V-Net", arXiv 1606.04797 (dice); Rahman & Wang 2016 (the soft
Jaccard index, IoU); Salehi, Erdogmus, Gholipour, "Tversky loss function for image segmentation
using 3D fully convolutional deep networks", arXiv 1706.05721. Written from the papers.

With TP, FP and FN as sums of probabilities over all pixels of a batch that are not void, the index
is ``(TP + smooth) / (TP + alpha FP + beta FN + smooth)``: dice for alpha = beta = 0.5, Jaccard for
alpha = beta = 1. The loss is one minus its mean over the classes that the batch's masks have: a
class that is not there has nothing to overlap with, and its false positives cost the others.
Deviation: Milletari et al. square the probabilities in the denominator of dice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cvtrain.structures import IGNORE_INDEX


class TverskyLoss(nn.Module):
    """One minus the Tversky index, the mean over the classes there are.

    Args:
        alpha: what a false positive counts.
        beta: what a false negative counts; above alpha recall is favored.
        smooth: pixels added above and below: small classes move the loss less.

    Raises:
        ValueError: a number below 0.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> None:
        super().__init__()
        if min(alpha, beta, smooth) < 0:
            raise ValueError(f"alpha={alpha} beta={beta} smooth={smooth} must be at least 0")
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` and class maps int64 ``(B, H, W)``, 255 void -> scalar."""
        probs = logits.float().softmax(dim=1)
        own = of_class(masks, logits.shape[1])  # (B, K, H, W)
        counted = (masks != IGNORE_INDEX)[:, None]  # (B, 1, H, W)
        true = own.sum(dim=(0, 2, 3))  # (K,)
        hit = (probs * own).sum(dim=(0, 2, 3))
        message = (probs * counted).sum(dim=(0, 2, 3))
        weighed = self.alpha * (message - hit) + self.beta * (true - hit)
        index = (hit + self.smooth) / (hit + weighed + self.smooth).clamp(min=1e-7)
        there = true > 0
        return ((1 - index) * there).sum() / there.sum().clamp(min=1)


class DiceLoss(TverskyLoss):
    """One minus the dice coefficient, the F1 of pixels.

    Args:
        smooth: pixels added above and below.

    Raises:
        ValueError: a number below 0.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__(0.5, 0.5, smooth)


class JaccardLoss(TverskyLoss):
    """One minus the intersection over union.

    Args:
        smooth: pixels added above and below.

    Raises:
        ValueError: a number below 0.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__(1.0, 1.0, smooth)


def of_class(masks: Tensor, num_classes: int) -> Tensor:
    """Class maps ``(B, H, W)`` -> bool ``(B, K, H, W)``, a plane a class; void is in none."""
    classes = torch.arange(num_classes, device=masks.device)
    return masks[:, None] == classes[None, :, None, None]
