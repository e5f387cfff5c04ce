"""The nouns every part of cvtrain shares: Target, Prediction, ImageInfo, Batch.

Conventions, stated once
------------------------
- Images: ``(B, C, H, W)`` in the file's dtype (nearly always uint8), RGB, upright. Models cast and
  normalize them with buffers of their own.
- Boxes: xyxy, absolute pixels, float32 ``(N, 4)``, N may be 0; x to the right, y down; a box that
  covers the whole image is ``[0, 0, W, H]``.
- Labels: int64 in ``0..K-1``; ``K = num_classes`` never counts a background class.
- Semantic masks: int64 ``(H, W)``, ``IGNORE_INDEX`` (255) is void for losses and metrics alike; in
  pixels of the original, which may be many, uint8.
- Instance masks: bool ``(N, H, W)`` in network pixels, COCO RLE in original pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = 255
"""The value of void pixels in semantic masks."""

RLE = dict[str, Any]
"""A mask in compressed COCO RLE: ``{"size": [H, W], "counts": str}``, plain values throughout."""

_STRIPE = 1 << 23
"""Numbers of a stripe of logits that is resized at once: 32 MiB."""

TASKS = (
    "classification",
    "multilabel_classification",
    "localization",
    "detection",
    "semantic_segmentation",
    "instance_segmentation",
)


class _TensorFields:
    """Moves the tensor fields of a dataclass together; everything else is kept as it is."""

    def _map(self, function: Callable[[Tensor], Tensor]) -> Any:
        changed = {
            field.name: function(value)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Any:
        return self._map(lambda t: t.pin_memory())

    def cpu(self) -> Any:
        return self.to("cpu")


@dataclass
class Target(_TensorFields):
    """The ground truth of one image; the task decides which fields are there.

    Attributes:
        boxes: float32 ``(N, 4)`` xyxy pixels.
        labels: int64 ``(N,)``, one a box.
        ignore: bool ``(N,)``: crowd regions and "difficult" objects. Neither loss nor metric
            counts them as objects; metrics do not count a match with them as a mistake.
        areas: float64 ``(N,)`` square pixels, as the data set gives them (COCO: of the segment).
        label: int64 ``()``, the class of the image (classification, localization).
        probs: float32 ``(K,)``, what a classifier's loss aims at where one label does not say it:
            shares of the classes in a mixed image, or 1 for each of several labels.
        mask: int64 ``(H, W)``, semantic classes.
        masks: bool ``(N, H, W)``, one a box: in network pixels, for the loss.
        rles: N masks in compressed COCO RLE, one a box: in original pixels, for the metric.
    """

    boxes: Tensor | None = None
    labels: Tensor | None = None
    ignore: Tensor | None = None
    areas: Tensor | None = None
    label: Tensor | None = None
    probs: Tensor | None = None
    mask: Tensor | None = None
    masks: Tensor | None = None
    rles: list[RLE] | None = None


@dataclass
class Prediction(_TensorFields):
    """What a model says of one image; pixels are those of the image it was given.

    Attributes:
        boxes: float32 ``(N, 4)`` xyxy pixels, inside the image.
        scores: float32 ``(N,)`` in 0..1, highest first.
        labels: int64 ``(N,)``.
        probs: float32 ``(K,)``, class probabilities of the image (classification, localization:
            they add up to 1; multilabel_classification: each class by itself). Beside it, boxes are
            guesses at the image's one object (localization).
        mask: int64 ``(H, W)``, the semantic class of each pixel.
        logits: float32 ``(K, H, W)``, what ``mask`` is the largest of: of an image in network
            pixels, so that it is these that are resized to the original's.
        mask_probs: float32 ``(N, m, m)`` in 0..1, one a box, for its class: how probably the object
            is at each place of an m x m grid laid over the box's area, whatever its shape.
        rles: N masks in compressed COCO RLE, one a box, of the original's size: what the task makes
            of ``mask_probs``, since N dense masks of a large image would not fit into memory.
    """

    boxes: Tensor | None = None
    scores: Tensor | None = None
    labels: Tensor | None = None
    probs: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
    mask_probs: Tensor | None = None
    rles: list[RLE] | None = None

    def of(self, keep: Tensor) -> Prediction:
        """With these objects alone; ``keep``: bool ``(N,)``. All else stays as it is."""
        names = ("boxes", "scores", "labels", "mask_probs")
        changed: dict[str, Any] = {
            name: value[keep] for name in names if (value := getattr(self, name)) is not None
        }
        if self.rles is not None:
            changed["rles"] = [r for r, k in zip(self.rles, keep.tolist(), strict=True) if k]
        return replace(self, **changed)

    def best(self) -> tuple[int, float]:
        """The class said first and its score: of the best box, else the most probable of ``probs``.

        Raises:
            ValueError: neither is there.
        """
        if self.labels is not None and self.scores is not None and len(self.labels):
            return int(self.labels[0]), float(self.scores[0])
        if self.probs is None:
            raise ValueError("a prediction without a class")
        label = int(self.probs.argmax())
        return label, float(self.probs[label])


@dataclass(frozen=True)
class Placement:
    """Where the original image lies in the network's input: ``x_net = x * scale_x + shift_x``.

    Attributes:
        scale_x, scale_y: network pixels per original pixel.
        shift_x, shift_y: network pixels (the letterbox border).
        height, width: original size in pixels.
    """

    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float
    height: int
    width: int

    def boxes_to_network(self, boxes: Tensor) -> Tensor:
        """``(N, 4)`` xyxy in original pixels -> ``(N, 4)`` in network pixels."""
        scale, shift = self._vectors(boxes)
        return boxes * scale + shift

    def boxes_to_original(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """``(N, 4)`` xyxy in network pixels -> ``(N, 4)`` in original pixels, clipped to them."""
        scale, shift = self._vectors(boxes)
        mapped = (boxes - shift) / scale
        if not clip:
            return mapped
        limit = boxes.new_tensor([self.width, self.height, self.width, self.height])
        return mapped.clamp(min=0).minimum(limit)

    def logits_to_original(self, logits: Tensor) -> Tensor:
        """``(K, H_net, W_net)`` -> uint8 ``(height, width)``: the largest at each original pixel.

        The logits are interpolated (bilinear, pixel centers, what lies beyond the placed image
        never mixed in), then compared: outlines follow what the network says between its pixels.
        A few rows at a time, so that all classes of a large image need not fit into memory.
        """
        placed = self._placed(logits)  # (K, h, w)
        count, rows = placed.shape[0], placed.shape[-2:]
        low, high, down = self.between(self.height, rows[0], placed)
        left, right, along = self.between(self.width, rows[1], placed)
        out = torch.empty((self.height, self.width), dtype=torch.uint8, device=logits.device)
        step = max(1, _STRIPE // (count * max(self.width, rows[1])))
        for start in range(0, self.height, step):
            part = slice(start, start + step)
            share = down[part, None]
            stripe = placed[:, low[part]] * (1 - share) + placed[:, high[part]] * share
            stripe = stripe[..., left] * (1 - along) + stripe[..., right] * along  # (K, r, width)
            out[part] = stripe.argmax(dim=0)
        return out

    def mask_to_original(self, mask: Tensor) -> Tensor:
        """``(H_net, W_net)`` of whole numbers -> ``(height, width)``, each from the nearest."""
        placed = self._placed(mask)
        rows, columns = (
            ((torch.arange(n, device=mask.device) + 0.5) * (size / n)).long().clamp(max=size - 1)
            for n, size in zip((self.height, self.width), placed.shape, strict=True)
        )
        return placed[rows[:, None], columns]

    def _placed(self, x: Tensor) -> Tensor:
        """The part of ``(..., H_net, W_net)`` where the original lies."""
        top, left = round(self.shift_y), round(self.shift_x)
        height = max(1, round(self.height * self.scale_y))
        width = max(1, round(self.width * self.scale_x))
        return x[..., top : top + height, left : left + width]

    @staticmethod
    def between(count: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For ``count`` pixels of ``size`` others the two they lie between, and how far along."""
        at = (torch.arange(count, dtype=torch.float64) + 0.5) * (size / count) - 0.5
        at = at.clamp(0, size - 1)
        low = at.long()
        high, share = (low + 1).clamp(max=size - 1), (at - low).to(like.dtype)
        return low.to(like.device), high.to(like.device), share.to(like.device)

    def _vectors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        scale = like.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        shift = like.new_tensor([self.shift_x, self.shift_y, self.shift_x, self.shift_y])
        return scale, shift


@dataclass(frozen=True)
class ImageInfo:
    """Which image a sample is, so that what is said of it can be written in the user's terms.

    Attributes:
        index: row in the split's table.
        image_id: COCO's own id, otherwise the POSIX path below ``data.root``.
        file_name: POSIX path below ``data.root`` (below ``source`` in predict).
        height, width: pixels of the upright original.
        placement: how it was put into the network's input; None where a random warp was drawn.
    """

    index: int
    image_id: int | str
    file_name: str
    height: int
    width: int
    placement: Placement | None = None


@dataclass
class Batch:
    """What a data loader yields.

    Attributes:
        images: ``(B, C, H, W)`` in the file's dtype.
        targets: B targets in network pixels, for the loss.
        infos: B image infos.
        truths: B targets in original pixels, for the metric; None in training.
        proposals: B float32 ``(P, 4)``, best first, P at least 1: boxes in network pixels for a
            model that is given them (``proposals=``); None for all others.
    """

    images: Tensor
    targets: list[Target]
    infos: list[ImageInfo]
    truths: list[Target] | None = None
    proposals: list[Tensor] | None = None

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """All but truths move; they stay where the metric wants them, on the CPU."""
        images = self.images.to(device, non_blocking=non_blocking)
        targets = [t.to(device, non_blocking=non_blocking) for t in self.targets]
        boxes = self.proposals
        if boxes is not None:
            boxes = [b.to(device, non_blocking=non_blocking) for b in boxes]
        return replace(self, images=images, targets=targets, proposals=boxes)

    def pictures(self, places: Sequence[int]) -> Tensor:
        """The images at these places of the batch, to be drawn: ``(P, C, H, W)``."""
        return self.images[list(places)].cpu()

    def pin_memory(self) -> Batch:
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=[t.pin_memory() for t in self.targets],
            proposals=None if self.proposals is None else [b.pin_memory() for b in self.proposals],
        )

    def __len__(self) -> int:
        return len(self.images)


def empty_boxes(device: torch.device | None = None) -> Tensor:
    """float32 ``(0, 4)``: no objects."""
    return torch.zeros((0, 4), dtype=torch.float32, device=device)
