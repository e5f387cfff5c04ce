"""YOLO (2015): one network looks once at the whole image.

Paper: Redmon, Divvala, Girshick, Farhadi, "You Only Look Once: Unified, Real-Time Object
Detection", arXiv 1506.02640. Written from the paper; nothing of darknet's code is in here.

The image is divided into S x S cells. Each cell predicts B boxes (x, y relative to the cell, w, h
to the image, a confidence) and C class probabilities: S x S x (5B + C) numbers from two connected
layers on the backbone's last map. With ``backbone=yolov1`` at 448 x 448, S = 7, B = 2, C = 20 this
is the paper's network, of 271,703,550 parameters.

Where the paper is silent or we deviate:

- The network predicts the square roots of w and h (as darknet does); see losses/yolo.py, which also
  says how boxes become responsible.
- Any backbone: a last map at least twice as fine as the grid is averaged over whole blocks first
  (the connected layers would otherwise grow with the square of the image). The paper's is 7 x 7
  at 448 and untouched. The connected layers fix the image size.
- The hidden width follows the backbone: 4 x its channels, the paper's 4096 = 4 x 1024, and at
  least 24 a cell. Dropout is the paper's 0.5 for its 4096 units and more; fewer have none to
  spare (of 1176, dropping 0.14 took mAP50 from 0.52 to 0.38 after 10 epochs of ``shapes``).
- The connected layers start as if each cell looked at its own place in the map, all cells in the
  same way, and learn from there without any such tie; their biases start at a box in the middle
  of the cell, a quarter of the image wide and high, and the weights are small beside that (at full
  size the first loss was 17 to 64, by the seed; a tenth of it makes it 4). The paper, which starts
  the convolutions from a week of ImageNet, does not say how these layers start. Nothing in them is
  shared between places, so that from scratch, on small data, a plain random start learns little or
  only overfits.
- ``fc_lr_scale`` divides the connected layers' weights and multiplies their inputs by as much:
  the same functions, which an adaptive optimizer then changes that much more slowly than the
  convolutions. 1 is the paper's.
- Confidences and class probabilities are linear outputs: negative ones count as 0, class-specific
  scores (their product, section 2) above 1 as 1.
- Every score above ``min_score`` (0) that survives class-wise NMS is a prediction, at most
  ``max_detections`` an image: average precision needs the tail, people choose a threshold later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import LEAK
from cvtrain.layers.nms import Selection
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.structures import Prediction, Target

PAPER_HIDDEN = 4096
"""Units of the paper's first connected layer."""
PAPER_DROPOUT = 0.5
"""Share of them dropped in training."""
UNITS_PER_CELL = 24
"""Fewest units a cell where the width is not given: enough for the few numbers it answers."""
ANSWER = 0.1
"""Size of the last layer's first weights: small, so that the start is the biases' box."""


class YOLO(Model):
    """Backbone, two connected layers, a grid of boxes.

    Args:
        backbone: its last map is used.
        loss: takes (outputs, targets, image_size, num_classes) as ``losses.yolo.YOLOLoss`` does.
        num_classes: C.
        image_size: of the network's input, pixels: an int or (H, W).
        grid: S.
        boxes_per_cell: B.
        hidden: units of the first connected layer; None: 4 x the backbone's channels, at least
            24 x S x S.
        dropout: share of those units dropped in training, 0..1; None: 0.5 for 4096 units or
            more, otherwise 0.
        fc_lr_scale: speed at which the connected layers learn beside the convolutions under
            an adaptive optimizer (Adam and its kin); with SGD leave it at 1.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        image_size: int | Sequence[int],
        grid: int = 7,
        boxes_per_cell: int = 2,
        hidden: int | None = None,
        dropout: float | None = None,
        fc_lr_scale: float = 1.0,
        nms_iou: float = 0.5,
        min_score: float = 0.0,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if grid < 1 or boxes_per_cell < 1:
            raise ValueError(f"grid={grid} boxes_per_cell={boxes_per_cell} must be at least 1")
        if not 0 < fc_lr_scale <= 1:
            raise ValueError(f"fc_lr_scale={fc_lr_scale} must be above 0 and at most 1")
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.image_size = (int(height), int(width))
        self.num_classes = num_classes
        self.grid = grid
        self.boxes_per_cell = boxes_per_cell
        self.select = Selection(nms_iou, "hard", min_score, max_detections)

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        self.criterion = loss
        channels, stride = backbone.channels[-1], backbone.strides[-1]
        height, width = (-(-side // stride) for side in self.image_size)  # of the last map
        self.blocks = (max(1, height // grid), max(1, width // grid))
        self.map_size = (-(-height // self.blocks[0]), -(-width // self.blocks[1]))
        inputs = channels * self.map_size[0] * self.map_size[1]
        if hidden is None:
            hidden = max(4 * channels, UNITS_PER_CELL * grid**2)
        if dropout is None:
            dropout = PAPER_DROPOUT if hidden >= PAPER_HIDDEN else 0.0
        self.hidden = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.depth = 5 * boxes_per_cell + num_classes
        self.out = nn.Linear(self.hidden.out_features, grid * grid * self.depth)
        self.fc_lr_scale = fc_lr_scale
        self._start_cell_by_cell(channels)

    def optimizer_warning(self, optimizer: str) -> str:
        """Where all layers have one rate, what ``fc_lr_scale`` s leaves of it is s squared."""
        scale = self.fc_lr_scale
        if scale == 1 or not optimizer.lower().startswith(("sgd", "momentum", "nesterov")):
            return ""
        return (
            f"model.fc_lr_scale={scale:g} is for optimizers like Adam: with "
            f"optimizer={optimizer.lower()} the connected layers learn at {scale**2:.2g} of the "
            "others' rate; say model.fc_lr_scale=1"
        )

    @torch.no_grad()
    def _start_cell_by_cell(self, channels: int) -> None:
        """Hidden unit u belongs to cell ``u % S^2`` and sees the map there; the cell's outputs see
        its own units; the same random weights for all cells, 0 elsewhere.
        """
        cells, units = self.grid**2, self.hidden.out_features
        per_cell = -(-units // cells)
        look = torch.randn(per_cell, channels) * math.sqrt(2 / ((1 + LEAK**2) * channels))
        answer = torch.randn(self.depth, per_cell) * ANSWER / math.sqrt(per_cell)
        rows, columns = (_overlaps(self.grid, side) for side in self.map_size)  # (S, h), (S, w)
        place = torch.einsum("ih,jw->ijhw", rows, columns).flatten(0, 1).flatten(1)  # (S^2, h w)
        first = self.hidden.weight.view(units, channels, -1).zero_()  # (units, channels, h w)
        last = self.out.weight.view(cells, self.depth, units).zero_()
        for cell in range(cells):
            mine = first[cell::cells]
            mine.copy_(look[: len(mine), :, None] * place[cell] / self.fc_lr_scale)
            last[cell, :, cell::cells] = answer[:, : len(mine)] / self.fc_lr_scale
        self.hidden.bias.zero_()
        start = torch.zeros(cells, self.depth)
        start[:, : 5 * self.boxes_per_cell].unflatten(1, (-1, 5))[..., :4] = 0.5
        self.out.bias.copy_(start.flatten())

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` of the model's image size -> float32 ``(N, S, S, 5B + C)``.

        Raises:
            ValueError: images of another size.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"images are {images.shape[-1]} x {images.shape[-2]} pixels; this YOLO was built "
                f"for {self.image_size[1]} x {self.image_size[0]} (data.image_size)"
            )
        x = self.backbone(self.normalize(images))[-1]  # (N, channels, h, w)
        if self.blocks != (1, 1):
            x = F.avg_pool2d(x, self.blocks, ceil_mode=True)
        if tuple(x.shape[-2:]) != self.map_size:  # networks without "same" padding
            x = F.adaptive_avg_pool2d(x, self.map_size)
        x = F.leaky_relu(self.hidden(x.flatten(1) * self.fc_lr_scale), LEAK)  # (N, hidden)
        x = self.out(self.dropout(x) * self.fc_lr_scale).float()  # (N, S * S * (5B + C))
        return x.view(-1, self.grid, self.grid, self.depth)

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return self.criterion(outputs, targets, self.image_size, self.num_classes)

    def decode(self, outputs: Tensor) -> list[Prediction]:
        boxes, scores = self.boxes_and_scores(outputs)
        return [self.select(b, s) for b, s in zip(boxes, scores, strict=True)]

    def boxes_and_scores(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs as boxes and class-specific scores.

        Args:
            outputs: ``(N, S, S, 5B + C)``.

        Returns:
            Boxes ``(N, S * S * B, 4)`` xyxy pixels, clipped to the image, and scores
            ``(N, S * S * B, C)``: Pr(class | object) x confidence, each not below 0.
        """
        s, b = self.grid, self.boxes_per_cell
        per_box = outputs[..., : 5 * b].unflatten(-1, (b, 5))  # (N, S, S, B, 5)
        classes = outputs[..., 5 * b :].clamp(min=0)  # (N, S, S, C)
        scores = per_box[..., 4:].clamp(min=0) * classes[..., None, :]  # (N, S, S, B, C)
        steps = torch.arange(s, device=outputs.device, dtype=outputs.dtype)
        row, column = torch.meshgrid(steps, steps, indexing="ij")
        x = (per_box[..., 0] + column[..., None]) / s  # (N, S, S, B), 0..1 of the image
        y = (per_box[..., 1] + row[..., None]) / s
        half_w, half_h = (per_box[..., 2:4].square() / 2).unbind(-1)
        corners = torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)
        height, width = self.image_size
        boxes = corners.clamp(0, 1) * outputs.new_tensor([width, height, width, height])
        return boxes.flatten(1, 3), scores.flatten(1, 3)


def _overlaps(cells: int, pixels: int) -> Tensor:
    """``(cells, pixels)``: which share of each cell of a row each pixel of the row covers."""
    edges = torch.arange(cells + 1) * pixels / cells
    low = torch.maximum(edges[:-1, None], torch.arange(pixels))
    high = torch.minimum(edges[1:, None], torch.arange(1, pixels + 1))
    return (high - low).clamp(min=0) * cells / pixels
