"""DeconvNet (2015): VGG-16 and its mirror image, which unpools where VGG pooled.

Paper: Noh, Hong, Han, "Learning Deconvolution Network for Semantic Segmentation", arXiv 1505.04366,
figure 2 and table 2. Written from the paper.

VGG-16's thirteen convolutions, and its connected layers as a 7 x 7 and a 1 x 1 convolution of 4096
channels, turn a window of 224 x 224 pixels into one code; a 7 x 7 transposed convolution turns that
into a map of 7 x 7 again, and five levels of unpooling and 3 x 3 transposed convolutions enlarge it
to the window. An unpooling puts each value to where the maximum of the matching pooling came from
(``cvtrain.layers.unpool``). Batch norm and ReLU follow every convolution and transposed one.

It is trained on crops in two stages, first one centered object each, then windows that overlap with
one (``augment=object_crops``), and looks at an image in windows: the 50 best of its proposals, 1.2
times as large each. The scores of a window are resized to its place, zeros around them; the maximum
over the windows at each pixel goes into the softmax. The paper's mean is ``aggregate=mean``.

Where the paper is silent or we deviate:

- The whole image is one window more, so that every pixel is in one.
- From the scores of a window their mean over the classes is taken off first. The softmax does not
  see that, but zeros around a window are neutral then, whatever the scores are.
- Without proposals (``proposals=null``) windows are a fixed grid; ``inference=whole`` looks at the
  whole image once.
- Images of ``image_size`` are what one code stands for: with 224 the connected layers are 7 x 7, at
  128 they are 4 x 4 (a 32nd of the side, rounded up), with fewer weights. A whole image that is
  larger gets several codes, side by side; a smaller one, or one that is no multiple of 32, is
  padded at the right and below.
- The network starts at random; with ``pretrained`` or ``weights`` the convolutions start from
  VGG-16 with batch norm as torchvision and timm have it, as in the paper from VGG-16.
- EDeconvNet (the mean with an FCN's output) and the CRF behind it are not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.errors import RunError
from cvtrain.layers.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.layers.unpool import pool_with_switches, unpool
from cvtrain.models.base import evaluating
from cvtrain.models.segmentation.base import SegmentationModel
from cvtrain.models.segmentation.deconvnet_weights import load_encoder
from cvtrain.structures import Prediction, Target

Inference = Literal["windows", "whole"]
Aggregate = Literal["max", "mean"]

LEVELS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Of VGG-16: channels in units of the first level's, and convolutions, before each pooling."""
MULTIPLE = 32
"""Image pixels a cell of the last map."""
AT_ONCE = 16
"""Windows that go through the network together."""
GRID = ((3 / 4, 2), (1 / 2, 3), (1 / 3, 5))
"""Without proposals: sides of the windows in shares of the image's, and how many lie across it."""


class DeconvNet(SegmentationModel):
    """The published network, of any width.

    Args:
        loss: of the pixels, see ``SegmentationModel``.
        num_classes: K.
        image_size: of a window as the network sees it, pixels: an int or (H, W).
        in_channels: of the images.
        width: channels of the first level; the paper's 64.
        hidden: channels of the connected layers; None: 64 times ``width``, the paper's 4096.
        inference: how an image is looked at: in ``windows``, or ``whole``.
        max_windows: of its proposals, the best.
        context: sides of a window in units of the proposal's.
        aggregate: of the windows' scores at a pixel, ``max`` or ``mean`` (over those it lies in).
        pretrained: ``start`` fetches timm's VGG-16 with batch norm, trained on ImageNet.
        weights: a file of such, or a run of this model, that ``start`` reads instead.
        mean, std: the images are normalized with, in 0..1.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        loss: nn.Module,
        num_classes: int,
        image_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        width: int = 64,
        hidden: int | None = None,
        inference: Inference = "windows",
        max_windows: int = 50,
        context: float = 1.2,
        aggregate: Aggregate = "max",
        pretrained: bool = False,
        weights: str | Path | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(loss, num_classes)
        least_values: list[tuple[str, float, float]] = [
            ("width", width, 1),
            ("hidden", width if hidden is None else hidden, 1),
            ("max_windows", max_windows, 0),
            ("context", context, 1),
        ]
        for name, given, least in least_values:
            if given < least:
                raise ValueError(f"{name}={given} must be at least {least}")
        if inference not in get_args(Inference):
            raise ValueError(f"inference={inference}: expected {' | '.join(get_args(Inference))}")
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate={aggregate}: expected {' | '.join(get_args(Aggregate))}")
        if pretrained and weights is not None:
            raise ValueError("pretrained=true and weights=FILE exclude each other: give one")
        self.pretrained, self.weights = pretrained, weights
        self.inference, self.aggregate = inference, aggregate
        self.max_windows, self.window_context = max_windows, context
        size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        self.cells = (math.ceil(size[0] / MULTIPLE), math.ceil(size[1] / MULTIPLE))
        self.normalize = Normalize(in_channels, mean, std)
        widths = [width * times for times, _ in LEVELS]  # 64, 128, 256, 512, 512
        hidden = 64 * width if hidden is None else hidden
        self.features = _features(in_channels, widths)
        self.fc6 = _block(nn.Conv2d(widths[-1], hidden, self.cells))
        self.fc7 = _block(nn.Conv2d(hidden, hidden, 1))
        self.unfc6 = _block(nn.ConvTranspose2d(hidden, widths[-1], self.cells))
        self.levels = nn.ModuleList(
            _mirrored(widths[i], widths[max(0, i - 1)], LEVELS[i][1])
            for i in reversed(range(len(LEVELS)))
        )
        self.score = nn.Conv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                # Transposed kernels are (in, out, h, w): there torch calls "out" what goes in.
                mode: Literal["fan_in", "fan_out"] = (
                    "fan_out" if isinstance(module, nn.ConvTranspose2d) else "fan_in"
                )
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def load_pretrained(self, class_names: Sequence[str]) -> None:
        if self.pretrained or self.weights is not None:
            load_encoder(self, self.weights)

    # The network -------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Whole images ``(B, C, H, W)`` of any size -> logits float32 ``(B, K, H, W)``."""
        return self._scores(self.normalize(images))

    def _scores(self, x: Tensor) -> Tensor:
        """Normalized ``(B, C, H, W)`` of any size -> float32 ``(B, K, H, W)``."""
        height, width = x.shape[-2:]
        down = max(0, self.cells[0] * MULTIPLE - height)
        right = max(0, self.cells[1] * MULTIPLE - width)
        x = pad_to_multiple(F.pad(x, (0, right, 0, down)), MULTIPLE)
        return self.network(x)[..., :height, :width].float()

    def network(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)``, multiples of 32 from the window's size on -> ``(B, K, H, W)``.

        Raises:
            RunError: one window alone in training, of which there are no batch statistics.
        """
        if self.training and x[:, 0].numel() == self.cells[0] * self.cells[1] * MULTIPLE**2:
            raise RunError(
                "model=deconvnet normalizes the code of an image over the batch, and this batch "
                "has one image: give data.batch_size=2 or more"
            )
        switches, sizes = [], []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                sizes.append(x.shape[-2:])
                x, at = pool_with_switches(x)
                switches.append(at)
            else:
                x = layer(x)
        # (B, 512, H / 32, W / 32), 7 x 7 at 224 -> (B, 4096, 1, 1) -> (B, 512, 7, 7)
        x = self.unfc6(self.fc7(self.fc6(x)))
        for level, at, size in zip(self.levels, switches[::-1], sizes[::-1], strict=True):
            x = level(unpool(x, at, size))  # twice the size
        return self.score(x)

    # Windows -----------------------------------------------------------------------------------

    def scan(self, images: Tensor, proposals: list[Tensor] | None = None) -> Tensor:
        """What the windows say together: ``(B, C, H, W)`` -> scores float32 ``(B, K, H, W)``.

        Args:
            images: of any size.
            proposals: B of ``(P, 4)`` xyxy pixels, best first; None: a grid of windows.
        """
        x = self.normalize(images)
        height, width = x.shape[-2:]
        boxes = [grid(height, width)] * len(x) if proposals is None else proposals
        windows = [
            (i, *window)
            for i, given in enumerate(boxes)
            for window in self._windows(given, height, width, grow=proposals is not None)
        ]
        largest = self.aggregate == "max"
        shape = (len(x), self.num_classes, height, width)
        out = x.new_full(shape, -torch.inf if largest else 0.0, dtype=torch.float32)
        count = x.new_zeros((len(x), 1, height, width), dtype=torch.float32)
        side = [n * MULTIPLE for n in self.cells]
        for start in range(0, len(windows), AT_ONCE):
            part = windows[start : start + AT_ONCE]
            crops = [
                _resized(x[i : i + 1, :, top:bottom, left:right], side)
                for i, top, left, bottom, right in part
            ]
            scores = self._scores(torch.cat(crops))  # (N, K, *side)
            scores = scores - scores.mean(dim=1, keepdim=True)
            for score, (i, top, left, bottom, right) in zip(scores, part, strict=True):
                placed = _resized(score[None], (bottom - top, right - left))[0]
                there = out[i, :, top:bottom, left:right]
                there.copy_(torch.maximum(there, placed) if largest else there + placed)
                count[i, :, top:bottom, left:right] += 1
        if not largest:
            return out / count
        images_of = torch.tensor([window[0] for window in windows])
        of_each = images_of.bincount(minlength=len(x)).to(count).view(-1, 1, 1, 1)
        return torch.where(count < of_each, out.clamp(min=0), out)  # 0 is what the others say

    def _windows(
        self, boxes: Tensor, height: int, width: int, grow: bool
    ) -> list[tuple[int, int, int, int]]:
        """The whole image, and around the best boxes: top, left, bottom, right in whole pixels."""
        boxes = boxes[: self.max_windows].float().cpu() if grow else boxes
        more = (self.window_context - 1) / 2 if grow else 0.0
        border = (boxes[:, 2:] - boxes[:, :2]) * more
        low = (boxes[:, :2] - border).floor().clamp(min=0)
        high = (boxes[:, 2:] + border).ceil().minimum(torch.tensor([width, height]))
        found = [(0, 0, height, width)]
        for (left, top), (right, bottom) in zip(
            low.int().tolist(), high.int().tolist(), strict=True
        ):
            if right > left and bottom > top:
                found.append((top, left, bottom, right))
        return found

    # What the task asks ------------------------------------------------------------------------

    def _looked_at(self, images: Tensor, proposals: list[Tensor] | None) -> Tensor:
        return self(images) if self.inference == "whole" else self.scan(images, proposals)

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Of images as they come: in training they are windows already (``object_crops``)."""
        return self.compute_loss(self(images), targets)

    def predict(self, images: Tensor, proposals: list[Tensor] | None = None) -> list[Prediction]:
        with evaluating(self):
            return self.decode(self._looked_at(images, proposals))

    def loss_and_predict(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[Prediction]]:
        """Both of what is predicted: of the windows together where it looks at windows."""
        with evaluating(self):
            outputs = self._looked_at(images, proposals)
            return self.compute_loss(outputs, targets), self.decode(outputs)


def grid(height: int, width: int) -> Tensor:
    """38 windows of three sizes that cover an image, half overlapping: float32 ``(38, 4)`` xyxy."""
    boxes = []
    for side, count in GRID:
        steps = [(1 - side) * i / (count - 1) for i in range(count)]
        boxes += [[x, y, x + side, y + side] for y in steps for x in steps]
    return (torch.tensor(boxes) * torch.tensor([width, height, width, height])).float()


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C, *size)``, bilinear, averaged where it shrinks."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)


def _block(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """A convolution of either kind, batch norm and ReLU."""
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True))


def _features(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """VGG-16's convolutions; the layers have the places, and so the names, of torchvision's."""
    layers: list[nn.Module] = []
    before = in_channels
    for width, (_, count) in zip(widths, LEVELS, strict=True):
        for _ in range(count):
            layers += _block(nn.Conv2d(before, width, 3, padding=1))
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _mirrored(width: int, last: int, count: int) -> nn.Sequential:
    """A level's transposed convolutions: all keep the channels but the last."""
    outs = [width] * (count - 1) + [last]
    layers = (nn.ConvTranspose2d(width, out, 3, padding=1) for out in outs)
    return nn.Sequential(*(_block(layer) for layer in layers))
