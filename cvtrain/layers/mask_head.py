"""The mask branch of Mask R-CNN: from a region's map to the outline of the object in it.

Paper: He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv 1703.06870, section 3 and figure 4. A
small fully convolutional network gives each region one mask a class; the classes do not compete:
a sigmoid a pixel, and the loss looks at the mask of the true class alone. Which class it is, the
boxes' branch says. With copied weights masks are torchvision's; so are losses, with its way to read
the truth (``half_pixel=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from cvtrain.layers.roi_head import Foreground
from cvtrain.structures import Target


class MaskHead(nn.Module):
    """3 x 3 convolutions with ReLU, a transposed convolution that doubles the map, a mask a class.

    Weights start as the paper's (He et al. 2015, arXiv 1502.01852), biases at 0.

    Args:
        in_channels: of the regions' maps.
        num_classes: K.
        channels: of the convolutions, the transposed one among them (the paper: 256).
        convs: 3 x 3 convolutions (the paper: 4; none on a ResNet's last stage).

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 256, convs: int = 4
    ) -> None:
        super().__init__()
        if channels < 1 or convs < 0:
            raise ValueError(
                f"mask_channels={channels} must be at least 1, mask_convs={convs} at least 0"
            )
        self.convs = nn.ModuleList()
        for _ in range(convs):
            self.convs.append(nn.Conv2d(in_channels, channels, 3, padding=1))
            in_channels = channels
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.convs, self.up, self.logits):
            assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Maps of regions and the class whose mask is wanted of each; the others aren't computed.

        Args:
            x: ``(R, in_channels, n, n)``, R may be 0.
            labels: int64 ``(R,)`` in ``0..K-1``.

        Returns:
            float32 logits ``(R, 2n, 2n)``.
        """
        for layer in self.convs:
            x = F.relu(layer(x))
        x = F.relu(self.up(x))  # (R, channels, 2n, 2n)
        weight = self.logits.weight.flatten(1)[labels]  # (R, channels), of the 1 x 1 convolution
        assert self.logits.bias is not None
        logits = torch.einsum("rchw,rc->rhw", x, weight.to(x.dtype)).float()
        return logits + self.logits.bias[labels].float()[:, None, None]


class MaskTargets(NamedTuple):
    """What regions' masks should be.

    Attributes:
        masks: float32 ``(R, m, m)``, the share of each cell that the object covers.
        counts: bool ``(R,)``: not where an object lost all its pixels, in resizing say: it teaches
            its box and its class, no outline.
    """

    masks: Tensor
    counts: Tensor


def mask_targets(
    foreground: Sequence[Foreground],
    targets: Sequence[Target],
    size: int,
    half_pixel: bool = True,
) -> MaskTargets:
    """The truth inside each region, read by RoIAlign from the mask of the region's object.

    Of the masks no more is taken to float than what lies in a region, one region after the other:
    an image of 500 objects costs what its regions cost.

    Args:
        foreground: regions of each image.
        targets: of the images, with ``masks``.
        size: m, rows and columns.
        half_pixel: whether a mask's pixels are centered at half numbers, as boxes and whoever
            pastes the masks have it (Detectron2); no: at whole ones, which moves the ground truth
            by half a pixel to the left and up (torchvision).

    Raises:
        ValueError: an image with objects and without their masks.
    """
    found, counts = [], []
    for regions, target in zip(foreground, targets, strict=True):
        boxes = regions.boxes.float()
        found.append(boxes.new_zeros(0, size, size))
        counts.append(torch.zeros(0, dtype=torch.bool, device=boxes.device))
        if not len(boxes):
            continue
        if target.masks is None:
            raise ValueError("objects without masks: the mask branch has nothing to learn from")
        masks = target.masks
        there = {i: masks[i].any() for i in set(regions.objects.tolist())}
        windows = _windows(boxes, (masks.shape[1], masks.shape[2]))
        for box, i, window in zip(boxes, regions.objects.tolist(), windows, strict=True):
            left, top, right, bottom = window
            crop = masks[i, top:bottom, left:right].to(boxes)[None, None]  # (1, 1, h, w)
            box = box - box.new_tensor([left, top, left, top])
            found.append(roi_align(crop, [box[None]], size, aligned=half_pixel)[0])  # (1, m, m)
            counts.append(there[i].to(boxes.device)[None])
    return MaskTargets(torch.cat(found), torch.cat(counts))


def _windows(boxes: Tensor, size: tuple[int, int]) -> list[list[int]]:
    """Left, top, right, bottom in whole pixels of a mask (height, width): all that RoIAlign looks
    at in each box. It takes one without width or height for a pixel, and reads between two pixels.
    """
    last = boxes.new_tensor([size[1] - 1, size[0] - 1])
    low = (boxes[:, :2] - 0.5).floor().clamp(min=0).minimum(last)
    high = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1).floor() + 2
    windows: list[list[int]] = torch.cat([low, high.maximum(low + 1)], dim=1).long().tolist()
    return windows


def mask_loss(logits: Tensor, targets: MaskTargets) -> Tensor:
    """Mean binary cross-entropy over the pixels of the regions that count; of none 0.

    Args:
        logits: ``(R, m, m)``, of each region's class.
        targets: of the same regions.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets.masks, reduction="none")
    each = loss.mean(dim=(1, 2))  # (R,)
    return (each * targets.counts).sum() / targets.counts.sum().clamp(min=1)
