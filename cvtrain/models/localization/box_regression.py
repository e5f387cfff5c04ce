"""Class and box of one object, by two heads on one backbone.

After the localization networks of Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for
Large-Scale Image Recognition", arXiv 1409.1556, appendix A: the last layer of a classifier gives
the center, width and height of a box instead, one for all classes (SCR) or one per class (PCR).

Deviations: class and box come from one network trained in one go, not from two; the box head
sees the last map averaged to a grid of cells and flattened, so that it knows where each feature
was, in place of VGG's connected layers; the loss is smooth L1 and GIoU (Rezatofighi et al. 2019,
"Generalized Intersection over Union", arXiv 1902.09630) instead of the squared distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvtrain.layers.boxes import center_size, corners
from cvtrain.losses.box_regression import iou_loss, smooth_l1
from cvtrain.losses.targets import class_targets
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.models.localization.guesses import GUESSES
from cvtrain.structures import Prediction, Target

BETA = 0.05
"""Where smooth L1 turns from square to line, fraction of the image."""


@dataclass(frozen=True)
class Outputs:
    """Raw outputs of a batch.

    Attributes:
        logits: float32 ``(B, K)``.
        boxes: float32 ``(B, P, 4)`` cx, cy, w, h in 0..1 of the image; P = 1, or K with a box a
            class.
        height, width: of the images, pixels.
    """

    logits: Tensor
    boxes: Tensor
    height: int
    width: int


class BoxRegression(Model):
    """Backbone; pooled last map to class; last map as a grid to box.

    Args:
        backbone: its last map is used.
        loss: of the class: takes logits ``(B, K)`` and labels, gives a scalar.
        num_classes: K.
        per_class: a box a class instead of one for all.
        grid: cells a side that the box head sees.
        narrow: channels the map is narrowed to before that.
        hidden: units of the box head's hidden layer.
        dropout: share dropped in training before the class layer and the last box layer, 0..1.
        l1, giou: weights of the two terms of the box's loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        per_class: bool = False,
        grid: int = 7,
        narrow: int = 64,
        hidden: int = 256,
        dropout: float = 0.0,
        l1: float = 5.0,
        giou: float = 2.0,
    ) -> None:
        super().__init__()
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        channels = backbone.channels[-1]
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.box = nn.Sequential(
            nn.Conv2d(channels, narrow, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(grid),  # (B, narrow, h, w) -> (B, narrow, grid, grid)
            nn.Flatten(),
            nn.Linear(narrow * grid * grid, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, 4 * (num_classes if per_class else 1)),
        )
        self.criterion = loss
        self.per_class, self.l1, self.giou = per_class, l1, giou
        nn.init.normal_(self.fc.weight, std=0.01)  # start at nearly equal probabilities
        nn.init.zeros_(self.fc.bias)
        last = self.box[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.01)  # and at half the image, in its middle
        nn.init.zeros_(last.bias)

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` in the file's dtype -> logits and boxes."""
        last = self.backbone(self.normalize(images))[-1]  # (B, channels, h, w)
        logits = self.fc(self.dropout(last.mean(dim=(2, 3)))).float()  # (B, K)
        boxes = self.box(last).float().sigmoid().unflatten(1, (-1, 4))  # (B, 4P) -> (B, P, 4)
        return Outputs(logits, boxes, images.shape[2], images.shape[3])

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """``classes``; ``l1`` and ``giou``: means over the batch, 0 for images without a box."""
        logits, device = outputs.logits, outputs.logits.device
        labels = class_targets(targets, logits.shape[1])  # (B,) or (B, K)
        with_box = [i for i, t in enumerate(targets) if t.boxes is not None and len(t.boxes)]
        rows = torch.tensor(with_box, dtype=torch.int64, device=device)  # (N,)
        size = logits.new_tensor([outputs.width, outputs.height] * 2)
        found = [t.boxes[0] for t in targets if t.boxes is not None and len(t.boxes)]
        truths = torch.stack(found) / size if found else logits.new_zeros((0, 4))  # (N, 4) xyxy
        which = torch.zeros_like(rows)
        if self.per_class:
            which = (labels if labels.ndim == 1 else labels.argmax(dim=1))[rows]
        boxes = outputs.boxes[rows, which]  # (B, P, 4) -> (N, 4) cx, cy, w, h
        distance = smooth_l1(boxes, center_size(truths), BETA).sum()
        apart = iou_loss(corners(boxes), truths, "giou").sum()
        return {
            "classes": self.criterion(logits, labels),
            "l1": self.l1 * distance / len(targets),
            "giou": self.giou * apart / len(targets),
        }

    def decode(self, outputs: Outputs) -> list[Prediction]:
        """Up to five guesses an image: the most probable classes, each with its box."""
        probs = outputs.logits.softmax(dim=1)  # (B, K)
        scores, labels = probs.topk(min(GUESSES, probs.shape[1]), dim=1)  # (B, M)
        which = labels if self.per_class else torch.zeros_like(labels)
        boxes = outputs.boxes.gather(1, which[..., None].expand(-1, -1, 4))  # (B, M, 4)
        size = boxes.new_tensor([outputs.width, outputs.height] * 2)
        shown = corners(boxes).clamp(0, 1) * size
        guessed = zip(probs, shown, scores, labels, strict=True)
        return [Prediction(probs=p, boxes=b, scores=s, labels=k) for p, b, s, k in guessed]
