"""SSD (2016): default boxes on maps of six sizes, classes and offsets by one convolution each.

Paper: Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, "SSD: Single Shot MultiBox Detector", arXiv
1512.02325. Written from the paper; with copied weights outputs and losses of the VGG-16 network are
those of torchvision's ssd300_vgg16.

``backbone=vgg16 data.image_size=300`` is SSD300: conv4_3 (38 x 38, normalized to length 20 a place,
the factor learned by channel), fc6 and fc7 as convolutions (the first dilated by 6, after a pooling
of 3 x 3 and stride 1; 19 x 19), then conv8_2 to conv11_2 (10, 5, 3, 1): 8,732 default boxes.
Softmax over the classes and a background; smooth L1; three hard negatives a positive. An object
takes the default box it overlaps most, and every one it overlaps by 0.5.

Where the paper is silent or we deviate:

- Any other backbone: its maps at strides 8, 16 and 32 (the nearest, resized, where it has none),
  and the paper's extra layers on top: six maps of the same sizes, 8,732 boxes at 300 x 300. The
  default is a ResNet, which learns from scratch; the paper's VGG starts from ImageNet and has no
  norms to do without.
- Images of any size: an extra layer has stride 2, but where its map is 3 or 5 pixels none and no
  padding, which at 300 is the paper's network. Boxes scale with the image.
- Default boxes lie at the centers of an even grid, as the paper's formula says; its code (and
  torchvision) steps by 8, 16, 32, 64, 100, 300 pixels. Their scales are those of the paper's code
  for VOC. Sides are cut to the image's.
- Two objects never share the default box that is to be theirs alone (in torchvision the last one
  has it).
- An image without positives gives 3 negatives, in the paper none: images of nothing teach too.
- Layers on top start as Glorot's (the paper's, and torchvision's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.anchors import default_box_sizes, default_boxes, flatten_map
from cvtrain.layers.box_coder import BoxCoder
from cvtrain.layers.boxes import objects_of
from cvtrain.layers.fpn import nearest_maps, resized
from cvtrain.layers.matcher import NEGATIVE, Matcher
from cvtrain.layers.nms import Method, Selection
from cvtrain.layers.pad import conv_down
from cvtrain.layers.sampler import hard_negatives
from cvtrain.losses.box_regression import BoxLoss
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target

SOURCES = (8, 16, 32)
"""Strides of the backbone's maps that are used; of VGG's, the first two."""
FC_CHANNELS = 1024
"""Of fc6 and fc7."""
L2_LENGTH = 20.0
"""To which conv4_3 is normalized at the start."""


class Outputs(NamedTuple):
    """What the network says of a batch.

    Attributes:
        logits: float32 ``(B, A, 1 + K)``, the background first.
        codes: float32 ``(B, A, 4)``, boxes relative to the default boxes.
        anchors: float32 ``(A, 4)`` the default boxes, xyxy pixels.
        image_size: height, width in pixels.
    """

    logits: Tensor
    codes: Tensor
    anchors: Tensor
    image_size: tuple[int, int]


class L2Norm(nn.Module):
    """Channels of every place scaled to one length, times a learned factor each (ParseNet)."""

    def __init__(self, channels: int, length: float = L2_LENGTH) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), length))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> float32 ``(B, C, H, W)``; squares would overflow in half floats."""
        return F.normalize(x.float()) * self.scale[:, None, None]


class SSD(Model):
    """Backbone, extra layers, a class and a box convolution on each of the maps.

    Args:
        backbone: its maps are used.
        loss: of the boxes.
        num_classes: K.
        extra_channels: of the layers on top, the paper's four; other backbones than VGG take the
            last three.
        fc: whether fc6 and fc7 follow the map of stride 16, which ends the backbone's part; None:
            with a VGG alone.
        l2_norm: whether the first map is normalized as conv4_3 is.
        scales: sides of the default boxes in shares of the image, one a map and one more.
        ratios: for each map the width / height of its boxes beside 1; the inverse comes with it.
        steps: pixels between default boxes, one a map; None: the image evenly divided.
        positive_iou: default boxes of this IoU with an object and more are positive, 0..1.
        negatives: hard negatives a positive.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: of each class, the best so many go on to the suppression.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: numbers of maps that differ, or a backbone without maps near strides 8 to 32.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: BoxLoss,
        num_classes: int,
        extra_channels: Sequence[int] = (512, 256, 256, 256),
        fc: bool | None = None,
        l2_norm: bool = True,
        scales: Sequence[float] = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05),
        ratios: Sequence[Sequence[float]] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        steps: Sequence[float] | None = None,
        positive_iou: float = 0.5,
        negatives: float = 3.0,
        nms_iou: float = 0.45,
        nms: Method = "hard",
        min_score: float = 0.01,
        candidates: int = 400,
        max_detections: int = 200,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.steps, self.negatives = steps, negatives
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.criterion = loss
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(positive_iou, rescue="one")
        self.box_sizes = default_box_sizes(scales, ratios)

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        if fc is None:
            fc = backbone.architecture.startswith("vgg")
        self.source_strides = self._source_strides(fc)
        self.sources = nearest_maps(backbone.strides, self.source_strides)
        channels = [backbone.channels[i] for i in self.sources]
        self.l2_norm = L2Norm(channels[0]) if l2_norm else None
        self.fc = _fc(channels[-1]) if fc else None
        if fc:
            _round_up(backbone)
            channels[-1] = FC_CHANNELS
        count = len(self.box_sizes) - len(channels)
        if not 0 <= count <= len(extra_channels):
            raise ValueError(
                f"default boxes for {len(self.box_sizes)} maps; {len(channels)} come from the "
                f"backbone and {len(extra_channels)} are given by extra_channels"
            )
        self.extras = nn.ModuleList()
        for width in list(extra_channels)[len(extra_channels) - count :]:
            self.extras.append(self._extra(channels[-1], width))
            channels.append(width)
        per_place = [len(sizes) for sizes in self.box_sizes]
        self.class_heads, self.box_heads = nn.ModuleList(), nn.ModuleList()
        for width, boxes in zip(channels, per_place, strict=True):
            self.class_heads.append(self._head(width, boxes * (num_classes + 1)))
            self.box_heads.append(self._head(width, boxes * 4))
        for part in (self.fc, self.extras, self.class_heads, self.box_heads):
            if part is not None:
                self._start(part)

    # What SSDLite builds otherwise --------------------------------------------------------------

    def _source_strides(self, fc: bool) -> tuple[int, ...]:
        return SOURCES[:2] if fc else SOURCES

    def _extra(self, inputs: int, outputs: int) -> nn.Module:
        """A layer on top: 1 x 1, then 3 x 3 to a smaller map."""
        return ExtraLayer(inputs, outputs // 2, outputs)

    def _head(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    def _start(self, part: nn.Module) -> None:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    # --------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Outputs:
        """``(B, C, H, W)`` of any size -> logits and codes of every default box."""
        size = (images.shape[-2], images.shape[-1])
        found = self.backbone(self.normalize(images))
        maps = []
        for stride, source in zip(self.source_strides, self.sources, strict=True):
            maps.append(resized(found[source], (-(-size[0] // stride), -(-size[1] // stride))))
        if self.fc is not None:
            maps[-1] = self.fc(maps[-1])
        x = maps[-1]
        if self.l2_norm is not None:
            maps[0] = self.l2_norm(maps[0])
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        classes = self.num_classes + 1
        logits = [flatten_map(h(m), classes) for h, m in zip(self.class_heads, maps, strict=True)]
        codes = [flatten_map(h(m), 4) for h, m in zip(self.box_heads, maps, strict=True)]
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
        return Outputs(
            logits=torch.cat(logits, dim=1).float(),
            codes=torch.cat(codes, dim=1).float(),
            anchors=default_boxes(self.box_sizes, sizes, size, images.device, self.steps),
            image_size=size,
        )

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``classes`` and ``boxes``; counts ``num_objects`` and ``num_positives``."""
        anchors = outputs.anchors
        matches, wanted, regressed, objects = [], [], [], 0
        for codes, target in zip(outputs.codes, targets, strict=True):
            boxes, labels, ignored = objects_of(target, anchors.device)
            index, _ = self.matcher(anchors, boxes, ignored)
            positive = (index >= 0).nonzero().flatten()  # (P,)
            found = index[positive]
            label = torch.zeros_like(index)  # (A,), 0 is the background
            label[positive] = labels[found] + 1
            term = self.criterion.codes(
                codes[positive], boxes[found], anchors[positive], self.coder
            )
            matches.append(index)
            wanted.append(label)
            regressed.append(term.sum())
            objects += len(boxes)
        index, label = torch.stack(matches), torch.stack(wanted)  # (B, A)
        entropy = F.cross_entropy(outputs.logits.transpose(1, 2), label, reduction="none")  # (B, A)
        positive = index >= 0
        least = max(1, round(self.negatives))
        hard = hard_negatives(entropy, positive, index == NEGATIVE, self.negatives, least)
        share = positive.sum().clamp(min=1)
        return {
            "classes": (entropy * (positive | hard)).sum() / share,
            "boxes": torch.stack(regressed).sum() / share,
            "num_objects": anchors.new_tensor(objects),
            "num_positives": positive.sum(),
        }

    def decode(self, outputs: Outputs) -> list[Prediction]:
        predictions = []
        for logits, codes in zip(outputs.logits, outputs.codes, strict=True):
            boxes = self.coder.decode(codes, outputs.anchors)  # (A, 4)
            scores = logits.softmax(dim=-1)[:, 1:]  # (A, K)
            scores, which = scores.topk(min(self.candidates, len(scores)), dim=0)  # (n, K)
            labels = torch.arange(self.num_classes, device=boxes.device).expand_as(which)
            predictions.append(
                self.select(
                    boxes[which.flatten()],
                    scores.flatten(),
                    labels.flatten(),
                    image_size=outputs.image_size,
                )
            )
        return predictions


class ExtraLayer(nn.Module):
    """1 x 1 to ``width`` channels, 3 x 3 to ``outputs``, on a map of half the size."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(inputs, width, 1)
        self.conv = nn.Conv2d(width, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` -> ``(B, outputs, ceil(H / 2), ceil(W / 2))``, of 3 or 5 H - 2."""
        stride, padding = reduction(x)
        x = F.relu(self.narrow(x))
        return F.relu(conv_down(self.conv, x, stride, padding))


def reduction(x: Tensor) -> tuple[int, int]:
    """Stride and padding of the next 3 x 3 convolution: SSD300's 19, 10, 5, 3, 1, others alike."""
    return (1, 0) if min(x.shape[-2:]) in (3, 5) else (2, 1)


def _fc(inputs: int) -> nn.Sequential:
    """VGG's connected layers as convolutions; the holes in the first make up for its pooling."""
    return nn.Sequential(
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(inputs, FC_CHANNELS, 3, padding=6, dilation=6),
        nn.ReLU(inplace=True),
        nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1),
        nn.ReLU(inplace=True),
    )


def _round_up(backbone: nn.Module) -> None:
    """Let poolings of 2 x 2 keep a last odd row: 75 pixels become the paper's 38, not 37."""
    for module in backbone.modules():
        if isinstance(module, nn.MaxPool2d) and module.kernel_size in (2, (2, 2)):
            module.ceil_mode = True
