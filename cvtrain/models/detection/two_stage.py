"""What Faster R-CNN and its successors share: regions are proposed on maps, then classified."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from cvtrain.layers.roi_head import RoIStage
from cvtrain.layers.rpn import RPN, RPNOutputs
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target


class Outputs(NamedTuple):
    """What the network says of a batch, before regions are classified.

    Attributes:
        maps: one a stride.
        anchors: objectness and codes of every anchor.
        proposals: for each image ``(P, 4)`` xyxy pixels, best first.
        image_size: height, width in pixels.
    """

    maps: list[Tensor]
    anchors: RPNOutputs
    proposals: list[Tensor]
    image_size: tuple[int, int]


class TwoStage(Model):
    """A model with a network that proposes and a stage that classifies what is proposed.

    Attributes:
        rpn, stage: set by the constructor.
    """

    rpn: RPN
    stage: RoIStage

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` of any size -> maps ``(B, C_i, H_i, W_i)``."""

    @abstractmethod
    def classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes ``(N_b, 4)`` of each image, R in all -> logits ``(R, 1 + K)``, the background
        first, and codes ``(R, K or 1, 4)``.
        """

    def proposing(self, maps: list[Tensor]) -> list[Tensor]:
        """Those of ``maps`` on which regions are proposed: all."""
        return maps

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` of any size -> maps, and boxes proposed on them."""
        maps = self.maps(images)
        anchors = self.rpn(self.proposing(maps))
        size = (images.shape[-2], images.shape[-1])
        return Outputs(maps, anchors, self.rpn.propose(anchors, size), size)

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``objectness``, ``proposals``, ``classes`` and ``boxes``; counts ``num_objects``
        and ``num_positives`` (foreground regions).
        """
        return {
            **self.rpn.loss(outputs.anchors, targets),
            **self.stage.loss(
                partial(self.classify, outputs.maps), outputs.proposals, targets, self.training
            ),
        }

    def decode(self, outputs: Outputs) -> list[Prediction]:
        classify = partial(self.classify, outputs.maps)
        return self.stage.decode(classify, outputs.proposals, outputs.image_size)
