"""FCN (2015): a classification network whose layers are all convolutions, and skips for detail.

Paper: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", arXiv
1411.4038; its journal version, Shelhamer et al., arXiv 1605.06211. Written from the papers.

A 1 x 1 convolution scores every place of the last map, at stride 32; FCN-32s enlarges these scores
32 times. FCN-16s doubles them, adds scores of the map of stride 16 and enlarges the sum 16 times;
FCN-8s does this once more at stride 8. Scores start at zero. The doublings are transposed
convolutions that start as bilinear interpolation and are learned, the last is fixed. VGG-16's
connected layers fc6 and fc7 become a 7 x 7 and a 1 x 1 convolution, with dropout.

Where the paper is silent or we deviate:

- The paper pads images by 100 pixels so that fc6 fits and crops what is left over. Here images are
  padded to a multiple of 32 at the right and below, and the map that fc6 sees by 3, so that map and
  image stay aligned and any size will do.
- Enlarging repeats the map's border before, which the paper's 100 pixels made unnecessary.
- All of it is trained at once; the paper goes from 32 to 16 to 8, each from the one before (its
  journal version finds both alike).
- The backbone is any; of one without connected layers the last map is scored as it is, and skips
  come from its maps of stride 16 and 8 (VGG's are pool4 and pool3, as in the paper).
- The loss is the mean over pixels, not their sum: no learning rate per image size.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.fpn import nearest_maps, resized
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.layers.transposed import Upsample
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.segmentation.base import SegmentationModel

Stride = Literal[32, 16, 8]

MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""


class FCN(SegmentationModel):
    """Backbone, scores of its last map and of finer ones, enlarged to the image.

    Args:
        backbone: its maps are used, and its connected layers where it has any.
        loss: of the pixels, see ``SegmentationModel``.
        num_classes: K.
        stride: of the finest map that is scored: 32, 16 or 8.
        fc: whether the backbone's connected layers follow its last map, as convolutions; None:
            where it has any (VGG).
        dropout: share of the channels' values dropped after each connected layer, 0..1.
        learn_last: whether the last enlargement is learned too.

    Raises:
        ValueError: another stride, connected layers that are not there, a backbone without maps
            near these strides.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        stride: Stride = 8,
        fc: bool | None = None,
        dropout: float = 0.5,
        learn_last: bool = False,
    ) -> None:
        super().__init__(loss, num_classes)
        if stride not in get_args(Stride):
            raise ValueError(f"stride={stride}: expected {' | '.join(map(str, get_args(Stride)))}")
        has = backbone.fc_layers() is not None
        if fc and not has:
            raise ValueError(
                f"fc=true: {backbone.architecture} has no connected layers to turn into "
                "convolutions; choose backbone=vgg16, or omit it"
            )
        self.fc = has if fc is None else fc
        self.strides = [s for s in get_args(Stride) if s >= stride]
        # A VGG's maps end before a pooling: pool4, at stride 16, is its map of stride 8, pooled.
        self.pool = 2 if backbone.architecture.startswith("vgg") else 1
        wanted = [s if s == MULTIPLE else s // self.pool for s in self.strides]
        self.sources = nearest_maps(backbone.strides, wanted)
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        backbone.set_output("connected" if self.fc else "maps")
        channels = [backbone.channels[i] for i in self.sources]
        if self.fc:
            channels[0] = backbone.num_features
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        for score in self.scores:
            assert isinstance(score, nn.Conv2d)
            assert score.bias is not None
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)
        self.doublings = nn.ModuleList(Upsample(num_classes, 2) for _ in self.strides[1:])
        self.enlarge = Upsample(num_classes, stride, learned=learn_last)

    def _connected(self, x: Tensor) -> Tensor:
        """fc6 and fc7 at every place: ``(B, C, h, w)`` -> ``(B, num_features, h, w)``."""
        layers = self.backbone.fc_layers()
        assert layers is not None
        around = layers.fc1.kernel_size[0] // 2
        x = layers.act1(layers.fc1(F.pad(x, (around,) * 4)))
        return self.dropout(layers.act2(layers.fc2(self.dropout(x))))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` of any size -> logits float32 ``(B, K, H, W)``."""
        height, width = images.shape[-2:]
        x = pad_to_multiple(self.normalize(images), MULTIPLE)
        maps = self.backbone(x)
        sizes = [(x.shape[-2] // s, x.shape[-1] // s) for s in self.strides]
        chosen = [maps[self.sources[0]]]
        chosen += [F.max_pool2d(maps[i], self.pool) for i in self.sources[1:]]
        chosen = [resized(x, size) for x, size in zip(chosen, sizes, strict=True)]
        if self.fc:
            chosen[0] = self._connected(chosen[0])
        out = self.scores[0](chosen[0])  # (B, K, H / 32, W / 32)
        for double, score, finer in zip(
            self.doublings, list(self.scores)[1:], chosen[1:], strict=True
        ):
            out = double(out) + score(finer)  # twice the size
        return self.enlarge(out)[..., :height, :width].float()
