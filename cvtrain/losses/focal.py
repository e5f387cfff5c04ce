"""Focal loss over a softmax.

Paper: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", arXiv 1708.02002,
equation 4, over a softmax in place of the paper's sigmoids: one label an image. Written from the
paper. Deviation: no alpha, the weight that balances foreground against background there.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FocalLoss(nn.Module):
    """``-(1 - p)^gamma log p`` of the true class, the mean over a batch.

    Args:
        gamma: how much less an image counts that is classified well; 0 is cross-entropy.

    Raises:
        ValueError: ``gamma`` is negative.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma={gamma} must be at least 0")
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``(B, K)`` logits and int64 ``(B,)`` labels -> scalar."""
        log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)  # (B,)
        rest = (-log_p.expm1()).clamp(min=1e-12)  # 1 - p; at 0 the gradient of a root is not finite
        return -(rest**self.gamma * log_p).mean()
