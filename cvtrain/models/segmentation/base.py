"""What all semantic segmentation models share: logits at the image's size, a loss of pixels."""

from __future__ import annotations

from torch import Tensor, nn

from cvtrain.losses.boundary_weighted import BoundaryWeighted
from cvtrain.losses.sums import SumLoss
from cvtrain.losses.targets import mask_targets
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target


class SegmentationModel(Model):
    """``forward`` takes images ``(B, C, H, W)`` and gives logits float32 ``(B, K, H, W)``.

    Args:
        loss: takes logits ``(B, K, H, W)`` and class maps int64 ``(B, H, W)``, 255 void, gives a
            scalar. The parts of a ``SumLoss`` are reported one by one.
        num_classes: K.

    Attributes:
        any_size: whether images of any size are taken; False: of ``data.image_size`` alone.
        context: pixels on each side of a tile that its logits depend on and that it wants to be
            shown. Above 0 ``forward`` also takes how many there are at the left, right, top and
            bottom of the images, and gives no logits for them.

    Raises:
        ValueError: the loss names a class that there is not.
    """

    any_size: bool = True
    context: int = 0

    def __init__(self, loss: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for part in loss.modules():
            if isinstance(part, BoundaryWeighted) and part.background >= num_classes:
                raise ValueError(
                    f"loss.background={part.background}: the {num_classes} classes count from 0"
                )
        self.criterion = loss

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Term ``pixels``, or a term for each part of a sum."""
        masks = mask_targets(targets)
        if isinstance(self.criterion, SumLoss):
            return self.criterion.terms(outputs, masks)
        return {"pixels": self.criterion(outputs, masks)}

    def decode(self, outputs: Tensor) -> list[Prediction]:
        return [Prediction(mask=logits.argmax(dim=0), logits=logits) for logits in outputs]
