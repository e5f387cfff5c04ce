"""Focal loss over a softmax.

Paper: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", arXiv 1708.02002,
equations 4 and 5, over a softmax in place of the paper's sigmoids: one label an image or pixel.
Written from the paper. The paper's alpha is ``class_weights`` here; for soft targets (mixed images)
the classes' terms are added up by their shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.losses.targets import over_pixels, soft
from cvtrain.losses.weights import ClassWeighted
from cvtrain.structures import IGNORE_INDEX


class FocalLoss(ClassWeighted):
    """``-sum_c w_c t_c (1 - p_c)^gamma log p_c``, the mean over a batch.

    Args:
        gamma: how much less an image counts that is classified well; 0 is cross-entropy.
        class_weights: see ``ClassWeighted``.

    Raises:
        ValueError: ``gamma`` is negative, wrong weights.
    """

    def __init__(
        self, gamma: float = 2.0, class_weights: str | Sequence[float] | None = None
    ) -> None:
        super().__init__(class_weights)
        if gamma < 0:
            raise ValueError(f"gamma={gamma} must be at least 0")
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar.

        Args:
            logits: ``(B, K)``, or ``(B, K, H, W)`` of pixels.
            targets: labels int64 ``(B,)`` or shares ``(B, K)``; of pixels int64 ``(B, H, W)``, 255
                void.
        """
        if logits.ndim == 4:
            return self._pixels(logits, targets)
        shares = soft(targets, logits.shape[1])
        weights = self._current()
        if weights is not None:
            shares = shares * weights  # (B, K) * (K,)
        log_p = F.log_softmax(logits, dim=1)
        rest = (-log_p.expm1()).clamp(min=1e-12)  # 1 - p; at 0 the gradient of a root is not finite
        return -(shares * rest**self.gamma * log_p).sum(dim=1).mean()

    def _pixels(self, logits: Tensor, masks: Tensor) -> Tensor:
        labels = masks.masked_fill(masks == IGNORE_INDEX, 0)
        log_p = F.log_softmax(logits.float(), dim=1).gather(1, labels[:, None])[:, 0]  # (B, H, W)
        rest = (-log_p.expm1()).clamp(min=1e-12)
        losses = -(rest**self.gamma) * log_p
        weights = self._current()
        if weights is not None:
            losses = losses * weights[labels]
        return over_pixels(losses, masks)


def sigmoid_focal(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """The paper's own focal loss, of detectors: every class a sigmoid.

    torchvision's numbers; its gradient is no number where gamma is below 1 and a prediction
    certain, which is why it is written here on logarithms.

    Args:
        logits: any shape.
        targets: 0 or 1 (or bool), the same shape.
        alpha: weight of the positives, 1 - alpha that of the negatives; 0..1.
        gamma: how much less an example counts that is classified well.

    Returns:
        float32, the same shape.
    """
    logits, targets = logits.float(), targets.bool()
    signed = torch.where(targets, logits, -logits)  # the logit of what is true
    weight = torch.where(targets, alpha, 1 - alpha)
    return -weight * (gamma * F.logsigmoid(-signed)).exp() * F.logsigmoid(signed)
