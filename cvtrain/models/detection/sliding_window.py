"""Sliding window: a classifier with a background class, shown every window of the image.

The oldest way to detect with a trained network: Vaillant, Monrocq, Le Cun, "Original approach for
the localisation of objects in images", IEE Proc. Vision, Image and Signal Processing 141(4), 1994
(a convolutional network trained on windows, run over the whole image as a convolution); Rowley,
Baluja, Kanade, "Neural Network-Based Face Detection", PAMI 20(1), 1998 (a pyramid of image sizes,
training on the network's own false positives, overlapping detections joined); Dalal & Triggs 2005
(hard negatives). Written from the papers, with a network of today.

The image is resized by a factor for every size, and by another across than down for every shape, of
the windows (layers/windows.py), and a network of ``window`` x ``window`` pixels says of each what
it holds: one of the K classes or nothing. A box *is* its window: nothing is regressed, so what it
can overlap is bounded by how densely sizes, shapes and places are tried. Suppression is the end.

As windows or as a convolution (``dense``): the backbone runs over each level once and the connected
layers as convolutions over its map, or over each window for itself. The outputs are the same to
rounding if the network does not look beyond a window's edge: no convolution or pooling pads (with
``backbone=window_net``, the default) and nothing reads the whole map (squeeze and excitation,
attention). Networks that pad (darknet_tiny, ResNets, VGG) give something else along the edges of
every window; training shows them windows, so ``dense=false`` is what they learned. The cost is in
the counts: ``num_windows`` that were classified, ``num_forwards`` of the network that it took: a
level of an image each, or a window each.

Training: windows of IoU 0.5 with an object and more are of its class (each object has at least
one, the one it overlaps most), those below 0.4 background. Of an image so many are drawn: some
positives, background at random (every level is as likely), and hard negatives: the false positives
that the network as it is gives on this very image, the surest first, of those that overlap only
one. They are mined in every step of the epochs from ``mine_from`` on. Drawn windows are cut out
and classified as a batch of windows, with softmax cross-entropy.

Deviations: Rowley mines between trainings and keeps what was found; here what is mined is as old as
the step, nothing is stored, and a resumed run mines the same. K classes in one network. Vaillant's
and Rowley's networks have two or three layers; ours (window_net) has four, with batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms as suppressed

from cvtrain.layers.boxes import objects_of
from cvtrain.layers.matcher import NEGATIVE, Matcher
from cvtrain.layers.nms import Method, Selection, best_candidates
from cvtrain.layers.sampler import fixed_draws, sample_balanced
from cvtrain.layers.window_head import DenseHead
from cvtrain.layers.windows import WindowPyramid
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model, evaluating
from cvtrain.structures import Prediction, Target

SIDE = 32
"""Of a window, pixels."""
STEPS = 8
"""Windows are about so many parts of their side apart."""
MANY = 512
"""Hard negatives are looked for among so many, the surest, before those of one place are joined."""
AT_ONCE = 4096
"""Windows in one run of the network, with ``dense=false``."""


class Outputs(NamedTuple):
    """What the network says of all windows of a batch.

    Attributes:
        logits: float32 ``(B, V, K + 1)``, the background last.
        windows: float32 ``(V, 4)`` xyxy pixels.
        counts: windows of each level.
        forwards: runs of the network, each image's counted for itself.
        image_size: height, width in pixels.
    """

    logits: Tensor
    windows: Tensor
    counts: list[int]
    forwards: int
    image_size: tuple[int, int]


class Drawn(NamedTuple):
    """Windows to learn from: places in the batch and in the windows, classes; int64 ``(N,)``."""

    images: Tensor
    windows: Tensor
    labels: Tensor


class SlidingWindow(Model):
    """A backbone and connected layers on windows of several sizes and shapes.

    Args:
        backbone: the map whose stride is nearest to an eighth of the window is used, and ends it;
            the stride is the step of the windows.
        num_classes: K.
        window: side of a window as the network sees it, pixels; None: 32, or the least that the
            backbone takes.
        sides: of the windows, shares of the image's shorter side.
        ratios: height / width of the windows.
        dense: as a convolution over each level, or window by window.
        hidden: units of the connected layers before the last.
        dropout: share of the second and later connected layers' inputs dropped in training, 0..1.
        positive_iou: windows of this IoU with an object and more are of its class, 0..1.
        negative_iou: those below this are background, 0..1.
        positives: of an image, drawn for a step.
        negatives: background windows of an image drawn at random; more where positives are few.
        hard_negatives: of an image, mined.
        mine_from: share of the epochs after which mining begins, 0..1.
        mine_score: negatives of which the network says "object" with more than this are mined.
        nms_iou: a window that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: of each level, the best so many go on to the suppression.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, a window too small for the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        window: int | None = None,
        sides: Sequence[float] = (0.125, 0.177, 0.25, 0.354, 0.5, 0.707, 1.0),
        ratios: Sequence[float] = (0.5, 0.71, 1.0, 1.41, 2.0),
        dense: bool = True,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        positives: int = 16,
        negatives: int = 32,
        hard_negatives: int = 16,
        mine_from: float = 0.1,
        mine_score: float = 0.05,
        nms_iou: float = 0.4,
        nms: Method = "hard",
        min_score: float = 0.01,
        candidates: int = 300,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if min(positives, negatives) < 1 or hard_negatives < 0:
            raise ValueError(
                f"positives={positives} negatives={negatives} hard_negatives={hard_negatives}: "
                "give whole numbers from 1, hard_negatives from 0"
            )
        if not 0 <= mine_from <= 1 or not 0 <= mine_score <= 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"mine_from={mine_from} mine_score={mine_score} dropout={dropout}: give 0..1"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden={list(hidden)}: give a list of whole numbers above 0")
        if window is None:
            window = max(SIDE, backbone.minimum_size)
        if type(window) is not int:
            raise ValueError(f"window={window}: give a whole number of pixels, or null")
        try:
            backbone.check_size(window)
        except ValueError as error:
            raise ValueError(
                f"window={window} is too small for {backbone.architecture}: "
                f"give {backbone.minimum_size} or more"
            ) from error
        self.num_classes, self.dense = num_classes, dense
        self.positives, self.negatives = positives, negatives
        self.hard_negatives = hard_negatives
        self.mine_from, self.mine_score = mine_from, mine_score
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.mining = hard_negatives > 0
        self.matcher = Matcher(positive_iou, negative_iou, rescue="one")
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        distance = [abs(math.log2(stride * STEPS / window)) for stride in backbone.strides]
        self.backbone.truncate(distance.index(min(distance)))
        self.pyramid = WindowPyramid(window, backbone.strides[-1], sides, ratios)
        cells = self._cells(window)
        self.classifier = DenseHead(
            backbone.channels[-1], hidden, num_classes + 1, cells, 1, dropout
        )
        nn.init.normal_(self.classifier.last.weight, std=0.01)

    def _cells(self, window: int) -> tuple[int, int]:
        """Rows and columns of the last map of a window."""
        like = next(self.backbone.parameters())
        image = torch.zeros((1, self.backbone.in_channels, window, window), device=like.device)
        with evaluating(self.backbone):
            last = self.backbone(image)[-1]
        return last.shape[2], last.shape[3]

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Whether this epoch's steps mine: from ``mine_from`` of the run on."""
        self.mining = self.hard_negatives > 0 and epoch >= self.mine_from * epochs

    # Outputs -----------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` of any size -> logits of every window."""
        return self._look(self.pyramid.resized(self.normalize(images).float()), images)

    def _look(self, resized: Sequence[Tensor], images: Tensor) -> Outputs:
        """All windows of the resized images of each level."""
        size = (images.shape[-2], images.shape[-1])
        levels = self.pyramid.levels(*size)
        logits = []
        for x in resized:
            if self.dense:
                found = self._classified(x).flatten(2)  # (B, K + 1, r, c) -> (B, K + 1, r c)
                logits.append(found.transpose(1, 2))  # (B, r c, K + 1)
                continue
            crops = self.pyramid.all_crops(x).flatten(0, 2)  # (B r c, C, w, w)
            parts = [self._classified(part).flatten(1) for part in crops.split(AT_ONCE)]
            logits.append(torch.cat(parts).unflatten(0, (len(x), -1)))  # (B, r c, K + 1)
        counts = [level.count for level in levels]
        runs = len(levels) if self.dense else sum(counts)
        boxes = self.pyramid.boxes(*size, images.device)
        return Outputs(torch.cat(logits, dim=1), boxes, counts, runs * len(images), size)

    def _classified(self, x: Tensor) -> Tensor:
        """``(N, C, h, w)`` -> float32 ``(N, K + 1, rows, columns)``: logits of all windows in x."""
        return self.classifier(self.backbone(x)[-1]).float()

    # Losses ------------------------------------------------------------------------------------

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The term ``classes`` on the windows drawn, cut out; and counts.

        ``num_windows`` and ``num_forwards`` count what was looked at to mine, too.
        """
        size = (images.shape[-2], images.shape[-1])
        resized = self.pyramid.resized(self.normalize(images).float())
        outputs = None
        if self.mining:
            with evaluating(self):
                outputs = self._look(resized, images)
        windows = self.pyramid.boxes(*size, images.device)
        counts = [level.count for level in self.pyramid.levels(*size)]
        drawn = self._draw(windows, counts, targets, outputs, training=True)
        counted = len(drawn.labels) > 0
        if not counted:  # all lie in regions to ignore; batch norm wants two windows
            none = torch.zeros(2, dtype=torch.int64, device=images.device)
            drawn = Drawn(none, none, none)
        logits = self._classified(self.pyramid.crops(resized, drawn.images, drawn.windows))
        entropy = F.cross_entropy(logits.flatten(1), drawn.labels) * counted
        looked = outputs.logits.shape[0] * outputs.logits.shape[1] if outputs else 0
        return self._terms(
            entropy,
            drawn if counted else Drawn(*(part[:0] for part in drawn)),
            targets,
            looked + len(drawn.labels),
            (outputs.forwards if outputs else 0) + len(drawn.labels),
        )

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """The same of windows drawn by a fixed generator, hard ones included: validation."""
        drawn = self._draw(outputs.windows, outputs.counts, targets, outputs, training=False)
        found = outputs.logits[drawn.images, drawn.windows]  # (N, K + 1)
        entropy = F.cross_entropy(found, drawn.labels, reduction="sum")
        entropy = entropy / max(1, len(drawn.labels))
        looked = outputs.logits.shape[0] * outputs.logits.shape[1]
        return self._terms(entropy, drawn, targets, looked, outputs.forwards)

    def _terms(
        self, entropy: Tensor, drawn: Drawn, targets: list[Target], windows: int, forwards: int
    ) -> dict[str, Tensor]:
        def count(n: int) -> Tensor:
            return entropy.detach().new_tensor(n, dtype=torch.float32)

        return {
            "classes": entropy,
            "num_objects": count(sum(len(objects_of(t)[0]) for t in targets)),
            "num_positives": count(int((drawn.labels < self.num_classes).sum())),
            "num_windows": count(windows),
            "num_forwards": count(forwards),
        }

    @torch.no_grad()
    def _draw(
        self,
        windows: Tensor,
        counts: Sequence[int],
        targets: list[Target],
        outputs: Outputs | None,
        training: bool,
    ) -> Drawn:
        """The windows of each image that are learned from; hard ones if ``outputs`` are known."""
        images, places, classes = [], [], []
        rarity = torch.cat([torch.full((n,), 1 / n) for n in counts])  # every level is as likely
        for i, target in enumerate(targets):
            boxes, labels, ignored = objects_of(target, windows.device)
            index, _ = self.matcher(windows, boxes, ignored)
            draws = fixed_draws(training)
            negative = index == NEGATIVE
            found, _ = sample_balanced(index >= 0, negative, self.positives, 1.0, draws)
            hard = windows.new_zeros(0, dtype=torch.int64)
            if outputs is not None and self.hard_negatives:
                message = 1 - outputs.logits[i].softmax(dim=1)[:, self.num_classes]  # (V,)
                hard = self._hardest(windows, torch.where(negative, message, 0.0))
                negative[hard] = False
            wanted = self.negatives + self.positives - len(found)
            weight = rarity * negative.cpu()
            wanted = min(wanted, int((weight > 0).sum()))
            background = hard
            if wanted:
                random = torch.multinomial(weight, wanted, generator=draws)
                background = torch.cat([hard, random.to(hard)])
            images.append(torch.full((len(found) + len(background),), i, device=windows.device))
            places.append(torch.cat([found, background]))
            classes.append(labels[index[found]])
            classes.append(torch.full_like(background, self.num_classes))
        return Drawn(torch.cat(images), torch.cat(places), torch.cat(classes))

    def _hardest(self, windows: Tensor, said: Tensor) -> Tensor:
        """Places of the false positives, the surest first, one of those that overlap.

        Args:
            windows: ``(V, 4)``.
            said: ``(V,)`` probability of any object, 0 where that is not wrong.
        """
        best = said.topk(min(MANY, len(said))).indices
        best = best[said[best] > self.mine_score]
        return best[suppressed(windows[best], said[best], self.select.iou)[: self.hard_negatives]]

    # Predictions -------------------------------------------------------------------------------

    def decode(self, outputs: Outputs) -> list[Prediction]:
        predictions = []
        for logits in outputs.logits:
            scores = logits.softmax(dim=1)[:, : self.num_classes]  # (V, K)
            which, labels = best_candidates(
                scores, outputs.counts, self.candidates, self.select.min_score
            )
            predictions.append(
                self.select(
                    outputs.windows[which],
                    scores[which, labels],
                    labels,
                    image_size=outputs.image_size,
                )
            )
        return predictions
