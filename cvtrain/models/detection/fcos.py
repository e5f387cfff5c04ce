"""FCOS (2019): every place of a feature pyramid says what it lies in and how far the sides are.

Paper: Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", arXiv
1904.01355, with the improvements of its last version (table 3: center sampling, GIoU, center-ness
on the box branch, distances in strides). Written from the paper; with copied weights,
``distances=relu`` and ``point_offset=0`` outputs and losses are those of torchvision's FCOS.

Five levels, P3 to P7 at strides 8 to 128; P6 and P7 grow from P5. A place is positive for an object
if it lies inside it, within 1.5 strides of its center, and the farthest side is within the level's
range (64, 128, 256, 512 pixels, no limit); of several objects the smallest has it. Two heads of
four 3 x 3 convolutions with group norm. Focal loss (alpha 0.25, gamma 2), GIoU loss, binary
cross-entropy of the center-ness sqrt(min(l, r) / max(l, r) x min(t, b) / max(t, b)), each divided
by the positives of the batch. A prediction scores the root of class probability x center-ness.

Where the paper is silent or we deviate:

- Distances are exp(s x) strides with s a number a level has of its own, as in section 3.2; ``relu``
  takes max(0, s x), as the authors' later code and torchvision (whose s is 1) do.
- The score is the root of the product (the journal version, arXiv 2006.09214); the order of the
  boxes is that of the product.
- Positives are counted by each process for itself.
- The backbone is any, its batch norms train; the paper's is ResNet-50, pretrained.
- ``min_score`` 0.01 in place of 0.05: average precision wants the tail.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.anchors import flatten_map, points
from cvtrain.layers.box_coder import decode_ltrb, encode_ltrb
from cvtrain.layers.boxes import area, covered, objects_of
from cvtrain.layers.dense_head import predictor, prior_bias, tower
from cvtrain.layers.fpn import FPN
from cvtrain.layers.matcher import IGNORED, NEGATIVE
from cvtrain.layers.nms import Method, Selection, best_candidates
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.losses.box_regression import IoULoss
from cvtrain.losses.focal import sigmoid_focal
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target

Distances = Literal["exp", "relu"]

MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""
LONGEST = 8.0
"""A level's farthest side, in strides; half of it is its nearest."""
_LARGEST_LOG = 7.0
"""The logarithm of a distance is cut to this: 1,100 strides."""
_PAIRS = 4_000_000
"""Distances from places to objects held at once."""


class Outputs(NamedTuple):
    """What the network says of a batch.

    Attributes:
        logits: float32 ``(B, A, K)``, one per class and place.
        distances: float32 ``(B, A, 4)``, left, top, right, bottom in strides, at least 0.
        centreness: float32 ``(B, A)``, logits.
        points: float32 ``(A, 2)`` x, y pixels.
        strides: float32 ``(A,)`` of each place's level.
        counts: places of each level.
        image_size: height, width in pixels.
    """

    logits: Tensor
    distances: Tensor
    centreness: Tensor
    points: Tensor
    strides: Tensor
    counts: list[int]
    image_size: tuple[int, int]


class FCOS(Model):
    """Backbone, feature pyramid, a class head and a box head with center-ness on every level.

    Args:
        backbone: its maps are used.
        loss: of the boxes, one of IoU's kin.
        num_classes: K.
        channels: of the pyramid and the heads, a multiple of 4.
        convs: 3 x 3 convolutions in each head before the last.
        center_radius: places so many strides from an object's center are positive; None: all
            places inside it (the paper's first version).
        distances: exp or relu: how a number becomes a distance.
        point_offset: where in its cell a place lies, 0..1 strides.
        alpha: weight of the positives in the focal loss, 1 - alpha that of the negatives, 0..1.
        gamma: exponent of the focal loss.
        prior: probability of every class at the start, 0..1.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: of each level, the best so many go on to the suppression.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, a loss that is none of boxes' overlap, or a backbone
            without maps near strides 8 to 32.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: IoULoss,
        num_classes: int,
        channels: int = 256,
        convs: int = 4,
        center_radius: float | None = 1.5,
        distances: Distances = "exp",
        point_offset: float = 0.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        nms_iou: float = 0.6,
        nms: Method = "hard",
        min_score: float = 0.01,
        candidates: int = 1000,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if not isinstance(loss, IoULoss):
            raise ValueError("FCOS regresses sides: loss=giou, iou, diou or ciou")
        if not 0 <= alpha <= 1 or gamma < 0:
            raise ValueError(f"alpha={alpha} must be in 0..1, gamma={gamma} at least 0")
        if distances not in get_args(Distances):
            raise ValueError(f"distances={distances}: expected {' | '.join(get_args(Distances))}")
        if center_radius is not None and center_radius <= 0:
            raise ValueError(f"center_radius={center_radius} must be above 0, or null")
        self.num_classes = num_classes
        self.center_radius, self.relu = center_radius, distances == "relu"
        self.point_offset = point_offset
        self.alpha, self.gamma = alpha, gamma
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.criterion = loss

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        self.neck = FPN(backbone.channels, backbone.strides, channels, extra="pyramid")
        self.class_tower = tower(channels, convs, group_norm=True)
        self.class_logits = predictor(channels, num_classes, prior_bias(prior))
        self.box_tower = tower(channels, convs, group_norm=True)
        self.box_distances = predictor(channels, 4)
        self.box_centreness = predictor(channels, 1)
        self.scales = nn.Parameter(torch.ones(len(self.neck.strides)))

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` of any size -> logits, distances and center-ness of every place."""
        x = pad_to_multiple(self.normalize(images), MULTIPLE)
        levels = self.neck(self.backbone(x), (x.shape[-2], x.shape[-1]))
        logits, distances, centreness = [], [], []
        for level, scale in zip(levels, self.scales, strict=True):
            logits.append(flatten_map(self.class_logits(self.class_tower(level)), self.num_classes))
            features = self.box_tower(level)
            raw = flatten_map(self.box_distances(features), 4).float() * scale
            distances.append(F.relu(raw) if self.relu else raw.clamp(max=_LARGEST_LOG).exp())
            centreness.append(flatten_map(self.box_centreness(features), 1))
        sizes = [(p.shape[-2], p.shape[-1]) for p in levels]
        places = points(sizes, self.neck.strides, x.device, self.point_offset)
        counts = [len(p) for p in places]
        strides = torch.tensor(self.neck.strides, dtype=torch.float32, device=x.device)
        return Outputs(
            logits=torch.cat(logits, dim=1).float(),
            distances=torch.cat(distances, dim=1),
            centreness=torch.cat(centreness, dim=1).float().squeeze(-1),  # (B, A, 1) -> (B, A)
            points=torch.cat(places),
            strides=strides.repeat_interleave(torch.tensor(counts, device=x.device)),
            counts=counts,
            image_size=(images.shape[-2], images.shape[-1]),
        )

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``classes``, ``boxes``, ``centreness``; counts of objects and positives."""
        device = outputs.points.device
        classes, regressed, centered, objects, positives = [], [], [], 0, 0
        for i, target in enumerate(targets):
            boxes, labels, ignored = objects_of(target, device)
            index = self.assign(outputs, boxes, ignored)
            positive = (index >= 0).nonzero().flatten()  # (P,)
            found = index[positive]
            truth = torch.zeros_like(outputs.logits[i], dtype=torch.bool)  # (A, K)
            truth[positive, labels[found]] = True
            focal = sigmoid_focal(outputs.logits[i], truth, self.alpha, self.gamma)
            classes.append((focal * (index != IGNORED)[:, None]).sum())
            places = outputs.points[positive]
            sides = outputs.distances[i][positive] * outputs.strides[positive, None]
            regressed.append(self.criterion.boxes(decode_ltrb(sides, places), boxes[found]).sum())
            centered.append(
                F.binary_cross_entropy_with_logits(
                    outputs.centreness[i][positive],
                    centreness(encode_ltrb(boxes[found], places)),
                    reduction="sum",
                )
            )
            objects += len(boxes)
            positives += len(positive)
        share = max(1, positives)
        return {
            "classes": torch.stack(classes).sum() / share,
            "boxes": torch.stack(regressed).sum() / share,
            "centreness": torch.stack(centered).sum() / share,
            "num_objects": torch.tensor(objects, device=device),
            "num_positives": torch.tensor(positives, device=device),
        }

    @torch.no_grad()
    def assign(self, outputs: Outputs, boxes: Tensor, ignored: Tensor) -> Tensor:
        """Which object each place of one image answers for.

        Args:
            outputs: for its places.
            boxes: ``(N, 4)`` the objects, xyxy pixels.
            ignored: ``(M, 4)`` regions to ignore: places in one that would be negative are not
                counted.

        Returns:
            int64 ``(A,)``: the object's index, ``NEGATIVE`` or ``IGNORED``.
        """
        places, strides = outputs.points, outputs.strides[:, None]  # (A, 2), (A, 1)
        index = torch.full((len(places),), NEGATIVE, dtype=torch.int64, device=places.device)
        least = places.new_full((len(places),), torch.inf)
        nearest, farthest = strides * LONGEST / 2, strides * LONGEST
        nearest[: outputs.counts[0]] = 0
        farthest[len(places) - outputs.counts[-1] :] = torch.inf
        step = max(1, _PAIRS // max(1, len(places)))
        for start in range(0, len(boxes), step):
            part = boxes[start : start + step]
            sides = encode_ltrb(part, places[:, None])  # (A, n, 4)
            longest = sides.amax(dim=-1)
            fits = (sides.amin(dim=-1) > 0) & (longest > nearest) & (longest < farthest)
            if self.center_radius is not None:
                center = (part[:, :2] + part[:, 2:]) / 2
                away = (places[:, None] - center).abs().amax(dim=-1)  # (A, n)
                fits &= away < self.center_radius * strides
            size = torch.where(fits, area(part), torch.inf)  # (A, n)
            smallest, which = size.min(dim=1)
            index = torch.where(smallest < least, which + start, index)
            least = torch.minimum(least, smallest)
        if len(ignored):
            cells = torch.cat([places - 0.5, places + 0.5], dim=1)
            index[(index == NEGATIVE) & (covered(cells, ignored) > 0.5)] = IGNORED
        return index

    def decode(self, outputs: Outputs) -> list[Prediction]:
        predictions = []
        for i, logits in enumerate(outputs.logits):
            scores = (logits.sigmoid() * outputs.centreness[i].sigmoid()[:, None]).sqrt()  # (A, K)
            which, labels = best_candidates(
                scores, outputs.counts, self.candidates, self.select.min_score
            )
            sides = outputs.distances[i][which] * outputs.strides[which, None]
            predictions.append(
                self.select(
                    decode_ltrb(sides, outputs.points[which]),
                    scores[which, labels],
                    labels,
                    image_size=outputs.image_size,
                )
            )
        return predictions


def centreness(sides: Tensor) -> Tensor:
    """How near a place inside a box is to its center.

    Args:
        sides: ``(..., 4)`` distances to left, top, right, bottom, above 0.

    Returns:
        ``(...,)`` in 0..1; 1 at the center.
    """
    across, along = sides[..., 0::2], sides[..., 1::2]  # left and right; top and bottom
    across = across.amin(dim=-1) / across.amax(dim=-1)
    along = along.amin(dim=-1) / along.amax(dim=-1)
    return (across * along).sqrt()
