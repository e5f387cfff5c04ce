"""SimOTA: which places of a dense detector answer for which object, judged by what they predict.

Papers: Ge et al. 2021, "YOLOX", arXiv 2107.08430, section 2.1; Ge et al. 2021, "OTA", arXiv
2103.14259, section 3.3 (dynamic k, the center prior). For each object, of the places around its
center (a square of 2 x 2.5 strides on every level) those k of least cost are positive:

    cost = class cross-entropy + 3 x (-log IoU)

k is the sum of the object's ten highest IoUs there, rounded down, at least 1. A place that several
objects choose goes to the one to which it costs least. The class probability is the root of class
probability x objectness, the cross-entropy is summed over the classes.

Where the paper is silent: places of the square that lie in the object come before those that do
not, whatever they cost.

Only the places of the squares, 75 or fewer an object, are ever looked at, those of all objects of a
batch at once; so the cost does not grow with the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.boxes import elementwise

TOP = 10
"""IoUs that are added up to an object's k."""
IOU_WEIGHT = 3.0
"""Of the IoU term beside the class term."""
OUTSIDE = 1e5
"""Added to the cost of a place outside the object: more than any cost."""
EPS = 1e-8
"""Added to an IoU before its logarithm."""


class Objects(NamedTuple):
    """The objects of a batch, image after image.

    Attributes:
        image: int64 ``(M,)`` the image each is in.
        boxes: float32 ``(M, 4)`` xyxy pixels.
        labels: int64 ``(M,)``.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor


class Grid(NamedTuple):
    """The places of a pyramid's levels, row by row, level after level: A in all.

    Attributes:
        sizes: rows and columns of each level.
        strides: pixels.
    """

    sizes: list[tuple[int, int]]
    strides: list[int]

    @property
    def counts(self) -> list[int]:
        """Places of each level."""
        return [rows * columns for rows, columns in self.sizes]


def around_centers(boxes: Tensor, grid: Grid, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """The places within ``radius`` strides of each box's center, across and down.

    Args:
        boxes: ``(M, 4)`` xyxy pixels.
        grid: the places.
        radius: strides.

    Returns:
        int64 ``(M, C)`` places in 0..A-1; bool ``(M, C)`` which of them count (the others are too
        far or beyond the map; their place is 0); bool ``(M, C)`` which lie inside the box.
    """
    reach = max(0, math.ceil(radius - 0.5))
    step = torch.arange(-reach, reach + 1, device=boxes.device)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    places, near, inside = [], [], []
    first = 0
    for (rows, columns), stride in zip(grid.sizes, grid.strides, strict=True):
        middle = center / stride  # (M, 2), cells
        cell = middle.floor().long()[:, :, None] + step  # (M, 2, n)
        limit = cell.new_tensor([columns, rows])[:, None]
        offset = cell + 0.5 - middle[:, :, None]
        good = (cell >= 0) & (cell < limit) & (offset.abs() < radius)
        pixel = (cell + 0.5) * stride
        within = (pixel > boxes[:, :2, None]) & (pixel < boxes[:, 2:, None])
        place = first + cell[:, 1, :, None] * columns + cell[:, 0, None, :]  # (M, n, n)
        ok = good[:, 1, :, None] & good[:, 0, None, :]
        places.append(torch.where(ok, place, 0).flatten(1))  # (M, n * n)
        near.append(ok.flatten(1))
        inside.append((within[:, 1, :, None] & within[:, 0, None, :]).flatten(1))
        first += rows * columns
    return torch.cat(places, 1), torch.cat(near, 1), torch.cat(inside, 1)


def class_costs(
    logits: Tensor, objectness: Tensor, objects: Objects, rows: Tensor, near: Tensor
) -> Tensor:
    """Binary cross-entropy of the class scores, summed over the classes: float32 ``(M, C)``.

    Args:
        logits: float32 ``(B * A, K)``.
        objectness: float32 ``(B * A,)``, logits.
        objects: of the batch.
        rows: int64 ``(M, C)`` into the first two.
        near: bool ``(M, C)``; the costs of the others are not used.
    """
    used = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    used[rows[near]] = True
    some = used.nonzero().flatten()  # (U,)
    nth = used.cumsum(0) - 1  # where each place stands among those
    # log of sqrt(p q), and of 1 - sqrt(p q), as binary_cross_entropy cuts them off
    score = (F.logsigmoid(logits[some]) + F.logsigmoid(objectness[some])[:, None]) / 2  # (U, K)
    yes = score.clamp(min=-100)
    no = torch.log1p(-score.exp()).clamp(min=-100)
    row = torch.where(near, nth[rows], 0)
    label = objects.labels[:, None].expand_as(row)
    if not len(some):
        return rows.new_zeros(rows.shape, dtype=torch.float32)
    return no[row, label] - yes[row, label] - no.sum(dim=1)[row]


@torch.no_grad()
def simota(
    logits: Tensor,
    objectness: Tensor,
    boxes: Tensor,
    objects: Objects,
    grid: Grid,
    radius: float = 2.5,
) -> tuple[Tensor, Tensor]:
    """Assign the places of a batch.

    Args:
        logits: float32 ``(B, A, K)``.
        objectness: float32 ``(B, A)``, logits.
        boxes: float32 ``(B, A, 4)`` predicted, xyxy pixels.
        objects: of the batch, M of them.
        grid: of the A places.
        radius: places so many strides from an object's center are candidates.

    Returns:
        int64 ``(P,)`` positive places, as rows of the flattened ``(B * A)``, ascending; and int64
        ``(P,)`` the object of each.
    """
    total = boxes.shape[1]
    places, near, inside = around_centers(objects.boxes, grid, radius)
    rows = places + objects.image[:, None] * total  # (M, C)
    predicted = boxes.flatten(0, 1)[rows]  # (M, C, 4)
    iou = elementwise(predicted, objects.boxes[:, None]) * near
    cost = class_costs(logits.flatten(0, 1), objectness.flatten(), objects, rows, near)
    cost = cost - IOU_WEIGHT * (iou + EPS).log() + OUTSIDE * ~inside
    cost = cost.masked_fill(~near, torch.inf)
    k = iou.topk(min(TOP, iou.shape[1]), dim=1).values.sum(dim=1).long().clamp(min=1)  # (M,)
    order = cost.argsort(dim=1, stable=True)
    nth = torch.empty_like(order)
    nth.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    which, column = ((nth < k[:, None]) & near).nonzero(as_tuple=True)  # (S,) objects, candidates
    return _cheapest(which, rows[which, column], cost[which, column], len(objectness) * total)


def _cheapest(which: Tensor, rows: Tensor, cost: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Pairs (object, place) -> the places, each with the object of least cost, or the first."""
    least = cost.new_full((total,), torch.inf).scatter_reduce(0, rows, cost, "amin")
    tied = cost == least[rows]
    which, rows = which[tied], rows[tied]
    nobody = torch.iinfo(torch.int64).max
    owner = which.new_full((total,), nobody).scatter_reduce(0, rows, which, "amin")
    positive = (owner != nobody).nonzero().flatten()
    return positive, owner[positive]
