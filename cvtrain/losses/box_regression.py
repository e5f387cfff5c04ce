"""Losses of regressed boxes, chosen by ``loss=`` where a detector leaves the choice.

``smooth_l1``: on the codes (Girshick 2015, arXiv 1504.08083, equation 3). ``iou``, ``giou``,
``diou``, ``ciou``: one minus the overlap of the decoded boxes (Yu et al. 2016, Rezatofighi et al.
2019, Zheng et al. 2020); see layers/boxes.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.boxes import Overlap, elementwise


class Coder(Protocol):
    """What turns boxes into codes and back, see layers/coder.py."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """``(N, 4)`` boxes relative to ``(N, 4)`` anchors -> ``(N, 4)`` codes."""

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """``(N, 4)`` codes and ``(N, 4)`` anchors -> ``(N, 4)`` boxes."""


def smooth_l1(predicted: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """``(..., 4)`` and ``(..., 4)`` -> float32 ``(...,)``, the sum over the four numbers.

    Quadratic up to ``beta``, linear beyond; 0: the absolute difference.
    """
    loss = F.smooth_l1_loss(predicted.float(), target.float(), reduction="none", beta=beta)
    return loss.sum(dim=-1)


def iou_loss(predicted: Tensor, target: Tensor, kind: Overlap = "giou") -> Tensor:
    """``(..., 4)`` and ``(..., 4)`` xyxy pixels -> float32 ``(...,)``: 1 - overlap."""
    return 1 - elementwise(predicted, target, kind)


class BoxLoss(nn.Module, ABC):
    """The loss of N boxes, whichever way it is measured."""

    @abstractmethod
    def codes(self, codes: Tensor, boxes: Tensor, anchors: Tensor, coder: Coder) -> Tensor:
        """Of predicted codes.

        Args:
            codes: ``(N, 4)`` predicted.
            boxes: ``(N, 4)`` the objects, xyxy pixels.
            anchors: ``(N, 4)`` xyxy pixels.
            coder: of the codes.

        Returns:
            float32 ``(N,)``, weighted.
        """


class SmoothL1(BoxLoss):
    """The smooth L1 distance of the codes.

    Args:
        beta: where the parabola ends and the line begins; 0: L1.
        weight: of the box loss beside the class loss.

    Raises:
        ValueError: a number below 0.
    """

    def __init__(self, beta: float = 1.0, weight: float = 1.0) -> None:
        super().__init__()
        if beta < 0 or weight < 0:
            raise ValueError(f"beta={beta} weight={weight} must be at least 0")
        self.beta, self.weight = beta, weight

    def codes(self, codes: Tensor, boxes: Tensor, anchors: Tensor, coder: Coder) -> Tensor:
        return self.weight * smooth_l1(codes, coder.encode(boxes, anchors), self.beta)


class IoULoss(BoxLoss):
    """One minus the overlap of boxes.

    Args:
        kind: iou, giou, diou or ciou.
        weight: of the box loss beside the class loss.

    Raises:
        ValueError: an unknown kind, a weight below 0.
    """

    def __init__(self, kind: Overlap = "giou", weight: float = 1.0) -> None:
        super().__init__()
        if kind not in get_args(Overlap):
            raise ValueError(f"kind={kind}: expected {' | '.join(get_args(Overlap))}")
        if weight < 0:
            raise ValueError(f"weight={weight} must be at least 0")
        self.kind: Overlap = kind
        self.weight = weight

    def codes(self, codes: Tensor, boxes: Tensor, anchors: Tensor, coder: Coder) -> Tensor:
        return self.boxes(coder.decode(codes, anchors), boxes)

    def boxes(self, predicted: Tensor, boxes: Tensor) -> Tensor:
        """``(N, 4)`` and ``(N, 4)`` xyxy pixels -> float32 ``(N,)``, weighted."""
        return self.weight * iou_loss(predicted, boxes, self.kind)
