"""The loss of a set of predictions some of which have been given an object.

Papers: Zhao et al. 2023, "RT-DETR", arXiv 2304.08069, equation 2; Zhang et al. 2021,
"VarifocalNet", arXiv 2008.13367, equation 2; Carion et al. 2020, "DETR", arXiv 2005.12872.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.boxes import center_size, corners, elementwise
from cvtrain.losses.box_regression import IoULoss


class Pairs(NamedTuple):
    """P predictions and the objects that they are to be.

    Attributes:
        row: int64 ``(P,)``, which of R sets of predictions.
        query: int64 ``(P,)``, which prediction there.
        boxes: float32 ``(P, 4)`` xyxy pixels, the objects.
        labels: int64 ``(P,)``, their classes.
    """

    row: Tensor
    query: Tensor
    boxes: Tensor
    labels: Tensor


def varifocal(logits: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Binary cross-entropy that positives are weighted in by their quality, negatives by focus.

    Args:
        logits: any shape.
        quality: the same shape, 0..1: what the probability is to be; 0 where it is a negative.
        alpha: weight of the negatives, from 0.
        gamma: how much less a negative counts that is classified well.

    Returns:
        float32, the same shape: ``-q (q log p + (1 - q) log (1 - p))`` where q > 0, else
        ``-alpha p^gamma log (1 - p)``.
    """
    logits = logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focus = alpha * (gamma * F.logsigmoid(logits)).exp()
    return torch.where(quality > 0, quality, focus) * entropy


def set_terms(
    logits: Tensor,
    boxes: Tensor,
    pairs: Pairs,
    counted: Tensor,
    scale: Tensor,
    overlap: IoULoss,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over each set: of the varifocal loss, the L1 distance and the loss of the overlap.

    A prediction that has an object is to have its class with a probability of the IoU of their
    boxes, all others none.

    Args:
        logits: ``(R, Q, K)``.
        boxes: ``(R, Q, 4)`` x, y of the center, width, height, in shares of the image.
        pairs: who has which object.
        counted: float32 ``(R, Q)``: 0 where a prediction without an object counts for nothing.
        scale: ``(4,)`` width, height, width, height of the images, pixels.
        overlap: loss of two boxes.
        alpha: of ``varifocal``.
        gamma: of ``varifocal``.

    Returns:
        Three float32 ``(R,)``; the distance is that of center and sides in shares of the image.
    """
    mine = boxes[pairs.row, pairs.query]  # (P, 4)
    edges = corners(mine * scale)
    quality = torch.zeros_like(logits)
    iou = elementwise(edges.detach(), pairs.boxes).clamp(0, 1)
    quality[pairs.row, pairs.query, pairs.labels] = iou
    counted = counted.clone()
    counted[pairs.row, pairs.query] = 1.0
    classes = (varifocal(logits, quality, alpha, gamma) * counted[..., None]).sum(dim=(1, 2))
    distance = (mine - center_size(pairs.boxes) / scale).abs().sum(dim=1)
    none = boxes.new_zeros(len(boxes))
    return (
        classes,
        none.index_add(0, pairs.row, distance),
        none.index_add(0, pairs.row, overlap.boxes(edges, pairs.boxes)),
    )
