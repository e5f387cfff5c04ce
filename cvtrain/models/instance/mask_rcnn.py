"""Mask R-CNN (2017): Faster R-CNN with a third branch, which draws the object in each region.

Paper: He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv 1703.06870. Written from the paper; with
copied weights boxes, scores and masks are those of torchvision's maskrcnn_resnet50_fpn, and so are
losses with ``half_pixel=False``. 35.7 mask AP and 38.2 box AP on COCO with ResNet-101-FPN.

The branch is the paper's figure 4. ``model.neck=fpn`` (the default): a region is read as 14 x 14
from the level that fits it, four 3 x 3 convolutions of 256, a transposed one that doubles the map,
a 28 x 28 mask a class. ``model.neck=c4 model.top=backbone`` with a ResNet: the last stage runs on
each region once, for boxes and masks alike; the transposed convolution follows it, 14 x 14. The
loss is the mean binary cross-entropy of the true class's mask, over the regions that are objects;
predictions get masks after the suppression, for their own class, at most 100 an image.

``model.roi=pool`` reads regions by RoI max pooling, both branches, as Faster R-CNN did: the edges
rounded to whole pixels of the map, up to half a stride off. The paper's table 2c: RoIAlign is worth
3.4 points of mask AP on one map of stride 16, 7.3 on one of stride 32.

Where the paper is silent or we deviate:

- What layers/rpn.py and models/detection/faster_rcnn.py say of regions; in short, 128 regions an
  image are sampled (the paper: 64 with C4, 512 with FPN), 300 are looked at outside of training
  (the paper: 300 and 1,000), batch norms train.
- ``neck=c4`` without a ResNet's last stage (``top=fc``, or VGG's connected layers, which leave no
  map): the four convolutions on a map of 7 x 7, so that masks are 14 x 14 there too.
- RoIAlign's points are torchvision's: two a cell each way, map pixels not centered at halves.
- Truths are read from the objects' masks by RoIAlign, shares of a cell rather than 0 or 1; from
  pixels centered at half numbers, as predictions are drawn. Torchvision has them at whole ones
  (``half_pixel=False``; its COCO weights learned so), which teaches masks half a pixel to the left
  and up: of small objects that costs much. An object without any pixel (lost in resizing) teaches
  no mask.
- With ``HardRoIs`` masks are learned from the regions that count alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cvtrain.layers.mask_head import MaskHead, mask_loss, mask_targets
from cvtrain.layers.nms import Method as NMS
from cvtrain.layers.roi import Method, RoIPool
from cvtrain.layers.roi_head import RoISampling
from cvtrain.layers.rpn import RPN
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.coco_weights import MASK_RCNN
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.models.detection.regions import CHANNELS, Neck, Top
from cvtrain.models.detection.two_stage import Outputs
from cvtrain.structures import Prediction, Target

CONVS = 4
FPN_SIZE, C4_SIZE = 14, 7
"""Of a region's map before the branch's own convolutions; masks are twice as large."""


class MaskRCNN(FasterRCNN):
    """Faster R-CNN and a mask branch.

    Args:
        backbone, num_classes, neck, top, channels, hidden, roi, roi_size, rpn, sampling,
            foreground_iou, background_iou, beta, nms_iou, nms, min_score, max_detections,
            pretrained, weights: see ``FasterRCNN``; ``roi`` is of both branches.
        mask_channels: of the mask branch; None: as the pyramid, with ``c4`` 256.
        mask_convs: its 3 x 3 convolutions; None: 4, on a ResNet's last stage 0.
        mask_roi_size: rows and columns of a region's map for it, a mask has twice as many; None: 14
            with ``fpn``, 7 with ``c4``; not on a ResNet's last stage, which gives the map.
        half_pixel: whether the pixels of the masks to learn are centered at half numbers, see
            ``mask_targets``.

    Raises:
        ValueError: a value out of range or one that would not be read, weights that another form
            would need, a backbone without the maps or layers it needs.
    """

    release = MASK_RCNN

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
        mask_channels: int | None = None,
        mask_convs: int | None = None,
        mask_roi_size: int | None = None,
        half_pixel: bool = True,
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
        super().__init__(
            backbone,
            num_classes,
            neck=neck,
            top=top,
            channels=channels,
            hidden=hidden,
            roi=roi,
            roi_size=roi_size,
            rpn=rpn,
            sampling=sampling,
            foreground_iou=foreground_iou,
            background_iou=background_iou,
            beta=beta,
            nms_iou=nms_iou,
            nms=nms,
            min_score=min_score,
            max_detections=max_detections,
            pretrained=pretrained,
            weights=weights,
        )
        self.half_pixel = half_pixel
        shared = top == "backbone" and backbone.fc_layers() is None
        if shared and mask_roi_size is not None:
            raise ValueError(
                f"mask_roi_size={mask_roi_size} would not be read: with top=backbone masks come "
                "from the regions' maps of the boxes (roi_size)"
            )
        if mask_channels is None:
            mask_channels = self.map_channels if neck == "fpn" else CHANNELS
        if mask_convs is None:
            mask_convs = 0 if shared else CONVS
        self.mask_pool: RoIPool | None = None
        width = self.head.in_channels
        if not shared:
            if mask_roi_size is None:
                mask_roi_size = FPN_SIZE if neck == "fpn" else C4_SIZE
            self.mask_pool = RoIPool(self.pool.strides, mask_roi_size, roi)
            width = self.map_channels
        self.masks = MaskHead(width, num_classes, mask_channels, mask_convs)

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``objectness``, ``proposals``, ``classes``, ``boxes`` and ``masks``; counts
        ``num_objects`` and ``num_positives`` (foreground regions).
        """
        read: list[Tensor] = []

        def classify(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
            read.append(self.features(outputs.maps, boxes))
            return self.head(read[0])

        terms, foreground = self.stage.learn(classify, outputs.proposals, targets, self.training)
        if self.mask_pool is None:
            x = read[0][torch.cat([f.rows for f in foreground])]  # (F, C, n, n)
        else:
            x = self._read_masks(outputs.maps, [f.boxes for f in foreground])
        logits = self.masks(x, torch.cat([f.labels for f in foreground]))
        wanted = mask_targets(foreground, targets, logits.shape[-1], self.half_pixel)
        return {
            **self.rpn.loss(outputs.anchors, targets),
            **terms,
            "masks": mask_loss(logits, wanted),
        }

    def decode(self, outputs: Outputs) -> list[Prediction]:
        """Boxes as Faster R-CNN's, each with the mask of its class: ``mask_probs``."""
        found = []
        for i, prediction in enumerate(
            super().decode(outputs)
        ):  # one by one: maps of 100 are large
            assert prediction.boxes is not None
            assert prediction.labels is not None
            maps = [x[i : i + 1] for x in outputs.maps]
            x = self._read_masks(maps, [prediction.boxes])
            logits = self.masks(x, prediction.labels)
            found.append(replace(prediction, mask_probs=logits.sigmoid()))
        return found

    def _read_masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Boxes ``(N_b, 4)`` of each image, R in all -> ``(R, C, n, n)`` for the mask branch."""
        if self.mask_pool is None:
            return self.features(maps, boxes)
        return self.mask_pool(maps[: len(self.mask_pool.strides)], boxes)
