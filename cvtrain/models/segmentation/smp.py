"""U-Net and its relatives on any backbone: the decoders of segmentation_models.pytorch.

Package: Iakubovskii, segmentation_models.pytorch (smp), MIT,
https://github.com/qubvel-org/segmentation_models.pytorch. Its decoders and heads are taken as they
are, under their names (``decoder.``, ``segmentation_head.``); the encoder is a backbone of ours
instead of smp's, so that ``backbone.weights``, ``backbone.pretrained``, fixed stages and rates by
layer mean here what they mean everywhere. On copied weights the logits are smp's.

Decoders take maps of stride 2, 4, 8, 16 and 32, each from the image's:

- Where a backbone has no map of stride 2 (ConvNeXt, Swin) that level has no skip, as in smp.
- Where it has none of a coarser stride the nearest one stands in, resized (a ViT's one map for
  all); smp refuses such encoders.
- DeepLab takes the last map at stride 16, the last stage dilated, which ResNets can (``Backbone
  .dilate``); PAN too where it can. smp's DeepLabV3 is at stride 8 by default.
- Images are padded to a multiple of 32 at the right and below and the logits cropped: any size.
- A batch norm that sees one value a channel, an image alone pooled to one place, normalizes by its
  running statistics; torch would stop the training.

Not taken: DPT, whose tokens of several depths of a ViT the backbones do not give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import (
    DeepLabV3Decoder,
    DeepLabV3PlusDecoder,
)
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.layers.fpn import nearest_maps, resized
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.segmentation.base import SegmentationModel

MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""
STRIDES = (2, 4, 8, 16, 32)
"""Of the maps a decoder takes."""
UNET_WIDTHS = (256, 128, 64, 32, 16)
"""Channels of smp's U-Net decoder, coarsest level first."""

SQUEEZE = 16
"""What smp's attention divides a level's channels by."""


@dataclass(frozen=True)
class Arch:
    """How smp builds one of its models.

    Attributes:
        decoder: smp's class.
        defaults: the keywords smp's model gives it, and their values.
        head: what the head's channels are, of the keywords and the decoder.
        kernel: side of the head's convolution.
        enlarge: how many times the head enlarges the decoder's output.
        depth: how many of ``STRIDES`` there are.
        given: what the decoder is told of the maps, of their channels (those of the image first).
        dilated: the last map is wanted at stride 16.
        finest: it cannot do without a map of stride 2.
        least: the smallest side of its input, pixels for a last map of stride 16.
    """

    decoder: type[nn.Module]
    defaults: Mapping[str, Any]
    head: Callable[[Mapping[str, Any], nn.Module], int]
    kernel: int
    enlarge: int = 1
    depth: int = 5
    given: Callable[[list[int], int], dict[str, Any]] = lambda channels, depth: {
        "encoder_channels": channels,
        "encoder_depth": depth,
    }
    dilated: bool = False
    finest: bool = False
    least: int = 0


def _blocks(channels: list[int], depth: int) -> dict[str, Any]:
    return {"encoder_channels": channels, "n_blocks": depth}


def _alone(channels: list[int], depth: int) -> dict[str, Any]:
    return {"encoder_channels": channels}


_UNET: dict[str, Any] = {
    "decoder_channels": UNET_WIDTHS,
    "use_norm": "batchnorm",
    "attention_type": None,
    "interpolation_mode": "nearest",
}
_ASPP: dict[str, Any] = {"out_channels": 256, "atrous_rates": (12, 24, 36), "aspp_dropout": 0.5}

ARCHS: dict[str, Arch] = {
    "unet": Arch(UnetDecoder, _UNET, lambda k, d: k["decoder_channels"][-1], 3, given=_blocks),
    "unetplusplus": Arch(
        UnetPlusPlusDecoder,
        _UNET,
        lambda k, d: k["decoder_channels"][-1],
        3,
        given=_blocks,
        finest=True,
    ),
    "manet": Arch(
        MAnetDecoder,
        {
            "decoder_channels": UNET_WIDTHS,
            "use_norm": "batchnorm",
            "pab_channels": 64,
            "interpolation_mode": "nearest",
        },
        lambda k, d: k["decoder_channels"][-1],
        3,
        given=_blocks,
    ),
    "linknet": Arch(
        LinknetDecoder,
        {"prefinal_channels": 32, "use_norm": "batchnorm"},
        lambda k, d: k["prefinal_channels"],
        1,
        given=_blocks,
    ),
    "fpn": Arch(
        FPNDecoder,
        {
            "pyramid_channels": 256,
            "segmentation_channels": 128,
            "dropout": 0.2,
            "merge_policy": "add",
            "interpolation_mode": "nearest",
        },
        lambda k, d: int(d.out_channels),  # type: ignore[arg-type]
        1,
        4,
    ),
    "pspnet": Arch(
        PSPDecoder,
        {"use_norm": "batchnorm", "out_channels": 512, "dropout": 0.2},
        lambda k, d: k["out_channels"],
        3,
        8,
        depth=3,
        given=_alone,
    ),
    "deeplabv3": Arch(
        DeepLabV3Decoder,
        {**_ASPP, "aspp_separable": False},
        lambda k, d: k["out_channels"],
        1,
        16,
        given=lambda channels, depth: {"in_channels": channels[-1]},
        dilated=True,
    ),
    "deeplabv3plus": Arch(
        DeepLabV3PlusDecoder,
        {**_ASPP, "aspp_separable": True},
        lambda k, d: k["out_channels"],
        1,
        4,
        given=lambda channels, depth: {
            "encoder_channels": channels,
            "encoder_depth": depth,
            "output_stride": 16,
        },
        dilated=True,
    ),
    "pan": Arch(
        PANDecoder,
        {"decoder_channels": 32, "interpolation_mode": "bilinear"},
        lambda k, d: k["decoder_channels"],
        3,
        4,
        least=128,
    ),
    "upernet": Arch(
        UPerNetDecoder,
        {"decoder_channels": 256, "use_norm": "batchnorm"},
        lambda k, d: k["decoder_channels"],
        1,
        4,
    ),
    "segformer": Arch(
        SegformerDecoder,
        {"segmentation_channels": 256},
        lambda k, d: k["segmentation_channels"],
        1,
        4,
    ),
}


class SMP(SegmentationModel):
    """A backbone, a decoder of smp's, its head.

    Args:
        backbone: its maps are used.
        loss: of the pixels, see ``SegmentationModel``.
        num_classes: K.
        arch: one of ``ARCHS``.
        options: keywords of smp's decoder that are to be other than in smp's model.

    Raises:
        ValueError: an unknown arch or option, or a backbone that the arch cannot take.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        arch: str = "fpn",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(loss, num_classes)
        if arch not in ARCHS:
            raise ValueError(f"arch={arch} is not known: expected {' | '.join(ARCHS)}")
        self.arch = arch
        how = ARCHS[arch]
        self.normalize = backbone.normalizer()
        backbone.set_output("maps")
        self.strides = list(STRIDES[: how.depth])
        if how.dilated or arch == "pan":
            self._dilate(backbone, how.dilated)
        self.least = how.least * self.strides[-1] // 16
        first = STRIDES.index(4)
        self.sources = nearest_maps(backbone.strides, self.strides[first:])
        if self.strides[-1] == 16:  # of two maps of this stride the dilated one
            self.sources[-1] = len(backbone.strides) - 1
        self.finest = backbone.strides.index(2) if 2 in backbone.strides else None
        if self.finest is None and how.finest:
            raise ValueError(
                f"arch={arch} needs a map of stride 2, which {backbone.architecture} has not: "
                "choose another backbone, or model.arch=unet"
            )
        if max(self.sources) + 1 < len(backbone.strides):
            backbone.truncate(max(self.sources))
        self.backbone = backbone
        channels = [backbone.channels[i] for i in self.sources]
        finest = 0 if self.finest is None else backbone.channels[self.finest]
        keywords = _keywords(arch, options or {})
        if arch in ("unet", "unetplusplus") and backbone.architecture.startswith("vgg"):
            # smp's: two convolutions after the last pooling, where VGG has none.
            keywords["add_center_block" if arch == "unet" else "center"] = True
        try:
            self.decoder = how.decoder(
                **how.given([backbone.in_channels, finest, *channels], how.depth), **keywords
            )
        except (ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
            message = " ".join(str(error).split())
            raise ValueError(
                f"options={dict(options or {})}: arch={arch} says: {message}"
            ) from error
        self.segmentation_head = SegmentationHead(
            how.head(keywords, self.decoder), num_classes, how.kernel, upsampling=how.enlarge
        )
        if not how.dilated:  # DeepLab's start as torch has them, in smp too
            initialize_decoder(self.decoder)
            initialize_head(self.segmentation_head)
        _let_norms_see_one_value(self.decoder)

    def _dilate(self, backbone: Backbone, must: bool) -> None:
        """Have the last map at stride 16, where it can be."""
        if backbone.strides[-1] <= 16 or backbone.dilate(16):
            self.strides[-1] = 16
        elif must:
            raise ValueError(
                f"arch={self.arch} takes the last map at stride 16, and the last stage of "
                f"{backbone.architecture} cannot be dilated, a ResNet's can: choose such a "
                "backbone, or model.arch=fpn"
            )

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` of any size -> logits float32 ``(B, K, H, W)``."""
        height, width = images.shape[-2:]
        x = self.normalize(images)
        x = F.pad(x, (0, max(0, self.least - width), 0, max(0, self.least - height)))
        x = pad_to_multiple(x, MULTIPLE)
        maps = self.backbone(x)
        sizes = [(x.shape[-2] // s, x.shape[-1] // s) for s in self.strides]
        finest = x.new_zeros(x.shape[0], 0, *sizes[0]) if self.finest is None else maps[self.finest]
        chosen = [finest, *(maps[i] for i in self.sources)]
        features = [x, *(resized(m, size) for m, size in zip(chosen, sizes, strict=True))]
        out = self.segmentation_head(self.decoder(features))  # (B, K, H, W), padded
        return out[..., :height, :width].float()


class UNetEncoder(SMP):
    """U-Net's expanding path on any backbone.

    Args:
        backbone: its maps are used.
        loss: of the pixels, see ``SegmentationModel``.
        num_classes: K.
        widths: channels of the five levels, coarsest first.
        attention: None, or ``scse``: each level weighs its channels and places (Roy et al. 2018,
            arXiv 1808.08127).

    Raises:
        ValueError: not five widths, or another attention.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        widths: Sequence[int] = UNET_WIDTHS,
        attention: str | None = None,
    ) -> None:
        if len(widths) != len(STRIDES) or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: give {len(STRIDES)} numbers of channels")
        if attention not in (None, "scse"):
            raise ValueError(f"attention={attention}: expected scse or null")
        if attention and min(widths) < SQUEEZE:
            raise ValueError(
                f"attention=scse divides channels by {SQUEEZE}: widths={list(widths)} must be at "
                f"least {SQUEEZE}"
            )
        options = {"decoder_channels": tuple(widths), "attention_type": attention}
        super().__init__(backbone, loss, num_classes, "unet", options)


class _Norm(nn.BatchNorm2d):
    """Batch norm by the running statistics where a batch holds one value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _let_norms_see_one_value(module: nn.Module) -> None:
    """Put a ``_Norm`` of the same weights in the place of each batch norm."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            norm = _Norm(child.num_features, child.eps, child.momentum)
            if not child.weight.is_meta:
                norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            _let_norms_see_one_value(child)


def _keywords(arch: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the decoder of ``arch`` is built with: smp's defaults, the user's options over them."""
    known = ARCHS[arch].defaults
    for name in options:
        if name not in known:
            raise ValueError(f"options.{name}: the decoder of {arch} takes {', '.join(known)}")
    return {**known, **options}
