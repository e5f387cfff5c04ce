"""The loss of YOLO (2015).

Paper: Redmon, Divvala, Girshick, Farhadi, "You Only Look Once: Unified, Real-Time Object
Detection", arXiv 1506.02640, equation 3. Written from the paper; where it is silent, as below.

- An object belongs to the cell that holds its center. A cell takes one object, the first in the
  target's order; objects lost to an occupied cell are counted (``num_lost_objects``).
- Of a cell's B boxes, the one of highest IoU with the object is responsible; where none overlaps
  it, the one nearest in root mean squared error of x, y, w, h (darknet's rule), so that a box that
  covers nothing yet still learns where to go.
- The confidence target of the responsible box is that IoU, through which no gradient flows; of
  every other box, of the same cell too, it is 0.
- The network predicts the square roots of w and h directly, as darknet does: the paper's
  difference of roots without the infinite gradient of a root at 0 and its undefined values below.
- Sums over the parts of an image, mean over the batch.
- Targets marked ``ignore`` (crowd, difficult) are no objects: they take no cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvtrain.structures import Target


@dataclass
class Assignment:
    """M objects of a batch and the cells they belong to.

    Attributes:
        cell: int64 ``(M,)``: ``(image * S + row) * S + column``.
        kept: bool ``(M,)``: has the cell; False: ignored, or lost to an object before it.
        counted: bool ``(M,)``: is an object (not ignored).
        xywh: float32 ``(M, 4)``: center relative to the cell, width and height relative to the
            image, all in 0..1.
        labels: int64 ``(M,)``.
    """

    cell: Tensor
    kept: Tensor
    counted: Tensor
    xywh: Tensor
    labels: Tensor


def assign(
    targets: list[Target], grid: int, image_size: tuple[int, int], device: torch.device
) -> Assignment:
    """Which cell each object of a batch belongs to; no Python loop over objects.

    Args:
        targets: one an image, with ``boxes`` and ``labels``, and ``ignore`` where it applies.
        grid: S.
        image_size: height, width in pixels.
        device: where the result lies.
    """
    boxes = [t.boxes if t.boxes is not None else torch.zeros(0, 4) for t in targets]
    labels = [
        t.labels if t.labels is not None else torch.zeros(0, dtype=torch.long) for t in targets
    ]
    counts = torch.tensor([len(b) for b in boxes], device=device)
    image = torch.repeat_interleave(
        torch.arange(len(targets), device=device), counts, output_size=sum(map(len, boxes))
    )
    ignore = [
        t.ignore if t.ignore is not None else torch.zeros(len(b), dtype=torch.bool, device=b.device)
        for t, b in zip(targets, boxes, strict=True)
    ]
    xyxy = torch.cat([b.to(device) for b in boxes]).float()  # (M, 4)
    counted = ~torch.cat([i.to(device) for i in ignore])
    height, width = image_size
    size = xyxy.new_tensor([width, height])
    center = (xyxy[:, :2] + xyxy[:, 2:]) / 2 / size * grid  # (M, 2) in cells
    corner = center.floor().clamp(0, grid - 1)  # a center on the far edge belongs to the last cell
    column, row = corner.long().unbind(1)
    cell = (image * grid + row) * grid + column
    # The first counted object of each cell keeps it.
    order = torch.arange(len(cell), device=device)
    first = torch.full((len(targets) * grid * grid,), len(cell), device=device)
    first = first.scatter_reduce(0, cell, order.where(counted, len(cell)), "amin")
    return Assignment(
        cell=cell,
        kept=first[cell] == order,
        counted=counted,
        xywh=torch.cat([center - corner, (xyxy[:, 2:] - xyxy[:, :2]) / size], dim=1),
        labels=torch.cat([v.to(device) for v in labels]),
    )


class YOLOLoss(nn.Module):
    """The multi-part squared error over an S x S grid.

    Args:
        lambda_coord: weight of x, y and the roots of w, h of responsible boxes.
        lambda_obj: weight of the confidence of responsible boxes.
        lambda_noobj: weight of the confidence of all other boxes.
        lambda_classes: weight of the class probabilities of cells with an object.
    """

    def __init__(
        self,
        lambda_coord: float = 5.0,
        lambda_obj: float = 1.0,
        lambda_noobj: float = 0.5,
        lambda_classes: float = 1.0,
    ) -> None:
        super().__init__()
        self.lambda_coord = lambda_coord
        self.lambda_obj = lambda_obj
        self.lambda_noobj = lambda_noobj
        self.lambda_classes = lambda_classes

    def forward(
        self, outputs: Tensor, targets: list[Target], image_size: tuple[int, int], num_classes: int
    ) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            outputs: float ``(N, S, S, 5B + C)``: per cell B times (x, y, root of w, root of h,
                confidence), then C class probabilities.
            targets: N targets in network pixels.
            image_size: height, width in pixels.
            num_classes: C.

        Returns:
            Scalars ``coord``, ``obj``, ``noobj``, ``classes``, weighted; counts ``num_objects``
            (of which) ``num_lost_objects``.
        """
        n, grid, _, depth = outputs.shape
        per_cell = (depth - num_classes) // 5  # B
        cells = outputs.float().reshape(n * grid * grid, depth)
        boxes = cells[:, : 5 * per_cell].reshape(-1, per_cell, 5)  # (N S S, B, 5)
        found = assign(targets, grid, image_size, outputs.device)
        kept = found.kept.float()

        mine = boxes[found.cell]  # (M, B, 5): the boxes of each object's cell
        iou = _cell_iou(mine[..., :4].detach(), found.xywh, grid)  # (M, B)
        which = _responsible(mine[..., :4].detach(), found.xywh, iou, grid)  # (M,)
        rows = torch.arange(len(which), device=which.device)
        box, iou = mine[rows, which], iou[rows, which]  # (M, 5), (M,)

        root = torch.cat([found.xywh[:, :2], found.xywh[:, 2:].clamp(min=0).sqrt()], dim=1)
        coord = (box[:, :4] - root).square().sum(1) * kept
        obj = (box[:, 4] - iou).square() * kept
        responsible = torch.zeros(boxes.shape[:2], device=boxes.device)  # (N S S, B) of 0, 1
        slot = found.cell * per_cell + which
        responsible.view(-1).scatter_reduce_(0, slot, kept, "amax")
        noobj = boxes[..., 4].square() * (1 - responsible)
        one_hot = nn.functional.one_hot(found.labels, num_classes).float()  # (M, C)
        classes = (cells[found.cell, 5 * per_cell :] - one_hot).square().sum(1) * kept
        return {
            "coord": self.lambda_coord * coord.sum() / n,
            "obj": self.lambda_obj * obj.sum() / n,
            "noobj": self.lambda_noobj * noobj.sum() / n,
            "classes": self.lambda_classes * classes.sum() / n,
            "num_objects": found.counted.sum(),
            "num_lost_objects": (found.counted & ~found.kept).sum(),
        }


def _relative_to_image(boxes: Tensor, grid: int) -> Tensor:
    """x, y relative to a cell -> relative to the image, from that cell's corner."""
    return torch.cat([boxes[..., :2] / grid, boxes[..., 2:]], dim=-1)


def _cell_iou(predicted: Tensor, truth: Tensor, grid: int) -> Tensor:
    """IoU of each object with its cell's boxes.

    Args:
        predicted: ``(M, B, 4)`` x, y relative to the cell, roots of w, h relative to the image.
        truth: ``(M, 4)`` x, y, w, h.
        grid: S.

    Returns:
        ``(M, B)`` in 0..1.
    """
    a = _relative_to_image(torch.cat([predicted[..., :2], predicted[..., 2:].square()], -1), grid)
    b = _relative_to_image(truth, grid)[:, None]  # (M, 1, 4)
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    overlap = (high - low).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - overlap
    return overlap / union.clamp(min=1e-9)


def _responsible(predicted: Tensor, truth: Tensor, iou: Tensor, grid: int) -> Tensor:
    """Index int64 ``(M,)`` of the responsible box among B: highest IoU, without any, least RMSE."""
    a = _relative_to_image(torch.cat([predicted[..., :2], predicted[..., 2:].square()], -1), grid)
    error = (a - _relative_to_image(truth, grid)[:, None]).square().sum(-1)  # (M, B)
    best, index = iou.max(dim=1)
    return torch.where(best > 0, index, error.argmin(dim=1))
