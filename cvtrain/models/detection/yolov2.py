"""YOLOv2 (2016): anchors from the data, fine and coarse features, one network for many sizes.

Paper: Redmon, Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv 1612.08242, sections 2 and 3.
Written from the paper; nothing of darknet's code is in here.

Two 3 x 3 convolutions on the backbone's last map; beside it the map of half its stride, its 2 x 2
neighbors stacked into channels (pass-through); both together through one more 3 x 3 convolution;
a 1 x 1 convolution to A x (5 + C) numbers a cell: for each of A anchors four of a box, its
objectness and its own classes. Batch norm throughout. With ``backbone=darknet19`` at 416 x 416,
A = 5, C = 20: 13 x 13 x 125, and 50,655,389 parameters. The loss is in losses/yolov2.py.

Where the paper is silent or we deviate:

- The pass-through goes through a 1 x 1 convolution of 64 channels first (26 x 26 x 64 becomes
  13 x 13 x 256), as in the network that was released. The paper's text stacks all 512 into 2048:
  ``passthrough=null``, 67,137,565 parameters. A backbone without a map of half the last stride
  (a ViT) has no pass-through.
- How neighbors are stacked: channel by channel, row by row. The released weights have an order of
  their own; a network that is trained here does not care.
- Anchors are shares of the image's width and height. The paper's are in cells, 1/13 of a 416 pixel
  image; so they are here, but hold for any stride and any ``data.image_size``. In multi-scale
  training their pixels stay, as in the paper, while images and objects grow and shrink.
- The training sizes are shares of ``data.image_size``: 0.77 to 1.46 are the paper's 320 to 608 at
  416. Every 10 batches of an epoch there is a new one.
- Any backbone; the paper's Darknet-19 is pretrained on ImageNet, 10 epochs of them at 448 pixels.
- The class numbers go through a softmax, as in the released network. The score of a class is its
  probability times the objectness.
- The last layer starts small, objectness at 0.1: most boxes hold nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock
from cvtrain.layers.dense_head import prior_bias
from cvtrain.layers.fpn import resized
from cvtrain.layers.multi_scale import MultiScale, resize_batch
from cvtrain.layers.nms import Method, Selection, best_candidates
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.losses.yolov2 import Grid
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target

WIDTHS = (128, 1024)
"""Fewest and most channels of the added convolutions where they follow the backbone."""
PRIOR = 0.1
"""Objectness at the start."""
START = 0.01
"""Standard deviation of the last layer's weights at the start."""


class YOLOv2(Model):
    """Backbone, three convolutions and a pass-through, boxes of anchors in every cell.

    Args:
        backbone: its last map is used, and the one of half its stride.
        loss: as ``losses.yolov2.YOLOv2Loss``.
        num_classes: K.
        image_size: of the network's input, pixels: an int or (H, W); the anchors are shares of it.
        anchors: (width, height) of each, in shares of the image.
        passthrough: channels of the 1 x 1 convolution before the pass-through; None: no such.
        channels: of the three 3 x 3 convolutions; None: those of the backbone's widest map, 128 to
            1024.
        multi_scale: smallest and largest size trained at, in shares of the images'; None: one.
        resize_every: batches in a row of one size.
        seed: of the run; the sizes are drawn from it.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        candidates: the best so many go on to the suppression.
        max_detections: predictions an image, the best first.
        class_numbers: numbers that say the class of a box, for what is built on this; None: K.

    Raises:
        ValueError: a value out of range.
    """

    anchors: Tensor
    seen: Tensor

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        image_size: int | Sequence[int],
        anchors: Sequence[Sequence[float]],
        passthrough: int | None = 64,
        channels: int | None = None,
        multi_scale: Sequence[float] | None = (0.77, 1.46),
        resize_every: int = 10,
        seed: int = 0,
        nms_iou: float = 0.45,
        nms: Method = "hard",
        min_score: float = 0.005,
        candidates: int = 1000,
        max_detections: int = 100,
        class_numbers: int | None = None,
    ) -> None:
        super().__init__()
        for name, number in {"passthrough": passthrough, "channels": channels}.items():
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1, or null")
        shares = checked_anchors(anchors)
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.num_classes = num_classes
        self.select = Selection(nms_iou, nms, min_score, max_detections)
        self.candidates = candidates
        self.criterion = loss

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        self.stride = backbone.strides[-1]
        self.fine = fine_map(backbone)
        widest = min(max(*backbone.channels, WIDTHS[0]), WIDTHS[1])
        channels = widest if channels is None else channels
        self.coarse = nn.Sequential(
            ConvBlock(backbone.channels[-1], channels), ConvBlock(channels, channels)
        )
        stacked = 0
        self.narrow: nn.Module = nn.Identity()
        if self.fine is not None:
            stacked = backbone.channels[self.fine]
            if passthrough is not None:
                self.narrow = ConvBlock(stacked, passthrough, kernel=1)
                stacked = passthrough
        self.join = ConvBlock(4 * stacked + channels, channels)
        self.depth = 5 + (num_classes if class_numbers is None else class_numbers)
        self.out = nn.Conv2d(channels, len(shares) * self.depth, 1)
        self._start()

        sides = torch.tensor(shares) * torch.tensor([float(width), float(height)])
        self.register_buffer("anchors", sides, persistent=False)  # (A, 2) pixels
        self.register_buffer("seen", torch.tensor(0))  # training images, of this process
        self.scales = None
        if multi_scale is not None:
            self.scales = MultiScale(multi_scale, resize_every, self.stride, seed)
        self.batch: tuple[int, int] | None = None  # epoch and batch that is trained

    @torch.no_grad()
    def _start(self) -> None:
        """Boxes that are the anchors, in the middle of their cells, and likely empty."""
        nn.init.normal_(self.out.weight, std=START)
        assert self.out.bias is not None
        self.out.bias.zero_()
        self.out.bias.view(-1, self.depth)[:, 4] = prior_bias(PRIOR)

    def on_batch_start(self, epoch: int, batch: int) -> None:
        self.batch = (epoch, batch)

    def forward(self, images: Tensor) -> Grid:
        """``(B, C, H, W)`` of any size -> what every cell says."""
        return self._grid(self.normalize(images))

    def _grid(self, x: Tensor) -> Grid:
        """Normalized images ``(B, C, H, W)`` -> what every cell says."""
        size = (x.shape[-2], x.shape[-1])
        x = pad_to_multiple(x, self.stride)
        maps = self.backbone(x)
        last = self.coarse(maps[-1])  # (B, channels, h, w)
        rows, columns = last.shape[-2:]
        cell = (x.shape[-2] / rows, x.shape[-1] / columns)  # the stride, where all is padded "same"
        if self.fine is not None:
            fine = resized(self.narrow(maps[self.fine]), (2 * rows, 2 * columns))
            last = torch.cat([reorg(fine), last], dim=1)  # (B, 4 stacked + channels, h, w)
        raw = self.out(self.join(last)).float()  # (B, A (5 + C), h, w)
        raw = raw.unflatten(1, (-1, self.depth)).permute(0, 3, 4, 1, 2)  # (B, h, w, A, 5 + C)
        return Grid(raw, self.anchors, cell, size)

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Loss terms at the size of the batch (``on_batch_start``)."""
        x = self.normalize(images)
        if self.scales is not None and self.batch is not None:
            size = self.scales.size(*self.batch, x.shape[-2], x.shape[-1])
            x, targets = resize_batch(x, targets, size)
        seen = int(self.seen)
        self.seen += len(images)
        return self.criterion(self._grid(x), targets, self.class_loss, seen)

    def compute_loss(self, outputs: Grid, targets: list[Target]) -> dict[str, Tensor]:
        return self.criterion(outputs, targets, self.class_loss)

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``(M, C)`` class numbers and ``(M,)`` labels -> ``(M,)`` minus log-probabilities."""
        return F.cross_entropy(logits, labels, reduction="none")

    def decode(self, outputs: Grid) -> list[Prediction]:
        return [
            self._decode(raw.flatten(0, 2), boxes, outputs.image_size)
            for raw, boxes in zip(outputs.raw, outputs.boxes(), strict=True)
        ]

    def _decode(self, flat: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Prediction:
        """``(P, 5 + C)`` numbers and ``(P, 4)`` boxes of one image -> its predictions."""
        scores = flat[:, 4:5].sigmoid() * flat[:, 5:].softmax(dim=1)  # (P, K)
        which, labels = best_candidates(scores, [len(flat)], self.candidates, self.select.min_score)
        return self.select(boxes[which], scores[which, labels], labels, image_size=image_size)


def reorg(x: Tensor) -> Tensor:
    """``(B, C, 2h, 2w)`` -> ``(B, 4C, h, w)``: channel c's 2 x 2 neighbors are 4c to 4c + 3."""
    return F.pixel_unshuffle(x, 2)


def fine_map(backbone: Backbone) -> int | None:
    """The index of the map of half the last one's stride; None: there is none."""
    half = [i for i, s in enumerate(backbone.strides) if 2 * s == backbone.strides[-1]]
    return half[-1] if half else None


def checked_anchors(anchors: Sequence[Sequence[float]]) -> list[list[float]]:
    """(width, height) of each anchor.

    Raises:
        ValueError: anything else, or a side that is not above 0.
    """
    if not isinstance(anchors, Sequence):
        raise ValueError(f"anchors={anchors}: a run makes so many before it builds the model")
    pairs = [list(pair) if isinstance(pair, Sequence) else [pair] for pair in anchors]
    good = all(len(p) == 2 and all(isinstance(v, (int, float)) and v > 0 for v in p) for p in pairs)
    if not pairs or not good:
        raise ValueError(
            f"anchors={pairs}: give [width, height] of each in shares of the image, above 0: "
            "[[0.1, 0.2], [0.4, 0.3]]"
        )
    return [[float(v) for v in pair] for pair in pairs]
