"""The loss of YOLOv2 and YOLO9000 (2016).

Paper: Redmon, Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv 1612.08242. The paper gives the
parametrisation (sigmoids, exponentials, "objectness predicts the IOU of the ground truth and the
proposed box") and says of the loss no more than that it is YOLO's, of squares. Written from it, and
from the settings published with the networks (thresh 0.6, object 5, no object, classes and
coordinates 1). What is taken where the paper is silent:

- An object belongs to the cell that holds its center, and there to the anchor whose shape it
  overlaps most, both put concentric. Of two that want one anchor of one cell the first in the
  target's order gets it; the others are counted (``num_lost_objects``).
- Coordinates: the squared errors of the sigmoids, and of t_w, t_h against the logarithms of the
  object's sides over the anchor's, times 2 - w h, w and h in shares of the image: small objects
  count for up to twice as much.
- Objectness of that box: squared error against its IoU with the object, through which no gradient
  flows. Every other box is to say 0, but for those whose IoU with any object is above
  ``ignore_iou``, and those that lie for the most part in a region to ignore.
- Classes: the cross-entropy of the softmax (paper: section 4's are over a tree), at those boxes.
- In the first ``prior_images`` images all other boxes are drawn to their anchors: the squared
  distances of the sigmoids from 0.5 and of t_w, t_h from 0, times ``prior``.
- Sums over an image, the mean over a batch.
- An image with a label and no boxes (section 4.3): of all boxes the one that predicts this class
  with the highest probability gets the class loss, and is assumed to overlap the object by
  ``assumed_iou`` at least: its objectness is drawn up to that from below. It has no other losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.anchors import shape_iou
from cvtrain.layers.boxes import area, clip, covered, elementwise, objects_of, pairwise
from cvtrain.layers.grid_boxes import grid_boxes
from cvtrain.structures import Target

ClassLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(M, C)`` and labels ``(M,)`` -> ``(M,)``, minus the logarithm of the probability."""

IGNORE_SHARE = 0.5
"""A box of which more lies in a region to ignore is not told to say 0."""
SMALLEST = 1e-3
"""Sides of objects are taken to be no smaller, pixels: a logarithm is taken of them."""


@dataclass(frozen=True)
class Grid:
    """What a network says of a batch, and where.

    Attributes:
        raw: float32 ``(B, h, w, A, 5 + C)``: t_x, t_y, t_w, t_h, t_o, then C class numbers.
        anchors: float32 ``(A, 2)`` widths and heights, pixels.
        cell: height, width of a cell, pixels.
        image_size: height, width in pixels.
    """

    raw: Tensor
    anchors: Tensor
    cell: tuple[float, float]
    image_size: tuple[int, int]

    def boxes(self) -> Tensor:
        """``(B, h * w * A, 4)`` xyxy pixels, not clipped."""
        return grid_boxes(self.raw[..., :4], self.anchors, self.cell).flatten(1, 3)


class YOLOv2Loss(nn.Module):
    """Squared errors of boxes and objectness, cross-entropy of classes.

    Args:
        coord: weight of the coordinates.
        objectness: weight of the objectness of boxes that answer for an object.
        no_object: weight of the objectness of all others.
        classes: weight of the classes.
        ignore_iou: boxes that overlap an object by more need not say 0, 0..1.
        prior: weight of the distance to the anchors, at the start.
        prior_images: images, of each process, for which it is counted; 0: none.
        assumed_iou: overlap assumed in images that have a label alone, 0..1.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        coord: float = 1.0,
        objectness: float = 5.0,
        no_object: float = 1.0,
        classes: float = 1.0,
        ignore_iou: float = 0.6,
        prior: float = 0.01,
        prior_images: int = 12800,
        assumed_iou: float = 0.3,
    ) -> None:
        super().__init__()
        weights = {"coord": coord, "objectness": objectness, "no_object": no_object}
        for name, value in (weights | {"classes": classes, "prior": prior}).items():
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0")
        for name, value in {"ignore_iou": ignore_iou, "assumed_iou": assumed_iou}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in 0..1")
        if prior_images < 0:
            raise ValueError(f"prior_images={prior_images} must be at least 0")
        self.coord, self.objectness, self.no_object = coord, objectness, no_object
        self.classes, self.ignore_iou = classes, ignore_iou
        self.prior, self.prior_images, self.assumed_iou = prior, prior_images, assumed_iou

    def forward(
        self, grid: Grid, targets: list[Target], class_loss: ClassLoss, seen: int | None = None
    ) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            grid: what the network says.
            targets: B targets in network pixels; one with a ``label`` and no ``boxes`` is an image
                of that class whose boxes are not known.
            class_loss: of one box and its label.
            seen: training images before this batch; None: in validation.

        Returns:
            Scalars ``coord``, ``objectness``, ``no_object``, ``classes``, ``prior``, weighted;
            counts ``num_objects``, (of which) ``num_lost_objects`` and ``num_labeled_images``.
        """
        boxes = grid.boxes().detach()  # (B, P, 4), P = h w A
        early = seen is not None and seen < self.prior_images
        names = ("coord", "objectness", "no_object", "classes", "prior")
        sums = {name: [grid.raw.sum() * 0] for name in names}
        objects = lost = labeled = 0
        for i, target in enumerate(targets):
            flat = grid.raw[i].flatten(0, 2)  # (P, 5 + C)
            if target.boxes is None and target.label is not None:
                found = self._labeled(flat, target.label.to(flat.device), class_loss)
                labeled += 1
            else:
                found, counts = self._image(grid, flat, boxes[i], target, class_loss, early)
                objects, lost = objects + counts[0], lost + counts[1]
            for name, value in found.items():
                sums[name].append(value)
        terms = {name: torch.stack(values).sum() / len(targets) for name, values in sums.items()}
        counted = {"objects": objects, "lost_objects": lost, "labeled_images": labeled}
        return terms | {f"num_{k}": boxes.new_tensor(float(v)) for k, v in counted.items()}

    def _image(
        self,
        grid: Grid,
        flat: Tensor,
        boxes: Tensor,
        target: Target,
        class_loss: ClassLoss,
        early: bool,
    ) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """Terms of an image with boxes, or none; its objects, and those that found no place."""
        truth, labels, ignored = objects_of(target, flat.device)
        slot, aim = assign(grid, truth)
        kept = first_of_each(slot, len(flat))  # (M,)
        slot, aim, mine, labels = slot[kept], aim[kept], truth[kept], labels[kept]
        code, objectness = flat[:, :4], flat[:, 4].sigmoid()

        message = torch.cat([code[slot, :2].sigmoid(), code[slot, 2:]], dim=1)  # (M, 4)
        height, width = grid.image_size
        weight = 2 - (area(mine) / (height * width)).clamp(max=1)  # (M,)
        iou = elementwise(boxes[slot], mine)
        free = torch.ones_like(objectness, dtype=torch.bool)  # (P,): answers for no object
        free[slot] = False
        empty = free
        if len(truth):
            empty = empty & (pairwise(boxes, truth).amax(dim=1) <= self.ignore_iou)
        empty = empty & (covered(clip(boxes, grid.image_size), ignored) <= IGNORE_SHARE)
        terms = {
            "coord": self.coord * (weight * (message - aim).square().sum(dim=1)).sum(),
            "objectness": self.objectness * (objectness[slot] - iou).square().sum(),
            "no_object": self.no_object * (objectness.square() * empty).sum(),
            "classes": self.classes * class_loss(flat[slot, 5:], labels).sum(),
        }
        if early:
            away = (code[:, :2].sigmoid() - 0.5).square() + code[:, 2:].square()  # (P, 2)
            terms["prior"] = self.prior * (away.sum(dim=1) * free).sum()
        return terms, (len(truth), len(truth) - len(mine))

    def _labeled(self, flat: Tensor, label: Tensor, class_loss: ClassLoss) -> dict[str, Tensor]:
        """Terms of an image whose class is known, and no box."""
        with torch.no_grad():
            surprise = class_loss(flat[:, 5:], label.expand(len(flat)))  # (P,)
            best = (F.logsigmoid(flat[:, 4]) - surprise).argmax()
        short = (self.assumed_iou - flat[best, 4].sigmoid()).clamp(min=0)
        return {
            "objectness": self.objectness * short.square(),
            "classes": self.classes * class_loss(flat[best, 5:][None], label[None]).sum(),
        }


def assign(grid: Grid, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the P boxes answers for each object, and what it is to say.

    Args:
        grid: of the network.
        boxes: ``(N, 4)`` xyxy pixels.

    Returns:
        int64 ``(N,)`` in 0..P-1, P = h w A; and float32 ``(N, 4)``: sigmoids of t_x, t_y, then t_w,
        t_h.
    """
    rows, columns, count = grid.raw.shape[1:4]
    cell = boxes.new_tensor([grid.cell[1], grid.cell[0]])
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=SMALLEST)  # (N, 2)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 / cell  # in cells
    limit = torch.tensor([columns - 1, rows - 1], device=boxes.device)
    corner = center.floor().clamp(min=0).minimum(limit)  # the far edge belongs to the last cell
    anchor = shape_iou(sides, grid.anchors).argmax(dim=1)
    column, row = corner.long().unbind(1)
    slot = (row * columns + column) * count + anchor
    aim = torch.cat([center - corner, (sides / grid.anchors[anchor]).log()], dim=1)
    return slot, aim


def first_of_each(slot: Tensor, size: int) -> Tensor:
    """int64 ``(M,)``: where each value (below ``size``) of ``slot`` ``(N,)`` stands first."""
    order = torch.arange(len(slot), device=slot.device)
    first = torch.full((size,), len(slot), device=slot.device)
    first = first.scatter_reduce(0, slot, order, "amin")
    return (first[slot] == order).nonzero().flatten()
