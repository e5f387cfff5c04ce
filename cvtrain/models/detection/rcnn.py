"""R-CNN: a network on each of some thousand proposals, an SVM a class on its features.

Paper: Girshick, Donahue, Darrell, Malik, "Rich feature hierarchies for accurate object detection
and semantic segmentation", arXiv 1311.2524 (version 5), section 2 and appendices A to C. Written
from the paper.

Proposals of selective search are cut out of the image, with context (16 pixels on each side of the
crop's 227), and warped to the network's input (appendix A; ``cvtrain.layers.warp``). The network is
fine-tuned with a softmax over the classes and background: proposals of IoU 0.5 and more with an
object, and the objects, are of its class, all others background; a batch is 32 of the former and 96
of the latter (2.3). Then, in stages, once each: its features of all training boxes; one linear SVM
a class, whose positives are the objects and whose negatives are proposals of IoU below 0.3 with all
objects of the class, with hard-negative mining (2.3, appendix B); and one ridge regression a class
from the last map to the place of the object, lambda 1000, of pairs of IoU above 0.6 (appendix C).
The softmax scores the epochs of fine-tuning; the SVMs and the regressors are what the finished
model predicts by, unless ``svm`` or ``box_regression`` is false, as in the paper's ablations (table
2, appendix B).

With AlexNet and VGG-16 the features are fc7's 4096 numbers, and the last map is pool5's: 9216, and
25,088 of VGG-16 at 224 pixels. Other backbones: their pooled features, and the last map, max-pooled
to 6 x 6 where it is larger than 7 x 7. SVMs see fc7's, as in the paper; of small networks, whose
pooled features are few, the map (``svm_features``; the paper's ablation has pool5 too), each box's
brought to one length (``svm_normalize``): how much contrast a crop has says nothing of its class.

What that is worth with ``darknet_tiny`` (512 numbers in the map, 32 pooled): mAP50 and mAP of boxes
as they are proposed, three networks, each the same for all rows:

===================================== ============= ============= =============
what SVMs see, weight of the objects  60 scenes,    16 scenes     16 photographs
                                      200 others    overfit       overfit
                                      trained on
===================================== ============= ============= =============
softmax, no SVMs                      0.40, 0.27    0.96, 0.62    0.89, 0.40
pooled features, 50                   0.44, 0.30    0.96, 0.61    0.89, 0.40
the map, 50                           0.53, 0.39    0.99, 0.65    0.86, 0.35
the map, 2                            0.54, 0.36    0.99, 0.67    0.89, 0.37
the map at one length, 50             0.61, 0.45    0.98, 0.68    0.82, 0.30
the map at one length, 2, the default 0.66, 0.47    0.94, 0.67    1.00, 0.35
===================================== ============= ============= =============

The default was chosen by the first column, so that its 0.66 is no measure of what it is worth
elsewhere. On data that had no part in the choice, photographs of raccoons, 100 to train on and 40
others, it took mAP50 from 0.53 (the map, 50) to 0.55, and mAP from 0.17 to 0.15.

Deviations:
- Boxes are cut out of the image as it comes from the loader: letterboxed at ``data.image_size`` and
  augmented, so that a long side of VOC's 500 pixels is the original, and larger photographs lose
  detail. A crop of a part that is larger than itself is averaged, not sampled. Beyond the edge is
  the mean color, as in the paper; the letterbox's own border is gray.
- The 128 boxes of a step are drawn from its ``data.batch_size`` images, at random among all their
  positives and all their negatives; the paper draws them from the whole set. Where the images have
  fewer than 32 positives, negatives fill up.
- Where backbones are not pretrained, all is: on ImageNet; here on whatever ``backbone.weights``
  says, or nothing. AdamW and one schedule in place of SGD at 0.001.
- Mining goes through all images again until no negative in the margin is left out, ``rounds`` times
  at most; the paper stops after one pass. C = 0.001 on features of mean length 20 and the 0.3 of
  the suppression are not in the paper; they are what its authors are known to have used. They had
  objects count twice; here so where the map is normalized and else 50 times, because on few pooled
  features a machine that says no everywhere is the better one otherwise (0.17 in place of 0.44 in
  the first column above).
- Scores are sigmoid(2 m) of a margin m, so that they lie in 0..1; their order is that of margins.
- The regressed box is clipped to the image; the suppression is told the regressed boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.box_coder import BoxCoder
from cvtrain.layers.boxes import area, objects_of, pairwise
from cvtrain.layers.matcher import IGNORED, NEGATIVE, Matcher
from cvtrain.layers.nms import Method, Selection
from cvtrain.layers.sampler import sample_balanced
from cvtrain.layers.warp import warp
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model, evaluating
from cvtrain.models.detection.rcnn_stages import BoxRegressors, SVMs
from cvtrain.models.staged import Staged
from cvtrain.structures import Prediction, Target

SMALLEST, LARGEST, STEP = 32, 224, 32
"""Crops that follow the image: pixels at least and at most, and multiples of these."""
PADDING = 16 / 227
"""Context on each side, of a crop's side."""
MOST = 4096
"""SVMs see a last map of at most so many numbers where the user does not say what."""
POOL5, WHOLE = 6, 7
"""A last map larger than 7 x 7 is max-pooled to 6 x 6: AlexNet's pool5."""


class Outputs(NamedTuple):
    """What the network says of N boxes, those of the first image first.

    Attributes:
        logits: float32 ``(N, 1 + K)``, the background first.
        margins: float32 ``(N, K)`` of the SVMs; None before they are fitted.
        codes: float32 ``(N, K, 4)`` of the regressors; None before they are fitted.
        boxes: B of ``(P, 4)`` xyxy pixels, N in all.
        image_size: height, width in pixels.
    """

    logits: Tensor
    margins: Tensor | None
    codes: Tensor | None
    boxes: list[Tensor]
    image_size: tuple[int, int]


class RCNN(Model, Staged):
    """Backbone on warped crops, softmax, then SVMs and box regressors.

    Args:
        backbone: its pooled features are used, and its last map.
        num_classes: K.
        image_size: of the images, pixels, an int or (H, W); ``crop_size`` follows it.
        crop_size: side of what the backbone sees of a box, pixels; None: half of the image's
            shorter side in whole multiples of 32, at least 32, at most 224.
        padding: pixels of a crop's borders that are around the box; None: the paper's 16 of 227, in
            proportion.
        crops: boxes of a step that are trained on.
        positives: of these, at most so many of objects.
        positive_iou: boxes of this IoU with an object and more are positive in fine-tuning, 0..1.
        crops_per_pass: crops that go through the network at once.
        svm: whether SVMs replace the softmax at the end.
        svm_features: what they see: ``pooled`` features, or the last ``map``; None: the map where
            it has 4,096 numbers at most.
        svm_normalize: whether what they see of a box is brought to one length; None: the map is,
            pooled features are not.
        svm_negative_iou: an SVM's negatives overlap all objects of its class by less, 0..1.
        svm_C, svm_positive_weight, svm_rounds: see ``SVMs``; a weight of None: 2 where what they
            see is normalized, else 50.
        box_regression: whether boxes are moved at the end.
        ridge: the penalty of the box regression, lambda.
        pair_iou: proposals that overlap an object by more are what it learns from, 0..1.
        fit_boxes: proposals of an image that the stages learn from, the best; None: all.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: of so many pairs of box and class, the best, the suppression is told.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a number out of range, or crops that the backbone cannot take.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        image_size: int | Sequence[int],
        crop_size: int | None = None,
        padding: int | None = None,
        crops: int = 128,
        positives: int = 32,
        positive_iou: float = 0.5,
        crops_per_pass: int = 256,
        svm: bool = True,
        svm_features: Literal["pooled", "map"] | None = None,
        svm_normalize: bool | None = False,
        svm_negative_iou: float = 0.3,
        svm_C: float = 0.001,
        svm_positive_weight: float | None = 50.0,
        svm_rounds: int = 10,
        box_regression: bool = True,
        ridge: float = 1000.0,
        pair_iou: float = 0.6,
        fit_boxes: int | None = None,
        nms_iou: float = 0.3,
        nms: Method = "hard",
        min_score: float = 0.01,
        candidates: int = 2000,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        side = image_size if isinstance(image_size, int) else min(image_size)
        if crop_size is None:
            crop_size = min(max(side // 2 // STEP * STEP, SMALLEST), LARGEST)
        if padding is None:
            padding = round(PADDING * crop_size)
        if not 0 <= 2 * padding < crop_size:
            raise ValueError(
                f"padding={padding} leaves nothing of a crop of {crop_size} pixels for the box; "
                f"give {(crop_size - 1) // 2} or less, or raise crop_size"
            )
        if not 0 <= positives <= crops or crops < 2:
            raise ValueError(f"crops={crops} positives={positives}: give 0 <= positives <= crops")
        positive_weight = 1.0 if svm_positive_weight is None else svm_positive_weight
        if min(svm_C, positive_weight, ridge) <= 0 or min(svm_rounds, crops_per_pass) < 1:
            raise ValueError(
                f"svm_C={svm_C} svm_positive_weight={svm_positive_weight} ridge={ridge} "
                f"svm_rounds={svm_rounds} crops_per_pass={crops_per_pass}: all are above 0"
            )
        if fit_boxes is not None and fit_boxes < 1:
            raise ValueError(f"fit_boxes={fit_boxes}: give 1 or more, or null for all")
        if svm_features not in (None, "pooled", "map"):
            raise ValueError(f"svm_features={svm_features}: there is pooled, map or null")
        self.num_classes, self.crop_size, self.padding = num_classes, crop_size, padding
        self.crops, self.positives, self.crops_per_pass = crops, positives, crops_per_pass
        self.svm_negative_iou, self.pair_iou, self.fit_boxes = svm_negative_iou, pair_iou, fit_boxes
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.matcher, self.coder = Matcher(positive_iou), BoxCoder()
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("pooled")
        self.fc = nn.Linear(backbone.num_features, num_classes + 1)
        nn.init.normal_(self.fc.weight, std=0.01)  # as the paper replaces ImageNet's 1000 classes
        nn.init.zeros_(self.fc.bias)
        self.stages = nn.ModuleDict()
        features, maps = self._lengths()
        self.svm_map = maps <= MOST if svm_features is None else svm_features == "map"
        self.svm_normalize = self.svm_map if svm_normalize is None else svm_normalize
        if svm:
            features = maps if self.svm_map else features
            if svm_positive_weight is None:
                positive_weight = 2.0 if self.svm_normalize else 50.0
            self.stages["svms"] = SVMs(features, num_classes, svm_C, positive_weight, svm_rounds)
        if box_regression:
            self.stages["boxes"] = BoxRegressors(maps, num_classes, ridge)

    def _lengths(self) -> tuple[int, int]:
        """Numbers in the features and in the last map of a crop."""
        like = next(self.backbone.parameters())
        shape = (1, self.backbone.in_channels, self.crop_size, self.crop_size)
        try:
            with evaluating(self.backbone):
                maps, features = self._described(torch.zeros(shape, device=like.device))
        except AssertionError as error:  # timm's transformers
            raise ValueError(
                f"crop_size={self.crop_size}: this backbone cannot take it ({error}); give what "
                "it was made for"
            ) from error
        return features.shape[1], maps.shape[1]

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """The network changes: what was fitted to it before is void."""
        for stage in self.stages.values():
            stage.reset()  # type: ignore[operator]

    # Network -----------------------------------------------------------------------------------

    def _described(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized ``(n, C, S, S)`` -> last map, flat ``(n, F')``, and features ``(n, F)``."""
        maps, features = self.backbone.last_and_pooled(crops)
        if max(maps.shape[-2:]) > WHOLE:
            maps = F.adaptive_max_pool2d(maps, POOL5)
        return maps.flatten(1), features

    def _seen(self, maps: Tensor, features: Tensor) -> Tensor:
        """What SVMs see of n boxes, float32 ``(n, F)``: their maps or their features."""
        seen = (maps if self.svm_map else features).float()
        return F.normalize(seen, dim=1) if self.svm_normalize else seen

    def _passes(self, images: Tensor, boxes: list[Tensor]) -> Any:
        """Crops of all boxes in turn, ``(n, C, S, S)``, as many as go through at once."""
        x = self.normalize(images)
        which = torch.cat([torch.full((len(b),), i) for i, b in enumerate(boxes)])  # on the CPU
        every = torch.cat(boxes)
        for start in range(0, len(every), self.crops_per_pass):
            part = slice(start, start + self.crops_per_pass)
            first, last = int(which[part][0]), int(which[part][-1])
            counts = torch.bincount(which[part] - first, minlength=last - first + 1).tolist()
            found = list(every[part].split(counts))
            yield warp(x[first : last + 1], found, self.crop_size, self.padding)

    def forward(self, images: Tensor, proposals: list[Tensor]) -> Outputs:  # type: ignore[override]
        """Images and boxes -> what the network says of each box.

        Args:
            images: ``(B, C, H, W)`` in the file's dtype.
            proposals: B of ``(P, 4)`` xyxy pixels, one box at least in all.
        """
        svms, regressors = self._fitted("svms"), self._fitted("boxes")
        logits, margins, codes = [], [], []
        for crops in self._passes(images, proposals):
            if regressors is None and (svms is None or not self.svm_map):
                features = maps = self.backbone.pooled(crops)
            else:
                maps, features = self._described(crops)
            logits.append(self.fc(features).float())
            with torch.autocast(images.device.type, enabled=False):
                if svms is not None:
                    margins.append(svms(self._seen(maps, features)))
                if regressors is not None:
                    codes.append(regressors(maps))
        return Outputs(
            logits=torch.cat(logits),
            margins=torch.cat(margins) if margins else None,
            codes=torch.cat(codes) if codes else None,
            boxes=proposals,
            image_size=(images.shape[-2], images.shape[-1]),
        )

    def _fitted(self, name: str) -> Any:
        """A stage; None where it is not wanted, or not fitted yet."""
        if name not in self.stages:
            return None
        stage: Any = self.stages[name]
        return stage if bool(stage.fitted) else None

    # Fine-tuning -------------------------------------------------------------------------------

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the boxes that are drawn: see ``compute_loss``."""
        drawn, labels, counted = self._draw(targets, _given(proposals))
        outputs = self(images, drawn)
        entropy = F.cross_entropy(outputs.logits, labels, reduction="none") * counted
        return {
            "classes": entropy.sum() / counted.sum().clamp(min=1),
            **_counts(targets, (labels > 0).sum()),
        }

    def _draw(
        self, targets: list[Target], proposals: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """A step's boxes.

        Returns:
            B of ``(P, 4)``, N in all; int64 ``(N,)`` labels, 0 the background; float32 ``(N,)``: 1,
            or 0 of boxes that only make two of them at least, as batch norm wants.
        """
        candidates, found = [], []
        for target, boxes in zip(targets, proposals, strict=True):
            objects, labels, ignored = objects_of(target, boxes.device)
            sound = area(objects) > 0
            objects, labels = objects[sound], labels[sound]
            every = torch.cat([objects, boxes])
            index, _ = self.matcher(every, objects, ignored)
            candidates.append(every)
            found.append(_labels(index, labels))
        label = torch.cat(found)  # (A,), all images' in turn
        share = self.positives / self.crops
        drawn = torch.cat(sample_balanced(label > 0, label == 0, self.crops, share))
        spare = torch.arange(max(0, 2 - len(drawn)), device=drawn.device) % len(label)
        chosen = torch.cat([drawn, spare])
        counted = torch.cat([torch.ones(len(drawn)), torch.zeros(len(spare))]).to(label.device)
        order = chosen.argsort(stable=True)  # image by image
        chosen, counted = chosen[order], counted[order]
        parts, start = [], 0
        for every in candidates:
            mine = chosen[(chosen >= start) & (chosen < start + len(every))] - start
            parts.append(every[mine])
            start += len(every)
        return parts, label[chosen].clamp(min=0), counted

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """``classes``, the softmax's cross-entropy; counts ``num_objects`` and ``num_positives``.

        Of all boxes, weighted as a step's draw does on average: positives and negatives share it as
        ``positives`` and the rest of ``crops`` do; where there are no positives, negatives are all.
        """
        found = []
        for target, boxes in zip(targets, outputs.boxes, strict=True):
            objects, labels, ignored = objects_of(target, boxes.device)
            index, _ = self.matcher(boxes, objects, ignored)
            found.append(_labels(index, labels))
        label = torch.cat(found)
        entropy = F.cross_entropy(outputs.logits, label.clamp(min=0), reduction="none")
        share, total = self.positives / self.crops, entropy.new_zeros(())
        if not (label > 0).any():
            share = 0.0
        for kind, weight in ((label > 0, share), (label == 0, 1 - share)):
            total = total + weight * (entropy * kind).sum() / kind.sum().clamp(min=1)
        return {"classes": total, **_counts(targets, (label > 0).sum())}

    # Predictions -------------------------------------------------------------------------------

    def decode(self, outputs: Outputs) -> list[Prediction]:
        """Scores of the SVMs where they are fitted, of the softmax before; boxes likewise."""
        if outputs.margins is not None:
            scores = (2 * outputs.margins).sigmoid()  # (N, K)
        else:
            scores = outputs.logits.softmax(dim=1)[:, 1:]
        predictions, start = [], 0
        for boxes in outputs.boxes:
            mine = slice(start, start + len(boxes))
            start += len(boxes)
            moved = boxes
            if outputs.codes is not None:
                moved = self.coder.decode(outputs.codes[mine], boxes[:, None])  # (P, K, 4)
            predictions.append(
                self.select(
                    moved,
                    scores[mine],
                    candidates=self.candidates,
                    image_size=outputs.image_size,
                )
            )
        return predictions

    # What the stages are fitted to -------------------------------------------------------------

    def example_settings(self) -> dict[str, Any]:
        names = ["crop_size", "padding", "svm_map", "svm_normalize", "svm_negative_iou"]
        names += ["pair_iou", "fit_boxes"]
        return {"stages": list(self.stages), **{name: getattr(self, name) for name in names}}

    def examples(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, np.ndarray]:
        """Rows of all objects and proposals, and pairs of a proposal and its object.

        Returns:
            ``features`` float32 ``(M, F)`` and ``signs`` int8 ``(M, K)`` (1: an object of the
            class; -1: a negative of its SVM; 0: neither) for the SVMs; ``pair_maps`` float32
            ``(Q, F')``, ``pair_codes`` float32 ``(Q, 4)`` and ``pair_labels`` int64 ``(Q,)`` for
            the regressors.
        """
        boxes, signs, codes, labels, paired = [], [], [], [], []
        for target, offered in zip(targets, _given(proposals), strict=True):
            rows, sign, code, label = self._examples_of(target, offered[: self.fit_boxes])
            boxes.append(rows)
            signs.append(sign)
            paired.append(label >= 0)
            codes.append(code[label >= 0])
            labels.append(label[label >= 0])
        wanted = torch.cat(paired)
        features, maps, start = [], [], 0
        with evaluating(self):
            for crops in self._passes(images, boxes):
                found, described = self._described(crops)
                if "svms" in self.stages:
                    features.append(self._seen(found, described))
                maps.append(found[wanted[start : start + len(crops)]].float())
                start += len(crops)
        made = {}
        if "svms" in self.stages:
            made = {"features": torch.cat(features), "signs": torch.cat(signs)}
        if "boxes" in self.stages:
            made["pair_maps"] = torch.cat(maps)
            made |= {"pair_codes": torch.cat(codes), "pair_labels": torch.cat(labels)}
        return {name: value.cpu().numpy() for name, value in made.items()}

    def _examples_of(
        self, target: Target, proposals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes ``(n, 4)`` of an image, their signs ``(n, K)``, codes ``(n, 4)``, labels ``(n,)``.

        Codes and labels are those of pairs; the labels of all other boxes are -1.
        """
        objects, labels, ignored = objects_of(target, proposals.device)
        sound = area(objects) > 0
        objects, labels = objects[sound], labels[sound]
        boxes = torch.cat([objects, proposals])  # (n, 4)
        count = len(objects)
        # The matcher marks what lies in a region to ignore; it has no negatives of a class alone.
        index, _ = Matcher(1.0)(boxes, objects[:0], ignored)
        iou = pairwise(boxes, objects)  # (n, G)
        most = iou.new_zeros(len(boxes), self.num_classes)
        most.scatter_reduce_(1, labels.expand(len(boxes), -1), iou, "amax")  # (n, K)
        negative = (most < self.svm_negative_iou) & (index != IGNORED)[:, None]
        signs = -negative.to(torch.int8)
        rows = torch.arange(count, device=boxes.device)
        signs[rows, labels] = 1
        codes = torch.zeros_like(boxes)
        pairs = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        if count:
            best, nearest = iou.max(dim=1)
            near = best > self.pair_iou
            near[:count] = False  # objects have nowhere to go
            codes[near] = self.coder.encode(objects[nearest[near]], boxes[near])
            pairs[near] = labels[nearest[near]]
        return boxes, signs, codes, pairs


def _given(proposals: list[Tensor] | None) -> list[Tensor]:
    if proposals is None:
        raise ValueError("R-CNN is given its boxes: call it with proposals")
    return proposals


def _labels(index: Tensor, labels: Tensor) -> Tensor:
    """What the matcher said -> int64 ``(A,)``: 1 + the class, 0 the background, -1 for neither."""
    label = torch.full_like(index, -1)
    label[index == NEGATIVE] = 0
    label[index >= 0] = labels[index[index >= 0]] + 1
    return label


def _counts(targets: list[Target], positives: Tensor) -> dict[str, Tensor]:
    objects = sum(len(objects_of(target)[0]) for target in targets)
    return {"num_objects": positives.new_tensor(objects), "num_positives": positives.detach()}
