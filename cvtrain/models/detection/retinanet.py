"""RetinaNet (2017): anchors on a feature pyramid, and a loss that easy negatives do not drown.

Paper: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", arXiv 1708.02002.
Written from the paper; anchors and pyramid are torchvision's blocks, and with copied weights
outputs and losses are those of torchvision's RetinaNet.

Five levels, P3 to P7 at strides 8 to 128, 256 channels each. At every place 3 scales x 3 ratios of
anchors, of 32 to 512 pixels and 2^(1/3), 2^(2/3) times as much; two heads of four 3 x 3
convolutions, not shared with each other but by all levels; one sigmoid a class. Anchors are
positive from IoU 0.5 on, negative below 0.4. Focal loss with alpha 0.25, gamma 2 over all anchors,
divided by the number of positives of the image; the class bias starts at a probability of 0.01.

Where the paper is silent or we deviate:

- An object that no anchor overlaps by 0.5 gets those that overlap it most (as in Faster R-CNN, and
  in torchvision's version): small objects would otherwise train nothing.
- The box loss is the L1 distance by default (``loss=l1``): the paper's smooth L1 with its turn at 1
  hardly sees such unscaled offsets; its authors' code puts the turn at 0.11. ``loss=smooth_l1`` and
  the IoU losses can be chosen.
- The heads' convolutions before the last start as He's, not from a Gaussian of 0.01: four of those
  leave a hundredth of the signal, which long training grows again and short training does not.
- Anchors lie at multiples of a level's stride. torchvision divides the image by the map, which
  differs where an image is no multiple of 128 pixels.
- The backbone is any, its batch norms train; the paper's is ResNet-50 or 101, pretrained.
- ``min_score`` 0.01 in place of 0.05: average precision wants the tail, and a young network's
  scores are low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cvtrain.layers.anchors import GridAnchors, flatten_map
from cvtrain.layers.box_coder import BoxCoder
from cvtrain.layers.boxes import objects_of
from cvtrain.layers.dense_head import predictor, prior_bias, tower
from cvtrain.layers.fpn import FPN
from cvtrain.layers.matcher import IGNORED, Matcher
from cvtrain.layers.nms import Method, Selection, best_candidates
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.losses.box_regression import BoxLoss
from cvtrain.losses.focal import sigmoid_focal
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target

MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""


class Outputs(NamedTuple):
    """What the network says of a batch.

    Attributes:
        logits: float32 ``(B, A, K)``, one per class and anchor.
        codes: float32 ``(B, A, 4)``, boxes relative to the anchors.
        anchors: float32 ``(A, 4)`` xyxy pixels.
        counts: anchors of each level.
        image_size: height, width in pixels.
    """

    logits: Tensor
    codes: Tensor
    anchors: Tensor
    counts: list[int]
    image_size: tuple[int, int]


class RetinaNet(Model):
    """Backbone, feature pyramid, a class and a box head on every level.

    Args:
        backbone: its maps are used.
        loss: of the boxes.
        num_classes: K.
        channels: of the pyramid and the heads.
        convs: 3 x 3 convolutions in each head before the last.
        anchor_scale: side of a level's smallest anchors, in strides of the level.
        octave_scales: anchors of so many sizes between a level and the next.
        ratios: height / width of the anchors.
        alpha: weight of the positives in the focal loss, 1 - alpha that of the negatives, 0..1.
        gamma: exponent of the focal loss.
        prior: probability of every class at the start, 0..1.
        positive_iou: anchors of this IoU with an object and more are positive, 0..1.
        negative_iou: those below this are negative, 0..1.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: of each level, the best so many go on to the suppression.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, or a backbone without maps near strides 8 to 32.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: BoxLoss,
        num_classes: int,
        channels: int = 256,
        convs: int = 4,
        anchor_scale: float = 4.0,
        octave_scales: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        nms_iou: float = 0.5,
        nms: Method = "hard",
        min_score: float = 0.01,
        candidates: int = 1000,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1 or gamma < 0:
            raise ValueError(f"alpha={alpha} must be in 0..1, gamma={gamma} at least 0")
        self.num_classes = num_classes
        self.alpha, self.gamma = alpha, gamma
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.criterion = loss
        self.coder = BoxCoder()
        self.matcher = Matcher(positive_iou, negative_iou, rescue="ties")

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        self.neck = FPN(backbone.channels, backbone.strides, channels, extra="map")
        # Whole pixels, rounded down, as torchvision has them: 32, 40, 50; 64, 80, 101; ...
        sides = [anchor_scale * stride for stride in self.neck.strides]
        octave = [2 ** (i / octave_scales) for i in range(octave_scales)]
        scales = [[float(int(side * o)) for o in octave] for side in sides]
        self.anchors = GridAnchors(scales, ratios, self.neck.strides)
        per_place = octave_scales * len(ratios)
        self.class_tower = tower(channels, convs)
        self.class_logits = predictor(channels, per_place * num_classes, prior_bias(prior))
        self.box_tower = tower(channels, convs)
        self.box_codes = predictor(channels, per_place * 4)

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` of any size -> logits and codes of every anchor."""
        x = pad_to_multiple(self.normalize(images), MULTIPLE)
        levels = self.neck(self.backbone(x), (x.shape[-2], x.shape[-1]))
        logits = [
            flatten_map(self.class_logits(self.class_tower(p)), self.num_classes) for p in levels
        ]
        codes = [flatten_map(self.box_codes(self.box_tower(p)), 4) for p in levels]
        anchors = self.anchors([(p.shape[-2], p.shape[-1]) for p in levels], x.device)
        return Outputs(
            logits=torch.cat(logits, dim=1).float(),
            codes=torch.cat(codes, dim=1).float(),
            anchors=torch.cat(anchors),
            counts=[len(a) for a in anchors],
            image_size=(images.shape[-2], images.shape[-1]),
        )

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``classes`` and ``boxes``; counts ``num_objects`` and ``num_positives``."""
        anchors = outputs.anchors
        classes, regressed, objects, positives = [], [], 0, 0
        for logits, codes, target in zip(outputs.logits, outputs.codes, targets, strict=True):
            boxes, labels, ignored = objects_of(target, anchors.device)
            index, _ = self.matcher(anchors, boxes, ignored)
            positive = (index >= 0).nonzero().flatten()  # (P,)
            found = index[positive]
            truth = torch.zeros_like(logits, dtype=torch.bool)  # (A, K)
            truth[positive, labels[found]] = True
            counted = (index != IGNORED)[:, None]  # (A, 1)
            share = max(1, len(positive))
            focal = sigmoid_focal(logits, truth, self.alpha, self.gamma)
            classes.append((focal * counted).sum() / share)
            term = self.criterion.codes(
                codes[positive], boxes[found], anchors[positive], self.coder
            )
            regressed.append(term.sum() / share)
            objects += len(boxes)
            positives += len(positive)
        return {
            "classes": torch.stack(classes).mean(),
            "boxes": torch.stack(regressed).mean(),
            "num_objects": anchors.new_tensor(objects),
            "num_positives": anchors.new_tensor(positives),
        }

    def decode(self, outputs: Outputs) -> list[Prediction]:
        predictions = []
        for logits, codes in zip(outputs.logits, outputs.codes, strict=True):
            scores = logits.sigmoid()  # (A, K)
            which, labels = best_candidates(
                scores, outputs.counts, self.candidates, self.select.min_score
            )
            boxes = self.coder.decode(codes[which], outputs.anchors[which])
            predictions.append(
                self.select(
                    boxes,
                    scores[which, labels],
                    labels,
                    image_size=outputs.image_size,
                )
            )
        return predictions
