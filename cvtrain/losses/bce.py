"""Binary cross-entropy: each class is judged by itself, an image has any number of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from cvtrain.losses.targets import soft
from cvtrain.losses.weights import ClassWeighted, positive_weights


class BinaryCrossEntropy(ClassWeighted):
    """``-(w_c t_c log p_c + (1 - t_c) log(1 - p_c))``, the mean over a batch and its K classes.

    Args:
        label_smoothing: e pulls the targets 0 and 1 to ``e / 2`` and ``1 - e / 2``.
        class_weights: what a positive of a class counts against a negative of it (torch's
            ``pos_weight``); ``auto``: (images without the class) / (images with it); ``effective``:
            the same of effective numbers.

    Raises:
        ValueError: a share outside 0..1, wrong weights.
    """

    multi_label = True

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: str | Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 1")
        self.label_smoothing = label_smoothing

    def _counted(self, counts: list[int], images: int, kind: str) -> list[float]:
        return positive_weights(counts, images, kind)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits ``(B, K)`` and labels int64 ``(B,)`` or ``(B, K)`` in 0..1 -> scalar."""
        present = soft(targets, logits.shape[1])
        if self.label_smoothing:
            present = present * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, present, pos_weight=self._current())
