"""The second stage of a two-stage detector: which regions it learns from, their loss, predictions.

Paper: Girshick, "Fast R-CNN", arXiv 1504.08083, sections 2.1 to 2.3. A region is foreground from
IoU 0.5 with an object on and takes its class; the others are background. Softmax over the classes
and the background; boxes relative to the region, of its class alone, smooth L1. Objects are added
to the regions, so that there is foreground from the first step on.

What turns regions into numbers is the model's; ``RoIStage`` is told it as a function. Codes for
each class, ``(R, K, 4)``, or one for all, ``(R, 1, 4)`` (R-FCN), are told apart by their shape.

Validation runs the same sampling as training, drawn by a generator of its own (layers/sampler.py),
so that both losses mean the same thing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.box_coder import BoxCoder
from cvtrain.layers.boxes import objects_of
from cvtrain.layers.matcher import NEGATIVE, Matcher
from cvtrain.layers.nms import Method, Selection
from cvtrain.layers.sampler import fixed_draws, hard_examples, sample_balanced
from cvtrain.structures import Prediction, Target

CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Bring the codes of regions to about unit variance."""

Classify = Callable[[list[Tensor]], tuple[Tensor, Tensor]]
"""Boxes ``(N_b, 4)`` of each image -> logits ``(R, 1 + K)``, the background first, and codes
``(R, K, 4)`` or ``(R, 1, 4)``, R the boxes of all images."""


class RoISampling(ABC):
    """Which regions of an image are learned from: some before they are looked at, some after."""

    @abstractmethod
    def before(
        self, foreground: Tensor, background: Tensor, draws: torch.Generator | None
    ) -> Tensor:
        """Bool ``(N,)`` twice -> indices of the regions to classify."""

    @abstractmethod
    def after(self, loss: Tensor, boxes: Tensor) -> Tensor:
        """The loss ``(n,)`` of those, and their boxes ``(n, 4)`` -> bool ``(n,)``: which count."""


class RandomRoIs(RoISampling):
    """So many drawn at random, a share of them foreground if there are so many.

    Args:
        count: regions an image (Fast R-CNN: 64, torchvision: 512).
        positive_fraction: at most, 0..1.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, count: int = 64, positive_fraction: float = 0.25) -> None:
        if count < 1 or not 0 <= positive_fraction <= 1:
            raise ValueError(
                f"count={count} must be at least 1, positive_fraction={positive_fraction} in 0..1"
            )
        self.count, self.positive_fraction = count, positive_fraction

    def before(
        self, foreground: Tensor, background: Tensor, draws: torch.Generator | None
    ) -> Tensor:
        pair = sample_balanced(foreground, background, self.count, self.positive_fraction, draws)
        return torch.cat(pair)

    def after(self, loss: Tensor, boxes: Tensor) -> Tensor:
        return torch.ones(len(loss), dtype=torch.bool, device=loss.device)


class HardRoIs(RoISampling):
    """All are looked at, those of highest loss count (OHEM, Shrivastava et al. 2016, 1604.03540).

    Args:
        count: regions an image that count.
        nms_iou: of regions that overlap by more only the worst counts, 0..1; None: all may.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, count: int = 128, nms_iou: float | None = 0.7) -> None:
        if count < 1 or not 0 <= (nms_iou or 0) <= 1:
            raise ValueError(f"count={count} must be at least 1, nms_iou={nms_iou} in 0..1")
        self.count, self.nms_iou = count, nms_iou

    def before(
        self, foreground: Tensor, background: Tensor, draws: torch.Generator | None
    ) -> Tensor:
        return (foreground | background).nonzero().flatten()

    def after(self, loss: Tensor, boxes: Tensor) -> Tensor:
        chosen = torch.zeros(len(loss), dtype=torch.bool, device=loss.device)
        if self.nms_iou is None:
            chosen[hard_examples(loss, self.count)] = True
        else:
            chosen[hard_examples(loss, self.count, boxes, self.nms_iou)] = True
        return chosen


class _Drawn(NamedTuple):
    """Regions of one image: boxes ``(n, 4)``, labels ``(n,)`` (0: background), objects ``(n, 4)``
    and their rows ``(n,)`` of the target (of the background neither is looked at), and whether they
    count at all.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    rows: Tensor
    counts: bool


class Foreground(NamedTuple):
    """The regions of one image that were learned from as objects, F of them.

    Attributes:
        boxes: float32 ``(F, 4)`` xyxy pixels.
        labels: int64 ``(F,)`` in ``0..K-1``.
        objects: int64 ``(F,)``, rows of the target: which object each belongs to.
        rows: int64 ``(F,)``, which of the R regions that were classified these are.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    rows: Tensor


class RoIStage:
    """Loss and predictions of regions.

    Args:
        sampling: which regions are learned from; None: ``RandomRoIs()``.
        foreground_iou: regions of this IoU with an object and more are foreground, 0..1.
        background_iou: regions below this IoU with every object are not learned from (Fast R-CNN:
            0.1), unless an image has no other background, 0..1.
        beta: where the box loss turns from parabola to line.
        code_weights: the codes' four numbers are multiplied by them.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        sampling: RoISampling | None = None,
        foreground_iou: float = 0.5,
        background_iou: float = 0.0,
        beta: float = 1.0,
        code_weights: Sequence[float] = CODE_WEIGHTS,
        nms_iou: float = 0.5,
        nms: Method = "hard",
        min_score: float = 0.01,
        max_detections: int = 100,
    ) -> None:
        if not 0 <= background_iou <= foreground_iou <= 1 or beta < 0:
            raise ValueError(
                f"background_iou={background_iou} foreground_iou={foreground_iou}: give "
                f"0 <= background_iou <= foreground_iou <= 1; beta={beta} must be at least 0"
            )
        self.sampling = sampling or RandomRoIs()
        self.background_iou, self.beta = background_iou, beta
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.matcher = Matcher(foreground_iou)
        self.coder = BoxCoder(code_weights)

    def loss(
        self,
        classify: Classify,
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
        training: bool,
    ) -> dict[str, Tensor]:
        """Terms ``classes`` and ``boxes``; counts ``num_objects`` and ``num_positives``.

        Args:
            classify: what turns boxes into logits and codes.
            proposals: ``(P, 4)`` xyxy pixels of each image, P at least 1.
            targets: of the images.
            training: whether the draws are new every time.
        """
        return self.learn(classify, proposals, targets, training)[0]

    def learn(
        self,
        classify: Classify,
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
        training: bool,
    ) -> tuple[dict[str, Tensor], list[Foreground]]:
        """``loss``, and of each image the regions that counted as objects, for further branches."""
        drawn = [
            self._draw(boxes, target, training)
            for boxes, target in zip(proposals, targets, strict=True)
        ]
        logits, codes = classify([d.boxes for d in drawn])
        logits, codes = logits.float(), codes.float()
        labels = torch.cat([d.labels for d in drawn])  # (R,)
        boxes = torch.cat([d.boxes for d in drawn])
        entropy = F.cross_entropy(logits, labels, reduction="none")
        positive = labels.nonzero().flatten()
        which = labels[positive] - 1 if codes.shape[1] > 1 else torch.zeros_like(positive)
        wanted = self.coder.encode(torch.cat([d.objects for d in drawn])[positive], boxes[positive])
        codes = codes[positive, which]  # (positives, 4)
        distance = F.smooth_l1_loss(codes, wanted, reduction="none", beta=self.beta).sum(dim=1)
        regressed = torch.zeros_like(entropy).index_add(0, positive, distance)
        counted = self._counted(drawn, (entropy + regressed).detach())
        share = counted.sum().clamp(min=1)
        objects = sum(len(objects_of(t)[0]) for t in targets)
        terms = {
            "classes": (entropy * counted).sum() / share,
            "boxes": (regressed * counted).sum() / share,
            "num_objects": counted.new_tensor(objects, dtype=torch.float32),
            "num_positives": counted[positive].sum(),
        }
        return terms, _foreground(drawn, counted)

    def decode(
        self, classify: Classify, proposals: Sequence[Tensor], image_size: tuple[int, int]
    ) -> list[Prediction]:
        """Predictions from proposals ``(P, 4)`` of each image of (height, width) pixels."""
        logits, codes = classify(list(proposals))
        counts = [len(b) for b in proposals]
        scores = logits.float().softmax(dim=1)[:, 1:]  # (R, K)
        boxes = self.coder.decode(codes, torch.cat(list(proposals))[:, None])  # (R, K or 1, 4)
        if codes.shape[1] == 1:
            boxes = boxes[:, 0]  # (R, 4)
        return [
            self.select(box, score, image_size=image_size)
            for box, score in zip(boxes.split(counts), scores.split(counts), strict=True)
        ]

    @torch.no_grad()
    def _draw(self, proposals: Tensor, target: Target, training: bool) -> _Drawn:
        """The regions of an image that are classified: at least one, which may not count."""
        objects, labels, ignored = objects_of(target, proposals.device)
        boxes = torch.cat([proposals.float(), objects])
        index, best = self.matcher(boxes, objects, ignored)
        background = index == NEGATIVE
        near = background & (best >= self.background_iou)
        background = near if bool(near.any()) else background
        chosen = self.sampling.before(index >= 0, background, fixed_draws(training))
        counts = len(chosen) > 0
        if not counts:  # all lie in regions to ignore: layers still want something to run on
            chosen = torch.zeros(1, dtype=torch.int64, device=boxes.device)
        index = index[chosen]
        found = index >= 0
        label = torch.zeros_like(index)
        label[found] = labels[index[found]] + 1
        truth = boxes[chosen]
        truth[found] = objects[index[found]]
        rows = torch.arange(len(objects) + len(ignored), device=boxes.device)
        if target.ignore is not None:
            rows = rows[~target.ignore.to(boxes.device)]
        place = index.clone()
        place[found] = rows[index[found]]
        return _Drawn(boxes[chosen], label, truth, place, counts)

    def _counted(self, drawn: Sequence[_Drawn], loss: Tensor) -> Tensor:
        """Bool ``(R,)``: the regions whose loss ``(R,)`` counts, image by image."""
        parts = loss.split([len(d.boxes) for d in drawn])
        return torch.cat(
            [
                self.sampling.after(part, d.boxes) & d.counts
                for part, d in zip(parts, drawn, strict=True)
            ]
        )


def _foreground(drawn: Sequence[_Drawn], counted: Tensor) -> list[Foreground]:
    """Of each image the regions that are objects, and of those the ones that count, ``(R,)``."""
    found, first = [], 0
    for d in drawn:
        counts = counted[first : first + len(d.boxes)]
        mine = ((d.labels > 0) & counts).nonzero().flatten()
        found.append(Foreground(d.boxes[mine], d.labels[mine] - 1, d.rows[mine], mine + first))
        first += len(d.boxes)
    return found


class BoxHead(nn.Module):
    """Features of regions to classes and boxes: connected layers with ReLU, then two beside.

    Args:
        channels: of the features.
        size: rows and columns of the features; 0: they are averaged over rows and columns first.
        num_classes: K.
        hidden: units of each connected layer; none: the last two alone.
        agnostic: one box a region, not one per class.

    Attributes:
        in_channels: of the features.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        hidden: Sequence[int] = (1024, 1024),
        agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.size = channels, size
        width = channels * max(1, size) ** 2
        self.connected = nn.ModuleList()
        for units in hidden:
            self.connected.append(nn.Linear(width, units))
            width = units
        self.logits = nn.Linear(width, 1 + num_classes)
        self.codes = nn.Linear(width, 4 * (1 if agnostic else num_classes))
        for layer in self.connected:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        for layer, deviation in ((self.logits, 0.01), (self.codes, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(R, channels, rows, columns)`` -> logits ``(R, 1 + K)``, codes ``(R, K or 1, 4)``."""
        x = x.flatten(1) if self.size else x.mean(dim=(2, 3))
        for layer in self.connected:
            x = F.relu(layer(x))
        return self.logits(x), self.codes(x).unflatten(1, (-1, 4))
