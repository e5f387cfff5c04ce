"""Fast R-CNN (2015): the image goes through the network once, given regions are classified on it.

Paper: Girshick, "Fast R-CNN", arXiv 1504.08083. Written from the paper. The boxes to look at come
from outside, by selective search or any other method (``proposals=``).

One map of stride 16; RoI pooling to 7 x 7; two connected layers; softmax over the classes and the
background beside four numbers for each class, learned together. 64 regions per image are sampled,
a quarter of them foreground (IoU 0.5 with an object and more), the others background of IoU 0.1 to
0.5: hard examples of a kind. ``backbone=vgg16 model.top=backbone`` is the paper's VGG-16 network,
fc6 and fc7 included: 134.7 M parameters for VOC.

Where the paper is silent or we deviate:

- The objects themselves are added to the regions that are learned from (as its code does).
- Of an image without background of IoU 0.1 to 0.5, as one without objects is, all background may be
  drawn: images of nothing teach too (its code leaves them out).
- Connected layers of 1,024 in place of VGG's 4,096, started at random; no truncated SVD; no dropout
  between VGG's; batch norms train. Images of one size (the paper tries several).
- Codes for the K classes; the paper's background has four more, never used.
- ``min_score`` 0.01 in place of 0.05: average precision wants the tail.
- ``model.neck=fpn`` reads regions from a pyramid, as Lin et al. 2017 (arXiv 1612.03144, section
  5.2) do; ``model.roi=align`` interpolates (He et al. 2017, arXiv 1703.06870).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from cvtrain.layers.nms import Method as NMS
from cvtrain.layers.roi import Method
from cvtrain.layers.roi_head import RoISampling, RoIStage
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.regions import Neck, RegionModel, Top
from cvtrain.structures import Prediction, Target


class Outputs(NamedTuple):
    """What the network says of a batch, before regions are classified.

    Attributes:
        maps: one a stride.
        proposals: for each image ``(P, 4)`` xyxy pixels.
        image_size: height, width in pixels.
    """

    maps: list[Tensor]
    proposals: list[Tensor]
    image_size: tuple[int, int]


class FastRCNN(RegionModel):
    """Backbone, neck, RoI pooling, layers on a region's map.

    Args:
        backbone: its maps are used.
        num_classes: K.
        neck, top, channels, hidden, roi, roi_size: see ``RegionModel``.
        sampling: which regions are learned from; None: 64, a quarter of them foreground.
        foreground_iou: regions of this IoU with an object and more are foreground, 0..1.
        background_iou: regions below this IoU with every object are not learned from, 0..1.
        beta: where the box loss turns from parabola to line.
        nms_iou: a box that overlaps a better one of its class by more is removed, 0..1.
        nms: variant of the suppression, see layers/nms.py.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, a backbone without the maps or layers it needs.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        neck: Neck = "c4",
        top: Top = "fc",
        channels: int | None = None,
        hidden: Sequence[int] | None = None,
        roi: Method = "pool",
        roi_size: int | None = None,
        sampling: RoISampling | None = None,
        foreground_iou: float = 0.5,
        background_iou: float = 0.1,
        beta: float = 1.0,
        nms_iou: float = 0.3,
        nms: NMS = "hard",
        min_score: float = 0.01,
        max_detections: int = 100,
    ) -> None:
        super().__init__(backbone, num_classes, neck, top, channels, hidden, roi, roi_size)
        self.stage = RoIStage(
            sampling,
            foreground_iou=foreground_iou,
            background_iou=background_iou,
            beta=beta,
            nms_iou=nms_iou,
            nms=nms,
            min_score=min_score,
            max_detections=max_detections,
        )

    def forward(self, images: Tensor, proposals: list[Tensor]) -> Outputs:
        """``(B, C, H, W)`` of any size and ``(P, 4)`` boxes of each -> maps, with the boxes."""
        size = (images.shape[-2], images.shape[-1])
        return Outputs(self.maps(images), [b.float() for b in proposals], size)

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``classes`` and ``boxes``; counts ``num_objects`` and ``num_positives``
        (foreground regions).
        """
        classify = partial(self.classify, outputs.maps)
        return self.stage.loss(classify, outputs.proposals, targets, self.training)

    def decode(self, outputs: Outputs) -> list[Prediction]:
        classify = partial(self.classify, outputs.maps)
        return self.stage.decode(classify, outputs.proposals, outputs.image_size)
