"""SSDLite (2018): SSD with separable convolutions on a MobileNet.

Paper: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", arXiv 1801.04381, section 6.2; on MobileNetV3: Howard et al. 2019, arXiv 1905.02244,
section 6.3. Written from the papers; the heads and the layers on top give with copied weights what
torchvision's ssdlite320_mobilenet_v3_large gives.

Every 3 x 3 convolution of SSD's extra layers and heads becomes a depthwise 3 x 3 and a 1 x 1, with
batch norm and ReLU6. Two maps of the backbone, at strides 16 and 32, and four on top: 20, 10, 5, 3,
2, 1 pixels at 320 x 320 with 6 default boxes each, 3,234 in all.

Deviations: the map of stride 16 is that of the last block there, not the expansion layer of the
next; any backbone will do. Scales run from 0.2 to 0.95, with a last of 1. Batch norm's momentum is
0.1 in place of 0.03 (0.01 in the paper): the small weights it starts from leave its variances near
0, which the slower average says only after thousands of steps. The rest as in ssd.py.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from cvtrain.models.detection.ssd import SSD


class LoneBatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a batch holds one value a channel.

    The last map is a single pixel: one image a batch has no variance there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


NORM = partial(LoneBatchNorm, eps=0.001, momentum=0.1)
"""With MobileNetV3's eps."""


class SSDLite(SSD):
    """SSD of separable convolutions; takes what ``SSD`` takes.

    Raises:
        ValueError: as ``SSD``.
    """

    def _source_strides(self, fc: bool) -> tuple[int, ...]:
        return (16, 32)

    def _extra(self, inputs: int, outputs: int) -> nn.Module:
        width = outputs // 2
        return nn.Sequential(
            _unit(inputs, width, 1),
            _unit(width, width, 3, stride=2, groups=width),
            _unit(width, outputs, 1),
        )

    def _head(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(_unit(inputs, inputs, 3, groups=inputs), nn.Conv2d(inputs, outputs, 1))

    def _start(self, part: nn.Module) -> None:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution, batch norm, ReLU6; H and W of ``(B, inputs, H, W)`` divided by the stride."""
    return Conv2dNormActivation(
        inputs,
        outputs,
        kernel,
        stride=stride,
        groups=groups,
        norm_layer=NORM,
        activation_layer=nn.ReLU6,
    )
