"""OverFeat: a classifier and a box regressor, both run densely over an image at several scales.

Paper: Sermanet, Eigen, Zhang, Mathieu, Fergus, LeCun, "OverFeat: Integrated Recognition,
Localization and Detection using Convolutional Networks", arXiv 1312.6229, sections 3 and 4. Written
from the paper.

The convolutions are trained as a classifier first; then they and the classifier stay as they are,
batch norm's statistics included, and a regressor on the same maps learns, with the l2 loss, the
edges of the box as seen from each window (4.2). Both heads look at windows of the last map through
max pooling at every offset (3.3; ``cvtrain.layers.window_head``). An image is looked at in several
sizes; its class vector is the mean over the sizes of each class's highest probability (3.3), its
boxes
are those that the windows vote for, merged greedily (4.3; ``cvtrain.layers.greedy_merge``).

What dense outputs equal: at each position exactly those of the heads on that window of the *map*.
They equal those of the whole network on that window of the *image* if no convolution pads; the
paper's networks pad their third and later convolutions, so there the border of a window differs.

Deviations:
- A window sees the whole image as it comes from the loader (``image_size``), the larger scales see
  it enlarged. The paper cuts 221 pixels out of images whose shorter side is 256, and takes its
  larger scales from the originals; so ours are finer in position, but not in detail.
- Pooling at the end is 3 x 3 whatever the backbone, as in section 3.3 and the accurate network (the
  fast one has 2 x 2), and a window has as many pooled cells as the map of ``image_size`` holds: 5 x
  5 for the accurate network at 221, as in the paper, 4 x 4 for the fast one at 231 (there 6 x 6 of
  2 x 2). Where cells are left over, each position of the window in the map is trained on.
- The regressor is trained at one scale a batch, drawn from the same six as are used at the end;
  the paper says "multi-scale" and not how. It leaves out boxes "with an overlap of less than 50%
  with the input field of view"; here a window is left out if less than half of the box lies in it
  and less than half of it is box. Without those that large objects fill, the larger scales vote
  for boxes they never learned, and outvote the smaller ones: 0.55 instead of 0.83 of 40 photographs
  of a large animal were right.
- ``background`` is the detector's extra class (section 5): windows of the same image with little of
  the object in them, the most mistaken ones. With one class alone a softmax would be constant.
- All classes but the five with the highest probability at a scale are dropped there, as in the
  paper; for each that is left the ``max_windows`` surest windows of the scale vote (the paper:
  all), so that the largest scales, whose windows are many times as many, do not decide alone.
- The class of the best guess is that of the merged box with the highest sum, as in the paper; the
  sums are divided by the votes of all boxes of the image, so that guesses have scores in 0..1.
- The hidden layers have 1024 units and fewer by default; the paper's have 3072 and 4096 (fast), and
  4096 and 1024 of the regressor.
- AdamW and one schedule over both phases, in place of SGD with a schedule for each.

As a detector (section 5): models/detection/overfeat.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from cvtrain.errors import UsageError
from cvtrain.layers.greedy_merge import greedy_merge
from cvtrain.layers.window_head import DenseHead, WindowGrid, from_window, overlap, to_window
from cvtrain.losses.targets import class_targets
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model, evaluating
from cvtrain.models.localization.guesses import GUESSES
from cvtrain.structures import Prediction, Target, empty_boxes

SCALES = (245 / 221, 281 / 221, 317 / 221, 389 / 221, 425 / 221, 461 / 221)
"""The shorter sides of the paper's six sizes (table 5) over what a window sees, 221 pixels."""

POOL = 3
SEEN = 0.5
"""A window that overlaps the box less is not trained to find it (section 4.2)."""
EMPTY = 0.2
"""A window that overlaps the box less is background."""
THRESHOLDS = {"greedy": 0.7, "nms": 0.5}

BOTH, CLASSIFIER, REGRESSOR = 0, 1, 2
"""Stages: outside a training run; its first epochs; the rest of them."""


@dataclass(frozen=True)
class Dense:
    """The outputs at one scale, a column for each of V windows.

    Attributes:
        probs: float32 ``(B, K, V)`` of the classes; less than 1 in all where there is a background.
        boxes: float32 ``(B, P, V, 4)`` xyxy in pixels of the images that were given, P = 1, or K
            with a box a class; None before the regressor is trained.
        height, width: of those images.
    """

    probs: Tensor
    boxes: Tensor | None
    height: int
    width: int


class OverFeat(Model):
    """Dense classifier and regressor on the last map of a backbone.

    Args:
        backbone: its last map is used, before any pooling at its end.
        num_classes: K.
        image_size: what one window sees at scale 1, pixels: an int or (H, W).
        pool: side of the pooling whose offsets make the dense grid, cells; None: 3, or fewer where
            the map is smaller.
        hidden: units of the classifier's hidden layers.
        regressor_hidden: of the regressor's.
        dropout: share of the classifier's hidden units dropped in training, 0..1.
        per_class: a box a class instead of one for all.
        background: a class for windows without the object; None: where K = 1.
        negatives: background windows trained on an image.
        classifier_epochs: the first epochs, in which the classifier is trained: a share of the run
            below 1, or their number. A run of one epoch trains both at once.
        scales: sizes the image is looked at, in units of ``image_size``, each at least 1; those
            that come to the same pixels count once; None: the paper's six.
        flips: mirror images take part in the class vector.
        merge: ``greedy`` or ``nms``.
        merge_threshold: greedy: the worst match score merged; nms: the largest IoU kept.
        max_windows: windows that vote at a scale for a class, the surest; None: 25.

    Raises:
        UsageError: a value that cannot be used, or images too small for ``pool``.
    """

    has_frozen_epochs = True
    default_scales: Sequence[float] = SCALES
    default_windows = 25
    stage: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        image_size: int | Sequence[int],
        pool: int | None = None,
        hidden: Sequence[int] = (1024, 1024),
        regressor_hidden: Sequence[int] = (1024, 256),
        dropout: float = 0.5,
        per_class: bool = False,
        background: bool | None = None,
        negatives: int = 4,
        classifier_epochs: float = 0.5,
        scales: Sequence[float] | None = None,
        flips: bool = False,
        merge: str = "greedy",
        merge_threshold: float | None = None,
        max_windows: int | None = None,
    ) -> None:
        super().__init__()
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        cells = self._cells(size[0], size[1])
        self.pool = self._pool(pool, cells, size)
        grid = (cells[0] // self.pool, cells[1] // self.pool)
        stride = backbone.strides[-1]
        left = [c - g * self.pool for c, g in zip(cells, grid, strict=True)]  # cells left over
        self.grid = WindowGrid(stride, size[0] - left[0] * stride, size[1] - left[1] * stride)
        scales = self.default_scales if scales is None else scales
        max_windows = self.default_windows if max_windows is None else max_windows
        _check_values(classifier_epochs, scales, merge, merge_threshold)
        _check_counts(hidden, regressor_hidden, negatives, max_windows)
        self.num_classes, self.per_class = num_classes, per_class
        self.background = self._with_background(num_classes, background)
        self.negatives, self.classifier_epochs = negatives, classifier_epochs
        sizes = {self._size(size[0], size[1], float(s)): float(s) for s in scales}
        self.scales, self.flips = list(sizes.values()), flips
        self.merge, self.max_windows = merge, max_windows
        self.merge_threshold = THRESHOLDS[merge] if merge_threshold is None else merge_threshold
        channels = backbone.channels[-1]
        outputs = num_classes + self.background
        self.classifier = DenseHead(channels, hidden, outputs, grid, self.pool, dropout)
        boxes = 4 * (num_classes if per_class else 1)
        self.regressor = DenseHead(channels, regressor_hidden, boxes, grid, self.pool)
        self._start()
        self.register_buffer("stage", torch.tensor(BOTH))

    def _with_background(self, num_classes: int, background: bool | None) -> bool:
        """Whether the classifier has a background class."""
        if num_classes == 1 and background is False:
            raise UsageError(
                "model.background=false: the data have only one class, and a classifier that "
                "knows nothing else says it everywhere; leave it null"
            )
        return num_classes == 1 if background is None else background

    def _cells(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last map of images of that size."""
        like = next(self.backbone.parameters())
        image = torch.zeros((1, self.backbone.in_channels, height, width), device=like.device)
        try:
            with evaluating(self.backbone):
                last = self.backbone(image)[-1]
        except AssertionError as error:  # timm's transformers
            raise UsageError(
                f"data.image_size={height} x {width}: this backbone cannot take it ({error}); "
                f"give a multiple of {self.backbone.strides[-1]}"
            ) from error
        return last.shape[2], last.shape[3]

    def _pool(self, pool: int | None, cells: tuple[int, int], size: list[int]) -> int:
        most = min(cells)
        if pool is None:
            return min(POOL, most)
        if type(pool) is not int or not 1 <= pool <= most:
            raise UsageError(
                f"model.pool={pool}: the last map of images of {size[0]} x {size[1]} has "
                f"{cells[0]} x {cells[1]} cells; give 1 to {most}, or raise data.image_size"
            )
        return pool

    def _start(self) -> None:
        """Nearly equal probabilities, and boxes of half the window, in its middle."""
        for head in (self.classifier, self.regressor):
            nn.init.normal_(head.last.weight, std=0.001)
        bias = self.regressor.last.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(torch.tensor([0.25, 0.25, 0.75, 0.75]).repeat(len(bias) // 4))

    # Phases ------------------------------------------------------------------------------------

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """The classifier in the first ``classifier_epochs``, the regressor after them.

        Raises:
            UsageError: ``classifier_epochs`` leaves none of the run's epochs.
        """
        count = self.classifier_epochs
        first = round(count * epochs) if count < 1 else int(count)
        if epochs > 1 and count >= epochs:
            raise UsageError(
                f"model.classifier_epochs={count:g} leaves the regressor none of the "
                f"{epochs} epochs (trainer.max_epochs); give fewer, or a share below 1"
            )
        first = min(max(first, 1), epochs - 1)
        self.stage.fill_(BOTH if epochs == 1 else CLASSIFIER if epoch < first else REGRESSOR)

    # Outputs -----------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> list[Dense]:
        """``(B, C, H, W)`` in the file's dtype -> outputs at each scale.

        Before the regressor is trained, outputs at scale 1 alone, without boxes.
        """
        x = self.normalize(images)
        if int(self.stage) == CLASSIFIER:
            return [self._dense(x, 1.0, boxes=False)]
        dense = [self._dense(x, scale) for scale in self.scales]
        if self.flips:
            mirrored = x.flip(3)
            dense += [self._dense(mirrored, scale, boxes=False) for scale in self.scales]
        return dense

    def maps(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The last map at a scale, and where the windows on it lie.

        Args:
            x: normalized images ``(B, C, H, W)``.
            scale: the images are enlarged by it, to the nearest number of whole windows.

        Returns:
            ``(B, channels, h, w)``, and float32 ``(V, 4)`` xyxy in pixels of ``x``, V windows row
            by row.
        """
        height, width = x.shape[2:]
        size = self._size(height, width, scale)
        if size != (height, width):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        maps = self.backbone(x)[-1]
        extent = self.classifier.extent
        rows, columns = (n - e + 1 for n, e in zip(maps.shape[2:], extent, strict=True))
        windows = self.grid.boxes(rows, columns, x.device)
        back = windows.new_tensor([width / size[1], height / size[0]] * 2)
        return maps, windows * back

    def _size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Height and width at a scale: whole steps of a window more, as 221, 245, 281, ... are."""
        step = self.grid.stride
        rows, columns = (round(n * (scale - 1) / step) for n in (height, width))
        return height + step * rows, width + step * columns

    def _dense(self, x: Tensor, scale: float, boxes: bool = True) -> Dense:
        maps, windows = self.maps(x, scale)
        logits = self.classifier(maps).float().flatten(2)  # (B, K', rows, columns) -> (B, K', V)
        probs = logits.softmax(dim=1)[:, : self.num_classes]
        found = from_window(self._edges(maps), windows) if boxes else None  # (B, P, V, 4)
        return Dense(probs, found, x.shape[2], x.shape[3])

    def _edges(self, maps: Tensor) -> Tensor:
        """``(B, channels, h, w)`` -> ``(B, P, V, 4)`` edges of the box in units of each window."""
        edges = self.regressor(maps).float().flatten(2)  # (B, 4P, rows, columns) -> (B, 4P, V)
        return edges.unflatten(1, (-1, 4)).transpose(2, 3)  # (B, P, 4, V) -> (B, P, V, 4)

    # Losses ------------------------------------------------------------------------------------

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``classes``, ``windows`` (with a background) and ``boxes``: those of the stage.

        The scale of the latter two is drawn from ``scales``.
        """
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        return self._terms(images, targets, scale)

    def compute_loss(self, outputs: list[Dense], targets: list[Target]) -> dict[str, Tensor]:
        raise ValueError("OverFeat's loss needs the maps: call loss(images, targets)")

    def loss_and_predict(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[Prediction]]:
        """The loss at the middle scale, so that epochs can be compared."""
        with evaluating(self):
            scale = sorted(self.scales)[len(self.scales) // 2]
            return self._terms(images, targets, scale), self.decode(self(images))

    def _terms(self, images: Tensor, targets: list[Target], scale: float) -> dict[str, Tensor]:
        x, stage = self.normalize(images), int(self.stage)
        terms = {}
        if stage != REGRESSOR:
            terms.update(self._class_terms(x, targets, scale))
        if stage != CLASSIFIER:
            with evaluating(self.backbone):
                maps, windows = self.maps(x, scale)
            terms["boxes"] = self._box_loss(self._edges(maps), windows, targets)
        return terms

    def _class_terms(self, x: Tensor, targets: list[Target], scale: float) -> dict[str, Tensor]:
        """Of normalized images: ``classes``, and ``windows`` where there is a background."""
        maps, _ = self.maps(x, 1.0)
        logits = self.classifier(maps).float().flatten(2)  # (B, K', V): views of all the image
        terms = {"classes": self._class_loss(logits, targets)}
        if self.background:
            maps, windows = self.maps(x, scale)
            logits = self.classifier(maps).float().flatten(2)
            terms["windows"] = self._window_loss(logits, windows, targets)
        return terms

    def _class_loss(self, logits: Tensor, targets: list[Target]) -> Tensor:
        """Cross-entropy of every window, each of which sees nearly all of the image."""
        labels = class_targets(targets, logits.shape[1])  # (B,), or (B, K')
        labels = labels[..., None].expand(*labels.shape, logits.shape[2])  # (B, V), or (B, K', V)
        return F.cross_entropy(logits, labels)

    def _window_loss(self, logits: Tensor, windows: Tensor, targets: list[Target]) -> Tensor:
        """Cross-entropy of windows with the object, and of the most mistaken without."""
        positive, negative = [logits.sum() * 0], [logits.sum() * 0]
        for row, target in zip(logits, targets, strict=True):  # (K', V)
            if target.boxes is None or target.label is None or not len(target.boxes):
                continue
            share = overlap(target.boxes[:1].to(windows), windows)[0]  # (V,)
            here, empty = share >= SEEN, share < EMPTY
            losses = -row.log_softmax(dim=0)
            if here.any():
                positive.append(losses[target.label][here].mean())
            if empty.any():
                mistaken = losses[self.num_classes][empty]
                count = min(self.negatives, len(mistaken))
                negative.append(mistaken.topk(count).values.mean())
        return (torch.stack(positive).sum() + torch.stack(negative).sum()) / len(targets)

    def _box_loss(self, edges: Tensor, windows: Tensor, targets: list[Target]) -> Tensor:
        """Squared distance of the four edges, the mean over the windows that see the object."""
        losses = [edges.sum(dim=(1, 2, 3)) * 0]
        for row, target in zip(edges, targets, strict=True):  # (P, V, 4)
            if target.boxes is None or not len(target.boxes):
                continue
            box = target.boxes[:1].to(windows)
            here = overlap(box, windows)[0] >= SEEN  # (V,)
            which = 0
            if self.per_class:
                assert target.label is not None
                which = int(target.label)
            wanted = to_window(box, windows[here])  # (N, 4)
            losses.append((row[which][here] - wanted).square().sum(dim=1))
        return torch.cat(losses).sum() / max(1, sum(len(part) for part in losses[1:]))

    # Predictions -------------------------------------------------------------------------------

    def decode(self, outputs: list[Dense]) -> list[Prediction]:
        """Class vector and guesses of each image; no box before the regressor is trained."""
        peaks = torch.stack([d.probs.detach().amax(dim=2) for d in outputs])  # (scales, B, K)
        vectors = peaks.mean(dim=0)  # (B, K)
        probs = vectors / vectors.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return [
            self._guess(outputs, peaks[:, i].cpu().numpy(), i, probs[i]) for i in range(len(probs))
        ]

    def _guess(self, outputs: list[Dense], peaks: np.ndarray, i: int, probs: Tensor) -> Prediction:
        """One box for each of the likeliest classes of image i, by the votes of its windows."""
        voted: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for dense, peak in zip(outputs, peaks, strict=True):
            if dense.boxes is None:
                continue
            scores = dense.probs[i].detach().cpu().numpy()  # (K, V)
            boxes = dense.boxes[i].detach().cpu().numpy()  # (P, V, 4)
            for k in np.argsort(-peak, kind="stable")[:GUESSES].tolist():
                boxes_of, scores_of = voted.setdefault(k, ([], []))
                surest = np.argsort(-scores[k], kind="stable")[: self.max_windows]
                boxes_of.append(boxes[k if self.per_class else 0][surest])
                scores_of.append(scores[k][surest])
        limit = np.array([outputs[0].width, outputs[0].height] * 2, np.float32)
        found = []
        total = 0.0
        for k, (boxes_of, scores_of) in voted.items():
            box, score, votes = self._merged(
                np.concatenate(boxes_of), np.concatenate(scores_of), limit
            )
            total += votes
            found.append((score, k, box))
        found.sort(key=lambda f: (-f[0], f[1]))
        found = found[:GUESSES]
        if not found:
            none = torch.zeros(0, device=probs.device)
            return Prediction(
                probs=probs, boxes=empty_boxes(probs.device), scores=none, labels=none.long()
            )
        return Prediction(
            probs=probs,
            boxes=torch.tensor(np.stack([b for _, _, b in found]), device=probs.device).float(),
            scores=torch.tensor([s / max(total, 1e-9) for s, _, _ in found], device=probs.device),
            labels=torch.tensor([k for _, k, _ in found], device=probs.device),
        )

    def _merged(
        self, boxes: np.ndarray, scores: np.ndarray, limit: np.ndarray
    ) -> tuple[np.ndarray, float, float]:
        """The best box of one class, its score, and the scores of all its boxes together."""
        merged, sums = self._all_merged(boxes, scores, limit)
        return merged[0], float(sums[0]), float(sums.sum())

    def _all_merged(
        self, boxes: np.ndarray, scores: np.ndarray, limit: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What boxes ``(N, 4)`` of one class are merged into, the highest score first."""
        low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
        boxes = np.clip(np.concatenate([low, high], axis=1), 0, limit)
        if self.merge == "greedy":
            return greedy_merge(boxes, scores, self.merge_threshold)
        kept = nms(torch.tensor(boxes), torch.tensor(scores), self.merge_threshold).numpy()
        return boxes[kept], scores[kept]


def _check_values(
    classifier_epochs: float, scales: Sequence[float], merge: str, merge_threshold: float | None
) -> None:
    """Raise UsageError for a value out of range."""
    if not classifier_epochs > 0:
        raise UsageError(f"model.classifier_epochs={classifier_epochs}: give a number above 0")
    listed = isinstance(scales, Sequence) and len(scales) > 0 and not isinstance(scales, str)
    if not listed or not all(isinstance(s, (int, float)) and s >= 1 for s in scales):
        raise UsageError(
            f"model.scales={scales}: give a list of numbers from 1, sizes over data.image_size"
        )
    if merge not in THRESHOLDS:
        raise UsageError(f"model.merge={merge}: choose one of {', '.join(THRESHOLDS)}")
    if merge_threshold is not None and not merge_threshold >= 0:
        raise UsageError(f"model.merge_threshold={merge_threshold}: give a number from 0, or null")


def _check_counts(
    hidden: Sequence[int],
    regressor_hidden: Sequence[int],
    negatives: int,
    max_windows: int,
) -> None:
    """Raise UsageError for what is not a whole number above 0."""
    for name, units in (("hidden", hidden), ("regressor_hidden", regressor_hidden)):
        listed = isinstance(units, Sequence) and len(units) > 0
        if not listed or not all(type(n) is int and n > 0 for n in units):
            raise UsageError(f"model.{name}={units}: give a list of whole numbers above 0")
    for name, count in (("negatives", negatives), ("max_windows", max_windows)):
        if type(count) is not int or count < 1:
            raise UsageError(f"model.{name}={count}: give a whole number above 0")
