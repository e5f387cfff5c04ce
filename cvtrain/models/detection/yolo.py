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
- Any backbone: a last map finer than S x S is averaged down to S x S before the connected layers
  (their weights would otherwise grow with the square of the image); a coarser one is taken as it
  is. The paper's is 7 x 7 at 448 and untouched. The connected layers fix the image size.
- The hidden width follows the backbone: 4 x its channels, the paper's 4096 = 4 x 1024.
- The last layer's biases start at the middle of a cell and a box of a quarter of the image's width
  and height, so that IoUs are not all 0 at first; its other values start as torch's default.
- Confidences and class probabilities are linear outputs: negative ones count as 0, class-specific
  scores (their product, section 2) above 1 as 1.
- Every score above ``min_score`` (0) that survives class-wise NMS is a prediction, at most
  ``max_detections`` an image: average precision needs the tail, people choose a threshold later.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from cvtrain.layers.conv import LEAK
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.types import Prediction, Target


class YOLO(Model):
    """Backbone, two connected layers, a grid of boxes.

    Args:
        backbone: its last map is used.
        loss: takes (outputs, targets, image_size, num_classes) as ``losses.yolo.YOLOLoss`` does.
        num_classes: C.
        image_size: of the network's input, pixels: an int or (H, W).
        grid: S.
        boxes_per_cell: B.
        hidden: units of the first connected layer; None: 4 x the backbone's channels.
        dropout: share of those units dropped in training, 0..1.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.
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
        dropout: float = 0.5,
        nms_iou: float = 0.5,
        min_score: float = 0.0,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if grid < 1 or boxes_per_cell < 1:
            raise ValueError(f"grid={grid} boxes_per_cell={boxes_per_cell} must be at least 1")
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.image_size = (int(height), int(width))
        self.num_classes = num_classes
        self.grid = grid
        self.boxes_per_cell = boxes_per_cell
        self.nms_iou = nms_iou
        self.min_score = min_score
        self.max_detections = max_detections

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.use("maps")
        self.criterion = loss
        channels, stride = backbone.channels[-1], backbone.strides[-1]
        # Height and width of the map that the connected layers see.
        self.map_size = (
            min(grid, -(-self.image_size[0] // stride)),
            min(grid, -(-self.image_size[1] // stride)),
        )
        self.hidden = nn.Linear(
            channels * self.map_size[0] * self.map_size[1], hidden or 4 * channels
        )
        self.dropout = nn.Dropout(dropout)
        self.depth = 5 * boxes_per_cell + num_classes
        self.out = nn.Linear(self.hidden.out_features, grid * grid * self.depth)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.kaiming_normal_(self.hidden.weight, a=LEAK, nonlinearity="leaky_relu")
        nn.init.zeros_(self.hidden.bias)
        start = torch.zeros(self.grid, self.grid, self.depth)
        boxes = start[..., : 5 * self.boxes_per_cell].unflatten(-1, (self.boxes_per_cell, 5))
        boxes[..., :4] = 0.5
        with torch.no_grad():
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
        if tuple(x.shape[-2:]) != self.map_size:
            x = F.adaptive_avg_pool2d(x, self.map_size)
        x = F.leaky_relu(self.hidden(x.flatten(1)), LEAK)  # (N, hidden)
        x = self.out(self.dropout(x)).float()  # (N, S * S * (5B + C))
        return x.view(-1, self.grid, self.grid, self.depth)

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return self.criterion(outputs, targets, self.image_size, self.num_classes)

    def decode(self, outputs: Tensor) -> list[Prediction]:
        boxes, scores = self.boxes_and_scores(outputs)
        return [self._select(b, s) for b, s in zip(boxes, scores, strict=True)]

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

    def _select(self, boxes: Tensor, scores: Tensor) -> Prediction:
        """The predictions of one image: boxes ``(A, 4)``, scores ``(A, C)`` -> after NMS."""
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # some of it lies in the image
        which, labels = torch.nonzero((scores > self.min_score) & inside[:, None], as_tuple=True)
        boxes, scores = boxes[which], scores[which, labels]
        keep = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return Prediction(boxes=boxes[keep], scores=scores[keep].clamp(max=1), labels=labels[keep])
