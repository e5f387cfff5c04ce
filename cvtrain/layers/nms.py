"""From many scored boxes to the few that are predictions: non-maximum suppression in its variants.

- ``hard``: a box that overlaps a better one of its class by more than the threshold is removed.
- ``agnostic``: the same over all classes.
- ``linear``, ``gaussian``: soft-NMS (Bodla et al. 2017, arXiv 1704.04503, equations 2 and 3): its
  score falls, by the overlap (above the threshold), or by exp(-overlap^2 / sigma).
- ``weighted``: hard, and each box that stays becomes the mean, weighted by the scores, of those it
  removed and itself (as in weighted box voting, Gidaris & Komodakis 2015, arXiv 1505.01749).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from cvtrain.layers.boxes import clip, pairwise
from cvtrain.structures import Prediction

Method = Literal["hard", "agnostic", "linear", "gaussian", "weighted"]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou: float = 0.5,
    method: Method = "hard",
    sigma: float = 0.5,
    min_score: float = 0.0,
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Remove, weaken or merge boxes that say the same.

    Args:
        boxes: ``(N, 4)`` xyxy pixels.
        scores: ``(N,)``.
        labels: int64 ``(N,)``.
        iou: threshold, 0..1.
        method: of the module's text.
        sigma: width of ``gaussian``.
        min_score: soft-NMS drops what falls to it or below.
        max_detections: soft-NMS stops after so many.

    Returns:
        Indices int64 ``(M,)`` of the boxes that stay, highest score first, with their boxes
        ``(M, 4)`` and scores ``(M,)``, which soft-NMS and merging change.

    Raises:
        ValueError: an unknown method, or a threshold or sigma out of range.
    """
    _check(method, iou, sigma)
    boxes, scores = boxes.float(), scores.float()
    if method in ("linear", "gaussian"):
        return _soft(boxes, scores, labels, iou, method, sigma, min_score, max_detections)
    if method == "agnostic":
        keep = nms(boxes, scores, iou)
    else:
        keep = batched_nms(boxes, scores, labels, iou)
    keep = keep[:max_detections]
    if method == "weighted" and len(keep):
        return keep, _merged(boxes, scores, labels, keep, iou), scores[keep]
    return keep, boxes[keep], scores[keep]


def _check(method: str, iou: float, sigma: float = 0.5) -> None:
    if method not in get_args(Method):
        raise ValueError(f"nms method {method}: expected {' | '.join(get_args(Method))}")
    if not 0 <= iou <= 1 or sigma <= 0:
        raise ValueError(f"nms iou={iou} must be in 0..1, sigma={sigma} above 0")


def _merged(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, iou: float) -> Tensor:
    """Boxes ``(M, 4)`` of those kept, each averaged with those it removed."""
    overlap = pairwise(boxes, boxes[keep])  # (N, M)
    overlap = overlap.masked_fill(labels[:, None] != labels[keep], 0.0)
    # Kept boxes come best first: a box belongs to the first that overlaps it enough, which is the
    # one that removed it; a kept box to itself.
    joins = overlap > iou
    first = joins.int().argmax(dim=1)  # (N,)
    member = joins.any(dim=1)
    first[keep] = torch.arange(len(keep), device=keep.device)
    member[keep] = True
    weight = scores.clamp(min=1e-12) * member  # (N,)
    total = weight.new_zeros(len(keep)).index_add(0, first, weight)
    summed = boxes.new_zeros(len(keep), 4).index_add(0, first, boxes * weight[:, None])
    return summed / total[:, None]


def _soft(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou: float,
    method: str,
    sigma: float,
    min_score: float,
    max_detections: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft-NMS, class by class at once: each round the best box left weakens those it overlaps."""
    left = scores.clone()
    kept, values = [], []
    limit = len(boxes) if max_detections is None else min(max_detections, len(boxes))
    for _ in range(limit):
        best = int(left.argmax())
        value = float(left[best])
        if not value > min_score:
            break
        kept.append(best)
        values.append(value)
        overlap = pairwise(boxes[best : best + 1], boxes)[0] * (labels == labels[best])
        if method == "linear":
            decay = torch.where(overlap > iou, 1 - overlap, torch.ones_like(overlap))
        else:
            decay = torch.exp(-overlap.square() / sigma)
        left = left * decay
        left[best] = -torch.inf
    keep = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return keep, boxes[keep], scores.new_tensor(values)


def select(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou: float = 0.5,
    method: Method = "hard",
    max_detections: int = 100,
    min_score: float = 0.0,
    candidates: int | None = None,
    image_size: tuple[int, int] | None = None,
    sigma: float = 0.5,
) -> Prediction:
    """The predictions of one image.

    Boxes without area, scores that are no numbers and boxes that are not finite are dropped.

    Args:
        boxes: ``(A, 4)`` xyxy pixels; or ``(A, K, 4)``, boxes of each class.
        scores: ``(A, K)``, of each class; or, with ``labels``, ``(A,)``. Above 1 counts as 1.
        labels: int64 ``(A,)``; None: every class of every box is a candidate.
        iou: threshold of the suppression, 0..1.
        method: of the suppression.
        max_detections: predictions kept, the best first.
        min_score: predictions score more.
        candidates: of so many, the best, the suppression is told at most; None: of all.
        image_size: (height, width) to clip the boxes to; None: they are inside.
        sigma: of gaussian soft-NMS.

    Returns:
        A prediction with boxes ``(M, 4)``, scores ``(M,)``, highest first, and labels ``(M,)``.

    Raises:
        ValueError: see ``suppress``.
    """
    if image_size is not None:
        boxes = clip(boxes, image_size)
    usable = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1) & torch.isfinite(boxes).all(dim=-1)
    if labels is None:
        good = (scores > min_score) & (usable if usable.ndim == 2 else usable[:, None])
        which, labels = torch.nonzero(good, as_tuple=True)
        boxes = boxes[which, labels] if boxes.ndim == 3 else boxes[which]
        scores = scores[which, labels]
    else:
        good = (scores > min_score) & usable
        boxes, scores, labels = boxes[good], scores[good], labels[good]
    if candidates is not None and len(scores) > candidates:
        scores, best = scores.topk(candidates)
        boxes, labels = boxes[best], labels[best]
    keep, boxes, scores = suppress(
        boxes,
        scores,
        labels,
        iou=iou,
        method=method,
        sigma=sigma,
        min_score=min_score,
        max_detections=max_detections,
    )
    return Prediction(boxes=boxes, scores=scores.clamp(max=1), labels=labels[keep])


@dataclass
class Selection:
    """A detector's choice of its predictions, the same for every image.

    Args:
        iou: threshold of the suppression, 0..1.
        method: of the suppression.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: an unknown method, or a value out of range.
    """

    iou: float
    method: Method
    min_score: float
    max_detections: int

    def __post_init__(self) -> None:
        _check(self.method, self.iou)
        if self.max_detections < 1:
            raise ValueError(f"max_detections={self.max_detections}: at least 1")

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        candidates: int | None = None,
    ) -> Prediction:
        """See ``select``."""
        return select(
            boxes,
            scores,
            labels,
            iou=self.iou,
            method=self.method,
            max_detections=self.max_detections,
            min_score=self.min_score,
            candidates=candidates,
            image_size=image_size,
        )


def best_candidates(
    scores: Tensor, counts: Sequence[int], most: int, min_score: float
) -> tuple[Tensor, Tensor]:
    """What is worth decoding of a dense detector's scores: the best of each level.

    Args:
        scores: ``(A, K)`` of one image, level after level.
        counts: boxes of each level, A in all.
        most: (box, class) pairs kept a level.
        min_score: pairs score more.

    Returns:
        int64 ``(M,)`` boxes and ``(M,)`` classes, level after level.
    """
    found, first = [], 0
    classes = scores.shape[1]
    for part in scores.split(list(counts)):
        flat = part.flatten()
        good = (flat > min_score).nonzero().flatten()
        if len(good) > most:
            good = good[flat[good].topk(most).indices]
        found.append(good + first * classes)
        first += len(part)
    pairs = torch.cat(found)
    return pairs // classes, pairs % classes
