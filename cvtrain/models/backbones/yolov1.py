"""The convolutions of YOLO (2015).

Paper: Redmon, Divvala, Girshick, Farhadi, "You Only Look Once: Unified, Real-Time Object
Detection", arXiv 1506.02640, figure 3 and section 2.2. Written from the paper.

24 convolutions with biases and leaky ReLU (0.1), no batch norm: 60,155,968 parameters. The first 20
are pretrained as a classifier at 224 x 224 (average pooling and one connected layer follow there);
the last four belong to the detector and start at random. The names of the first 20 are the same in
both, so ``backbone.weights`` of the one fills those of the other.

Deviations: weights start as He et al. 2015 (the paper does not say how); ``batch_norm`` (off) is
not in the paper.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.weights import load_weights

# (kernel, channels, stride) of each convolution; "pool": 2 x 2 max pooling of stride 2.
LAYERS: tuple[tuple[int, int, int] | str, ...] = (
    (7, 64, 2),
    "pool",
    (3, 192, 1),
    "pool",
    (1, 128, 1),
    (3, 256, 1),
    (1, 256, 1),
    (3, 512, 1),
    "pool",
    *((1, 256, 1), (3, 512, 1)) * 4,
    (1, 512, 1),
    (3, 1024, 1),
    "pool",
    *((1, 512, 1), (3, 1024, 1)) * 2,  # here end the 20 that are pretrained
    (3, 1024, 1),
    (3, 1024, 2),
    (3, 1024, 1),
    (3, 1024, 1),
)


class YOLOv1Backbone(Backbone):
    """Figure 3 of the paper up to its connected layers.

    Maps: 64, 192, 512, 1024, 1024 channels at strides 2, 4, 8, 16, 32, and, with all 24 layers,
    1024 at stride 64: ``(B, 1024, 7, 7)`` for images of 448 x 448.

    Args:
        layers: 24, or 20: those the paper pretrains.
        batch_norm: batch norm in place of biases (not in the paper).
        in_channels: channels of the images.
        weights: a file to start from.

    Raises:
        ValueError: ``layers`` is neither.
        UsageError, CheckpointError: ``weights`` cannot be taken.
    """

    def __init__(
        self,
        layers: int = 24,
        batch_norm: bool = False,
        in_channels: int = 3,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if layers not in (20, 24):
            raise ValueError(f"layers={layers}: the paper's network has 24, of which 20 pretrained")
        self.architecture = "yolov1" if layers == 24 else "yolov1_20"
        self.in_channels = in_channels
        self.convs = nn.ModuleDict()
        self.steps: list[str] = []  # names of convolutions and "pool", in order
        channels, stride = in_channels, 1
        maps: dict[int, int] = {}  # stride -> channels of the last convolution at it
        for layer in LAYERS:
            if isinstance(layer, str):
                self.steps.append(layer)
                stride *= 2
                continue
            if len(self.convs) == layers:
                break
            kernel, width, step = layer
            name = f"conv{len(self.convs) + 1}"
            self.convs[name] = ConvBlock(channels, width, kernel, step, batch_norm)
            self.steps.append(name)
            channels, stride = width, stride * step
            maps[stride] = channels
        self.strides, self.channels = list(maps), list(maps.values())
        self.num_features = self.channels[-1]
        if weights is not None:
            load_weights(self, weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for name in self.steps:
            if name == "pool":
                maps.append(x)
                x = F.max_pool2d(x, 2, ceil_mode=True)
            else:
                if name == "conv22":  # its stride of 2 ends the maps of stride 32
                    maps.append(x)
                x = self.convs[name](x)
        return [*maps, x]
