"""YOLOX (2021): YOLO without anchors, its head split in two, its positives chosen while it learns.

Paper: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430. Written
from the paper.

CSPDarknet with spatial pyramid pooling, a pyramid down and up again (PAFPN), levels at strides 8,
16 and 32. On each a head of its own: 1 x 1, then two branches of two 3 x 3 convolutions, one for
the classes, one for the box and the objectness. A place predicts the center from the left-top
corner of its cell, in strides, and the logarithms of width and height in strides. SimOTA chooses
the positives (layers/simota.py). Binary cross-entropy of classes (their target is the IoU of the
prediction) and objectness, 5 x IoU loss, and an L1 loss of the four numbers once the mixing of
images has stopped; each divided by the positives of the batch. A score is class probability x
objectness.

Trained at sizes from 0.7 to 1.3 times the input (448 to 832 at 640), another every 10 batches.
Sizes nano, tiny, s, m, l: 0.91, 5.06, 9.0, 25.3, 54.2 million parameters at 80 classes (table 3 to
5), nano with depthwise separable convolutions.

Where the paper is silent or we deviate:

- Any backbone serves; neck and head keep the widths of ``size``.
- The loss of boxes is chosen by ``loss=``, 1 - IoU by default.
- Positives are counted by each process for itself.
- Batch norm has torch's momentum and eps. Weights before it start small, see layers/csp.py.
- Probabilities start at ``prior`` (as RetinaNet's); at 0.5 each, the first steps would go into
  thousands of places without an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.anchors import flatten_map, points
from cvtrain.layers.boxes import center_size, corners, covered, elementwise, objects_of
from cvtrain.layers.csp import Scale, Size, conv, conv3, scale_of
from cvtrain.layers.dense_head import prior_bias
from cvtrain.layers.multi_scale import MultiScale, resize_batch
from cvtrain.layers.nms import Method, Selection, best_candidates
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.layers.pafpn import PAFPN
from cvtrain.layers.simota import Grid, Objects, simota
from cvtrain.losses.box_regression import IoULoss
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target

MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""
WIDTHS = (256, 512, 1024)
"""Channels of the neck's levels, large model."""
HEAD = 256
"""Channels of the heads, large model."""
_LARGEST_LOG = 7.0
"""The logarithm of a side is cut to this: 1,100 strides."""


class Outputs(NamedTuple):
    """What the network says of a batch.

    Attributes:
        logits: float32 ``(B, A, K)``, one per class and place.
        objectness: float32 ``(B, A)``, logits.
        codes: float32 ``(B, A, 4)``: x, y of the center from the place, log width and log height,
            in strides.
        corners: float32 ``(A, 2)`` left-top corners of the cells, x, y pixels.
        strides: float32 ``(A,)``.
        grid: sizes and strides of the levels.
        image_size: height, width in pixels.
    """

    logits: Tensor
    objectness: Tensor
    codes: Tensor
    corners: Tensor
    strides: Tensor
    grid: Grid
    image_size: tuple[int, int]


class YOLOX(Model):
    """Backbone, PAFPN and a decoupled head on every level.

    Args:
        backbone: its maps are used.
        loss: of the boxes, one of IoU's kin.
        num_classes: K.
        size: nano, tiny, s, m or l: widths and depths of neck and head.
        box_weight: of the box loss.
        close_epoch: first epoch with the L1 loss, or part of the run below 1; None: never.
        multi_scale: smallest and largest size trained at, in shares of the images'; None: one.
        resize_every: batches in a row of one size.
        seed: the sizes are drawn from it.
        center_radius: places so many strides from an object's center may be positive, above 0.5.
        prior: class probability and objectness at the start, 0..1.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: of each level, the best so many go on to the suppression.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, a loss that is none of boxes' overlap, or a backbone
            without maps near strides 8 to 32.
    """

    with_l1: Tensor

    def __init__(
        self,
        backbone: Backbone,
        loss: IoULoss,
        num_classes: int,
        size: Size = "s",
        box_weight: float = 5.0,
        close_epoch: float | None = None,
        multi_scale: Sequence[float] | None = None,
        resize_every: int = 10,
        seed: int = 0,
        center_radius: float = 2.5,
        prior: float = 0.01,
        nms_iou: float = 0.65,
        nms: Method = "hard",
        min_score: float = 0.01,
        candidates: int = 1000,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if not isinstance(loss, IoULoss):
            raise ValueError("YOLOX regresses boxes: loss=iou, giou, diou or ciou")
        if box_weight < 0:
            raise ValueError(f"box_weight={box_weight} must be at least 0")
        if center_radius <= 0.5:
            raise ValueError(f"center_radius={center_radius} must be above 0.5: a place an object")
        if close_epoch is not None and close_epoch < 0:
            raise ValueError(f"close_epoch={close_epoch} must be at least 0, or null")
        scale = scale_of(size)
        self.num_classes = num_classes
        self.box_weight, self.center_radius = box_weight, center_radius
        self.close_epoch = close_epoch
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.criterion = loss
        self.scales = None
        if multi_scale is not None:
            self.scales = MultiScale(multi_scale, resize_every, MULTIPLE, seed)
        self.batch: tuple[int, int] | None = None  # epoch and batch that is trained
        # In the checkpoint: `eval` reports the loss that the run did.
        self.register_buffer("with_l1", torch.zeros((), dtype=torch.int64))

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        widths = [scale.channels(w) for w in WIDTHS]
        self.neck = PAFPN(backbone.channels, backbone.strides, widths, scale)
        if max(self.neck.sources) < len(backbone.strides) - 1:  # a map beyond stride 32
            self.backbone.truncate(max(self.neck.sources))
        self.heads = nn.ModuleList(Head(w, num_classes, scale, prior) for w in widths)

    def on_batch_start(self, epoch: int, batch: int) -> None:
        self.batch = (epoch, batch)

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """The L1 loss begins with ``close_epoch``."""
        if self.close_epoch is None:
            return
        share = 0 < self.close_epoch < 1
        first = round(self.close_epoch * epochs) if share else self.close_epoch
        self.with_l1.fill_(int(epoch >= first))

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` of any size -> logits, objectness and box of every place."""
        return self._places(self.normalize(images))

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Loss terms at the size of the batch (``on_batch_start``)."""
        x = self.normalize(images)
        if self.scales is not None and self.batch is not None:
            size = self.scales.size(*self.batch, x.shape[-2], x.shape[-1])
            x, targets = resize_batch(x, targets, size)
        return self.compute_loss(self._places(x), targets)

    def _places(self, x: Tensor) -> Outputs:
        """Normalized images ``(B, C, H, W)`` -> logits, objectness and box of every place."""
        image_size = (x.shape[-2], x.shape[-1])
        x = pad_to_multiple(x, MULTIPLE)
        levels = self.neck(self.backbone(x), (x.shape[-2], x.shape[-1]))
        logits, objectness, codes = [], [], []
        for level, head in zip(levels, self.heads, strict=True):
            classes, there, box = head(level)
            logits.append(flatten_map(classes, self.num_classes))
            objectness.append(flatten_map(there, 1))
            codes.append(flatten_map(box, 4))
        grid = Grid([(p.shape[-2], p.shape[-1]) for p in levels], self.neck.strides)
        strides = [
            torch.full((count,), float(stride), device=x.device)
            for count, stride in zip(grid.counts, grid.strides, strict=True)
        ]
        return Outputs(
            logits=torch.cat(logits, dim=1).float(),
            objectness=torch.cat(objectness, dim=1).float().squeeze(-1),  # (B, A, 1) -> (B, A)
            codes=torch.cat(codes, dim=1).float(),
            corners=torch.cat(points(grid.sizes, grid.strides, x.device, offset=0.0)),
            strides=torch.cat(strides),
            grid=grid,
            image_size=image_size,
        )

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``classes``, ``objectness``, ``boxes``, ``l1``; counts of objects and positives."""
        objects, ignored = gathered(targets, outputs.codes.device)
        places = outputs.corners.repeat(len(targets), 1)  # (A, 2) -> (B * A, 2)
        strides = outputs.strides.repeat(len(targets))
        codes = outputs.codes.flatten(0, 1)  # (B, A, 4) -> (B * A, 4)
        boxes = decode_cells(codes.detach(), places, strides)
        positive, owner = simota(
            outputs.logits,
            outputs.objectness,
            boxes.view_as(outputs.codes),
            objects,
            outputs.grid,
            self.center_radius,
        )
        mine, place, stride = codes[positive], places[positive], strides[positive]
        wanted = objects.boxes[owner]
        iou = elementwise(boxes[positive], wanted)  # (P,), without gradient
        truth = torch.zeros_like(outputs.logits.flatten(0, 1)[positive])  # (P, K)
        truth[torch.arange(len(owner), device=owner.device), objects.labels[owner]] = iou
        there = torch.zeros_like(outputs.objectness)
        there.view(-1)[positive] = 1.0
        counted = counted_places(outputs, ignored, there)
        share = max(1, len(positive))
        bce = F.binary_cross_entropy_with_logits
        entropy = bce(outputs.objectness, there, reduction="none")  # (B, A)
        regressed = self.criterion.boxes(decode_cells(mine, place, stride), wanted).sum()
        distance = F.l1_loss(mine, encode_cells(wanted, place, stride), reduction="sum")
        logits = outputs.logits.flatten(0, 1)[positive]
        return {
            "classes": bce(logits, truth, reduction="sum") / share,
            "objectness": (entropy * counted).sum() / share,
            "boxes": self.box_weight * regressed / share,
            "l1": distance * self.with_l1 / share,
            "num_objects": torch.tensor(len(objects.boxes), device=codes.device),
            "num_positives": torch.tensor(len(positive), device=codes.device),
        }

    def decode(self, outputs: Outputs) -> list[Prediction]:
        predictions = []
        for logits, there, codes in zip(*outputs[:3], strict=True):
            scores = logits.sigmoid() * there.sigmoid()[:, None]  # (A, K)
            which, labels = best_candidates(
                scores, outputs.grid.counts, self.candidates, self.select.min_score
            )
            predictions.append(
                self.select(
                    decode_cells(codes[which], outputs.corners[which], outputs.strides[which]),
                    scores[which, labels],
                    labels,
                    image_size=outputs.image_size,
                )
            )
        return predictions


class Head(nn.Module):
    """The decoupled head of one level: ``(B, C, H, W)`` -> logits, objectness, codes.

    Args:
        inputs: C.
        num_classes: K.
        scale: of its widths.
        prior: class probability and objectness at the start.
    """

    def __init__(self, inputs: int, num_classes: int, scale: Scale, prior: float) -> None:
        super().__init__()
        width, depthwise = scale.channels(HEAD), scale.depthwise
        self.stem = conv(inputs, width)
        self.class_tower = nn.Sequential(*(conv3(width, width, 1, depthwise) for _ in range(2)))
        self.box_tower = nn.Sequential(*(conv3(width, width, 1, depthwise) for _ in range(2)))
        self.logits = nn.Conv2d(width, num_classes, 1)
        self.objectness = nn.Conv2d(width, 1, 1)
        self.codes = nn.Conv2d(width, 4, 1)
        for layer, bias in ((self.logits, prior_bias(prior)), (self.objectness, prior_bias(prior))):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, C, H, W)`` -> ``(B, K, H, W)``, ``(B, 1, H, W)``, ``(B, 4, H, W)``."""
        x = self.stem(x)
        box = self.box_tower(x)
        return self.logits(self.class_tower(x)), self.objectness(box), self.codes(box)


def decode_cells(codes: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Codes ``(N, 4)`` at corners of cells ``(N, 2)`` of strides ``(N,)`` -> ``(N, 4)`` xyxy."""
    step = strides[:, None]
    center = codes[:, :2] * step + places
    side = codes[:, 2:].clamp(max=_LARGEST_LOG).exp() * step
    return corners(torch.cat([center, side], dim=1))


def encode_cells(boxes: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """The inverse of ``decode_cells``; sides count for a thousandth of a stride at least."""
    box, step = center_size(boxes), strides[:, None]
    side = (box[:, 2:] / step).clamp(min=1e-3)
    return torch.cat([(box[:, :2] - places) / step, side.log()], dim=1)


def gathered(targets: list[Target], device: torch.device) -> tuple[Objects, list[Tensor]]:
    """The objects of a batch in one piece, and for each image ``(M, 4)`` regions to ignore."""
    found = [objects_of(target, device) for target in targets]
    counts = torch.tensor([len(boxes) for boxes, _, _ in found], device=device)
    return Objects(
        image=torch.arange(len(found), device=device).repeat_interleave(counts),
        boxes=torch.cat([boxes for boxes, _, _ in found]),
        labels=torch.cat([labels for _, labels, _ in found]),
    ), [ignored for _, _, ignored in found]


def counted_places(outputs: Outputs, ignored: list[Tensor], positive: Tensor) -> Tensor:
    """float32 ``(B, A)``: 0 for places of no object whose center is in a region to ignore, or 1."""
    counted = torch.ones_like(positive)
    if any(len(regions) for regions in ignored):
        center = outputs.corners + outputs.strides[:, None] / 2
        cells = torch.cat([center - 0.5, center + 0.5], dim=1)
        for row, regions in zip(counted, ignored, strict=True):
            row[covered(cells, regions) > 0.5] = 0.0
        counted[positive > 0] = 1.0
    return counted
