"""R-FCN (2016): a fully convolutional detector, whose maps say which part of an object they see.

Paper: Dai, Li, He, Sun, "R-FCN: Object Detection via Region-based Fully Convolutional Networks",
arXiv 1605.06409. Written from the paper; the pooling is torchvision's (layers/roi.py).

The last stage of the backbone at stride 16, a 1 x 1 convolution to 1024 channels, and one more that
gives k x k score maps for each class and the background, k = 7: 1,029 maps for VOC. Cell (i, j) of
a region is the mean of map (i, j) of each class in that cell; a region's score is the mean of its k
x k cells, its vote. A sibling of 4 k x k maps gives a box in the same way, one for all classes.
Nothing is computed for a region but these means. Regions come from a region proposal network on
the map before the last stage, 300 of them outside of training.

83.6 mAP on VOC 2007 with ResNet-101 (trained at several scales, with COCO), 79.5 without.

Where the paper is silent or we deviate:

- One joint training (the paper alternates in four steps; it, too, says that joint training works).
- 128 regions an image, a quarter of them foreground; ``ohem=true`` counts, as in the paper's best
  results, the 128 of highest loss of all that were proposed (``ohem_nms_iou``: of those that
  overlap by more the worst alone; the paper: without).
- The proposing network deviates as layers/rpn.py says. Its anchors begin at 32 pixels instead of
  128: five sizes.
- With a backbone that cannot be dilated the last stage's map is resized to stride 16.
- Batch norms train. A ReLU follows the 1 x 1 convolution (of which the paper says nothing).
- ``min_score`` 0.01: average precision wants the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.nms import Method as NMS
from cvtrain.layers.roi import Method, PSRoIPool
from cvtrain.layers.roi_head import HardRoIs, RandomRoIs, RoIStage
from cvtrain.layers.rpn import RPN
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.position_sensitive import STRIDE, PositionSensitive, start


class RFCN(PositionSensitive):
    """Backbone, a network that proposes, and votes of position-sensitive maps.

    Args:
        backbone: its map of stride 16 and its last.
        num_classes: K.
        channels: of the 1 x 1 convolution before the score maps.
        positions: k: a region is divided into k x k cells.
        roi: ``pool`` (the paper's means of cells with rounded edges) or ``align`` (of points).
        rpn: makes the proposing network of ``in_channels`` and ``strides``.
        sample: regions an image that count.
        positive_fraction: of foreground among them at most, 0..1; not with ``ohem``.
        ohem: the regions of highest loss count, not random ones.
        ohem_nms_iou: of hard regions that overlap by more the worst alone counts; None: all may.
        foreground_iou: regions of this IoU with an object and more are foreground, 0..1.
        background_iou: regions below this IoU with every object are not learned from, 0..1.
        beta: where the regions' box loss turns from parabola to line.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, a backbone without the maps it needs.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        channels: int = 1024,
        positions: int = 7,
        roi: Method = "pool",
        rpn: Callable[..., RPN] = RPN,
        sample: int = 128,
        positive_fraction: float = 0.25,
        ohem: bool = False,
        ohem_nms_iou: float | None = None,
        foreground_iou: float = 0.5,
        background_iou: float = 0.0,
        beta: float = 1.0,
        nms_iou: float = 0.3,
        nms: NMS = "hard",
        min_score: float = 0.01,
        max_detections: int = 100,
    ) -> None:
        super().__init__(backbone, num_classes)
        if channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        self.pool = PSRoIPool(STRIDE, positions, roi)
        self.rpn = rpn(in_channels=self.proposing_channels, strides=[STRIDE])
        self.reduce = nn.Conv2d(self.top_channels, channels, 1)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        cells = positions**2
        self.score_maps = start(nn.Conv2d(channels, cells * (1 + num_classes), 1), 0.01)
        self.box_maps = start(nn.Conv2d(channels, cells * 4, 1), 0.01)
        self.stage = RoIStage(
            HardRoIs(sample, ohem_nms_iou) if ohem else RandomRoIs(sample, positive_fraction),
            foreground_iou=foreground_iou,
            background_iou=background_iou,
            beta=beta,
            nms_iou=nms_iou,
            nms=nms,
            min_score=min_score,
            max_detections=max_detections,
        )

    def position_maps(self, top: Tensor) -> list[Tensor]:
        """``(B, k k (1 + K), h, w)`` scores and ``(B, 4 k k, h, w)`` codes."""
        x = F.relu(self.reduce(top))
        return [self.score_maps(x), self.box_maps(x)]

    def classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes ``(N_b, 4)`` of each image, R in all -> logits ``(R, 1 + K)``, the background
        first, and codes ``(R, 1, 4)``: the mean of the cells.
        """
        scores = self.pool(maps[1], boxes).mean(dim=(2, 3))  # (R, 1 + K, k, k) -> (R, 1 + K)
        codes = self.pool(maps[2], boxes).mean(dim=(2, 3))  # (R, 4, k, k) -> (R, 4)
        return scores, codes[:, None]
