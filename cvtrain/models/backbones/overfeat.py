"""OverFeat's convolutional layers, fast and accurate.

Paper: Sermanet, Eigen, Zhang, Mathieu, Fergus, LeCun, "OverFeat: Integrated Recognition,
Localization and Detection using Convolutional Networks", arXiv 1312.6229, tables 1 (fast, 231 x
231) and 3 (accurate, 221 x 221). Written from the paper.

Convolutions with biases and ReLU, max pooling of windows that do not overlap, no local response
normalization. Sides of the maps:

fast: 231 -> 56, pool 2 -> 28 -> 24, pool 2 -> 12 -> 12 -> 12; 15,987,584 parameters
accurate: 221 -> 108, pool 3 -> 36 -> 30, pool 2 -> 15 -> 15 -> 15 -> 15; 18,916,480 parameters

(146 and 145 million with the connected layers; table 4 says 145 and 144.) A last pooling
(``final_pool``: 2 x 2 -> 6 x 6 in the fast network, 3 x 3 -> 5 x 5 in the accurate one) and three
connected layers follow in the paper. Neither is here: the maps end *before* that pooling, since
OverFeat pools them at several offsets (section 3.3), and the connected layers belong to the model
on top.

The first two convolutions are not padded, so a map is a few pixels smaller than the image over its
stride, and the smallest image is 55 x 55 (fast) or 53 x 53 (accurate).

Deviations: table 1 prints 24 x 24 as the input of the fast network's layer 2; that is what comes
out of its convolution, 28 x 28 goes in. Weights start as He et al. 2015 (the paper: a normal
distribution of deviation 0.01). ``batch_norm`` (off) is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.weights import load_weights

Layer = tuple[int, int, int, int]

# (kernel, channels, stride, padding) of each convolution; a number alone: max pooling of that side
# and stride. The last pooling is `final_pool`.
LAYERS: dict[str, tuple[Layer | int, ...]] = {
    "fast": (
        (11, 96, 4, 0),
        2,
        (5, 256, 1, 0),
        2,
        (3, 512, 1, 1),
        (3, 1024, 1, 1),
        (3, 1024, 1, 1),
    ),
    "accurate": (
        (7, 96, 2, 0),
        3,
        (7, 256, 1, 0),
        2,
        (3, 512, 1, 1),
        (3, 512, 1, 1),
        (3, 1024, 1, 1),
        (3, 1024, 1, 1),
    ),
}
FINAL_POOL = {"fast": 2, "accurate": 3}
TRAINED_AT = {"fast": 231, "accurate": 221}


class OverFeatBackbone(Backbone):
    """Tables 1 and 3 of the paper up to the last convolution.

    Maps: fast, 96, 256, 1024 channels at strides 4, 8, 16; accurate, the same channels at strides
    2, 6, 12. Each is the last map of its stride, before the pooling that ends it.

    Attributes:
        final_pool: side and stride of the max pooling that follows the last map in the paper; map
            pixels. Times the last stride it is the step of the paper's windows: 32 and 36 pixels.
        trained_at: side of the images the paper trains on; pixels.

    Args:
        version: ``fast`` or ``accurate``.
        batch_norm: batch norm in place of biases (not in the paper).
        in_channels: channels of the images.
        weights: a file to start from.
        image_size: pixels, an int or (H, W): refused where too small. It changes nothing.

    Raises:
        ValueError: another ``version``, or an ``image_size`` below ``minimum_size``.
        UsageError, CheckpointError: ``weights`` cannot be taken.
    """

    def __init__(
        self,
        version: Literal["fast", "accurate"] = "fast",
        batch_norm: bool = False,
        in_channels: int = 3,
        weights: str | Path | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if version not in LAYERS:
            raise ValueError(f"version={version}: the paper has fast and accurate")
        self.architecture = f"overfeat_{version}"
        self.in_channels = in_channels
        self.final_pool = FINAL_POOL[version]
        self.trained_at = TRAINED_AT[version]
        self.convs = nn.ModuleDict()
        self.steps: list[str | int] = []  # names of convolutions and sides of poolings, in order
        channels, stride = in_channels, 1
        maps: dict[int, int] = {}  # stride -> channels of the last convolution at it
        for layer in LAYERS[version]:
            if isinstance(layer, int):
                self.steps.append(layer)
                stride *= layer
                continue
            kernel, width, step, padding = layer
            name = f"conv{len(self.convs) + 1}"
            self.convs[name] = ConvBlock(
                channels, width, kernel, step, batch_norm, padding=padding, leak=0.0
            )
            self.steps.append(name)
            channels, stride = width, stride * step
            maps[stride] = channels
        self.strides, self.channels = list(maps), list(maps.values())
        self.num_features = self.channels[-1]
        self.minimum_size = _smallest(LAYERS[version])
        self.check_size(image_size)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x.shape[-2:])
        maps: list[Tensor] = []
        for step in self.steps:
            if isinstance(step, int):
                maps.append(x)
                x = F.max_pool2d(x, step)
            else:
                x = self.convs[step](x)
        return [*maps, x]


def _smallest(layers: Sequence[Layer | int]) -> int:
    """The side of the image that gives a last map of 1 x 1, from the last layer to the first."""
    side = 1
    for layer in reversed(layers):
        if isinstance(layer, int):
            side *= layer
        else:
            kernel, _, stride, padding = layer
            side = max((side - 1) * stride + kernel - 2 * padding, 1)
    return side
