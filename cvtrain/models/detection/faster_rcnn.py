"""Faster R-CNN (2015): a network proposes regions, another on the same maps classifies them.

Papers: Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region
Proposal Networks", arXiv 1506.01497; the pyramid: Lin, Dollar, Girshick, He, Hariharan, Belongie,
"Feature Pyramid Networks for Object Detection", arXiv 1612.03144. Written from the papers; with
copied weights outputs and losses are those of torchvision's fasterrcnn_resnet50_fpn.

``model.neck=fpn`` (the default): levels P2 to P6 of 256 channels, anchors of one size and three
ratios a level (32 to 512 pixels), regions read by RoIAlign from P2 to P5, two connected layers of
1024. ``model.neck=c4``: the first paper's one map of stride 16, with ``model.rpn.scales=[8,16,32]``
its 9 anchors a place, 128 to 512 pixels; ``backbone=vgg16 model.neck=c4 model.top=backbone
model.roi=pool`` is its network, fc6 and fc7 included: 137.0 M parameters for VOC.

Where the papers are silent or we deviate:

- Approximate joint training: one network, one step, the sum of four losses; the coordinates of
  proposals carry no gradient. The first paper's main text trains in four alternating steps; this is
  its section 3.2 (ii), whose results it calls close.
- The proposing network deviates as layers/rpn.py says.
- 128 regions an image, a quarter of them foreground (as in its authors' code; the second paper:
  512), and 300 proposals outside of training (the second: 1,000): what a CPU bears.
- Codes for the K classes; the papers' and torchvision's background has four more, never used.
- Batch norms train, those of a ResNet's last stage on regions too (the papers: fixed); no dropout
  between VGG's connected layers.
- ``model.pretrained=true`` starts from torchvision's weights, trained on COCO; its batch norms were
  fixed, with an epsilon of 0 where ours is 1e-5.
- ``min_score`` 0.01 in place of 0.05: average precision wants the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cvtrain.layers.nms import Method as NMS
from cvtrain.layers.roi import Method
from cvtrain.layers.roi_head import RandomRoIs, RoISampling, RoIStage
from cvtrain.layers.rpn import RPN
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.coco_weights import FASTER_RCNN, FORM, load_coco, takes
from cvtrain.models.detection.regions import Neck, RegionModel, Top
from cvtrain.models.detection.two_stage import TwoStage


class FasterRCNN(RegionModel, TwoStage):
    """Backbone, neck, a network that proposes, and one that classifies what is proposed.

    Args:
        backbone: its maps are used.
        num_classes: K.
        neck, top, channels, hidden, roi, roi_size: see ``RegionModel``.
        rpn: makes the proposing network of ``in_channels`` and ``strides``.
        sampling: which regions are learned from; None: 128, a quarter of them foreground.
        foreground_iou: regions of this IoU with an object and more are foreground, 0..1.
        background_iou: regions below this IoU with every object are not learned from, 0..1.
        beta: where the regions' box loss turns from parabola to line.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.
        pretrained: ``start`` fetches torchvision's weights, trained on COCO: ResNet-50, ``fpn``.
        weights: a file of them that ``start`` reads instead.

    Attributes:
        release: torchvision's weights that ``start`` takes.

    Raises:
        ValueError: a value out of range, weights that another form would need, a backbone without
            the maps or layers it needs.
    """

    release = FASTER_RCNN

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        neck: Neck = "fpn",
        top: Top = "fc",
        channels: int | None = None,
        hidden: Sequence[int] | None = None,
        roi: Method = "align",
        roi_size: int | None = None,
        rpn: Callable[..., RPN] = RPN,
        sampling: RoISampling | None = None,
        foreground_iou: float = 0.5,
        background_iou: float = 0.0,
        beta: float = 1 / 9,
        nms_iou: float = 0.5,
        nms: NMS = "hard",
        min_score: float = 0.01,
        max_detections: int = 100,
        pretrained: bool = False,
        weights: str | Path | None = None,
    ) -> None:
        if pretrained and weights is not None:
            raise ValueError("pretrained=true and weights=FILE exclude each other: give one")
        if (pretrained or weights is not None) and not takes(backbone.architecture, neck, top):
            raise ValueError(
                f"the weights trained on COCO are for {FORM}; this is backbone="
                f"{backbone.architecture} model.neck={neck} model.top={top}"
            )
        super().__init__(backbone, num_classes, neck, top, channels, hidden, roi, roi_size)
        self.pretrained, self.weights = pretrained, weights
        self.rpn = rpn(in_channels=self.map_channels, strides=self.strides)
        self.stage = RoIStage(
            sampling or RandomRoIs(128),
            foreground_iou=foreground_iou,
            background_iou=background_iou,
            beta=beta,
            nms_iou=nms_iou,
            nms=nms,
            min_score=min_score,
            max_detections=max_detections,
        )

    def load_pretrained(self, class_names: Sequence[str]) -> None:
        if self.pretrained or self.weights is not None:
            load_coco(self, self.release, class_names, self.weights)
