"""One prediction for each object, so that the sum of the costs is smallest: Hungarian matching.

Papers: Carion et al. 2020, "DETR", arXiv 2005.12872, section 3.1; Zhu et al. 2020, "Deformable
DETR", arXiv 2010.04159, whose cost of the class is made of the focal loss. The assignment is
scipy's, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.boxes import center_size, corners, pairwise

_NO_NUMBER = 1e6
"""The cost of a prediction that is no number, in place of it."""


@dataclass(frozen=True)
class Costs:
    """What a prediction costs an object: the parts' weights, and the focal loss's constants.

    Attributes:
        classes: of what the focal loss would fall by, were the prediction that object.
        l1: of the L1 distance of center and sides, in shares of the image.
        giou: of minus the GIoU.
        alpha, gamma: of the focal loss.

    Raises:
        ValueError: a number out of range.
    """

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if min(self.classes, self.l1, self.giou, self.gamma) < 0 or not 0 <= self.alpha <= 1:
            raise ValueError(f"{self}: weights and gamma from 0, alpha in 0..1")

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, boxes: Tensor, objects: Tensor, labels: Tensor, scale: Tensor
    ) -> Tensor:
        """Float32 ``(..., Q, N)``: what each prediction would cost each object.

        Args:
            logits: ``(..., Q, K)``.
            boxes: ``(..., Q, 4)`` x, y of the center, width, height in shares of the image.
            objects: ``(N, 4)`` xyxy pixels.
            labels: int64 ``(N,)``.
            scale: ``(4,)`` width, height, width, height of the image, pixels.
        """
        signed = logits.float()[..., labels]  # (..., Q, N)
        there, absent = F.logsigmoid(signed), F.logsigmoid(-signed)  # log p, log (1 - p)
        gained = -self.alpha * (self.gamma * absent).exp() * there
        spared = -(1 - self.alpha) * (self.gamma * there).exp() * absent
        distance = torch.cdist(boxes, center_size(objects) / scale, p=1)  # (..., Q, N)
        flat = corners(boxes * scale).flatten(0, -2)
        overlap = pairwise(flat, objects, "giou").view_as(distance)
        return self.classes * (gained - spared) + self.l1 * distance - self.giou * overlap


def assign(costs: Sequence[Tensor]) -> list[list[tuple[Tensor, Tensor]]]:
    """The cheapest assignments.

    Args:
        costs: for each image ``(L, Q, N)``, L problems of Q predictions and N objects.

    Returns:
        For each image and problem int64 ``(P,)`` predictions, in order, and their objects;
        P is the smaller of Q and N: of more objects than predictions some get none.
    """
    device = costs[0].device
    # One transfer of all, for the device to be waited for once.
    flat = torch.cat([cost.flatten() for cost in costs]).nan_to_num(_NO_NUMBER, _NO_NUMBER).cpu()
    parts = flat.split([cost.numel() for cost in costs])
    found = []
    for part, cost in zip(parts, costs, strict=True):
        solved = [linear_sum_assignment(problem) for problem in part.view(cost.shape).numpy()]
        found.append(
            [(torch.from_numpy(q).to(device), torch.from_numpy(n).to(device)) for q, n in solved]
        )
    return found
