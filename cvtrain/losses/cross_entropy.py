"""Softmax cross-entropy of images or pixels, with label smoothing, class weights, soft targets.

Papers: label smoothing, Szegedy et al., "Rethinking the Inception Architecture for Computer
Vision", arXiv 1512.00567, section 7. Deviation from torch's weighted mean: a batch's sum is divided
by its images, not by the sum of their weights. So an image counts the same in any batch and on any
process, and means over batches are means over the set. Likewise pixels: a batch's sum is divided by
the number of its pixels that are not void.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from cvtrain.losses.targets import over_pixels
from cvtrain.losses.weights import ClassWeighted
from cvtrain.structures import IGNORE_INDEX


class CrossEntropy(ClassWeighted):
    """``-sum_c w_c t_c log p_c``, the mean over a batch.

    Args:
        label_smoothing: share e of the target spread over all K classes: ``(1 - e) t + e / K``.
        class_weights: see ``ClassWeighted``.

    Raises:
        ValueError: a share outside 0..1, wrong weights.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: str | Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 1")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar.

        Args:
            logits: ``(B, K)``, or ``(B, K, H, W)`` of pixels.
            targets: labels int64 ``(B,)`` or shares ``(B, K)``; of pixels int64 ``(B, H, W)``, 255
                void.
        """
        pixels = logits.ndim == 4
        losses = F.cross_entropy(
            logits.float(),
            targets,
            weight=self._current(),
            label_smoothing=self.label_smoothing,
            ignore_index=IGNORE_INDEX if pixels else -100,  # an image's class may be number 255
            reduction="none",
        )  # (B,) or (B, H, W)
        return over_pixels(losses, targets) if pixels else losses.mean()
