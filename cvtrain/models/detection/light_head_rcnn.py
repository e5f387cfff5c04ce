"""Light-Head R-CNN (2017): thin maps and one connected layer, so that regions cost little.

Paper: Li, Peng, Yu, Zhang, Deng, Sun, "Light-Head R-CNN: In Defense of Two-Stage Object Detector",
arXiv 1711.07264. Written from the paper; the pooling is torchvision's (layers/roi.py).

A large separable convolution turns the last stage's map, at stride 16, into a thin one of 10 x 7 x
7 = 490 channels, whatever the number of classes: k x 1 then 1 x k, and beside it 1 x k then k x 1,
summed, k = 15, 256 channels between them for the large networks, 64 for the small. A region is read
position-sensitively, 10 numbers in each of 7 x 7 cells, and goes through one connected layer of
2048 units to its class and its box. Regions are proposed on the map before the last stage.

41.5 AP on COCO with ResNet-101; 30.7 at 102 images a second with a small Xception.

Where the paper is silent or we deviate:

- 1,000 regions in training, 300 outside of it (the paper: 2,000 and 1,000); 256 an image count, a
  quarter of them foreground. ``ohem=true``, the paper's choice, counts those of highest loss.
- The paper reads by PS RoI pooling, then with RoIAlign's points ("PSRoIAlign", +1.3 AP): the
  latter is the default, ``roi=pool`` the former.
- One box for all classes, as in the paper.
- A ReLU after the sum; none between the two convolutions of a branch.
- With a backbone that cannot be dilated the last stage's map is resized to stride 16.
- The proposing network deviates as layers/rpn.py says; its anchors are the paper's, 32 to 512
  pixels in three ratios. Batch norms train. ``min_score`` 0.01: average precision wants the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.nms import Method as NMS
from cvtrain.layers.roi import Method, PSRoIPool
from cvtrain.layers.roi_head import BoxHead, HardRoIs, RandomRoIs, RoIStage
from cvtrain.layers.rpn import RPN
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.position_sensitive import STRIDE, PositionSensitive


class LargeSeparable(nn.Module):
    """A k x k convolution as the sum of two pairs of thin ones.

    Args:
        in_channels, middle, channels: before, within and after.
        kernel: k, odd.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, in_channels: int, middle: int, channels: int, kernel: int = 15) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0 or middle < 1 or channels < 1:
            raise ValueError(
                f"kernel={kernel} must be odd, middle={middle} and thin={channels} at least 1"
            )
        tall, wide = (kernel, 1), (1, kernel)
        self.tall_wide = nn.Sequential(
            _thin(in_channels, middle, tall), _thin(middle, channels, wide)
        )
        self.wide_tall = nn.Sequential(
            _thin(in_channels, middle, wide), _thin(middle, channels, tall)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, channels, h, w)``."""
        return self.tall_wide(x) + self.wide_tall(x)


def _thin(in_channels: int, channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    """A convolution that keeps the map's size and, at the start, the variance."""
    layer = nn.Conv2d(in_channels, channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class LightHeadRCNN(PositionSensitive):
    """Backbone, a network that proposes, thin maps, one connected layer on a region.

    Args:
        backbone: its map of stride 16 and its last.
        num_classes: K.
        thin: numbers in each cell of a region; the thin map has ``thin * positions ** 2`` channels.
        positions: a region is divided into so many cells, both ways.
        kernel: of the large separable convolution, odd.
        middle: channels within it.
        hidden: units of the connected layer.
        roi: ``align`` (means of points) or ``pool`` (of cells with rounded edges).
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
        thin: int = 10,
        positions: int = 7,
        kernel: int = 15,
        middle: int = 64,
        hidden: int = 2048,
        roi: Method = "align",
        rpn: Callable[..., RPN] = RPN,
        sample: int = 256,
        positive_fraction: float = 0.25,
        ohem: bool = False,
        ohem_nms_iou: float | None = None,
        foreground_iou: float = 0.5,
        background_iou: float = 0.0,
        beta: float = 1.0,
        nms_iou: float = 0.5,
        nms: NMS = "hard",
        min_score: float = 0.01,
        max_detections: int = 100,
    ) -> None:
        super().__init__(backbone, num_classes)
        if hidden < 1:
            raise ValueError(f"hidden={hidden} must be at least 1")
        self.pool = PSRoIPool(STRIDE, positions, roi)
        self.rpn = rpn(in_channels=self.proposing_channels, strides=[STRIDE])
        self.thin = LargeSeparable(self.top_channels, middle, thin * positions**2, kernel)
        self.head = BoxHead(thin, positions, num_classes, (hidden,), agnostic=True)
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
        """The thin map ``(B, thin positions^2, h, w)``."""
        return [F.relu(self.thin(top))]

    def classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes ``(N_b, 4)`` of each image, R in all -> logits ``(R, 1 + K)``, the background
        first, and codes ``(R, 1, 4)``.
        """
        return self.head(self.pool(maps[1], boxes))  # (R, thin, positions, positions)
