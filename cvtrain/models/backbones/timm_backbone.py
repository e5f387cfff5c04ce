"""Any model of timm as a backbone.

timm (Wightman 2019, https://github.com/huggingface/pytorch-image-models, Apache-2.0) holds over a
thousand architectures; each gives its maps by ``forward_intermediates`` (always ``(B, C, H, W)``,
Swin's too) and its pooled vector by ``forward_head(forward_features(x), pre_logits=True)``, which
is what its own classifier sees. The names of the parameters are timm's own below ``body.``, so that
a file of timm's (or torchvision's ResNet) fits, and a classifier's backbone fits a detector's.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._manipulate import group_with_matcher
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vgg import VGG, ConvMlp
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.errors import UsageError
from cvtrain.models.backbones.base import Backbone, Output, join_norms, stages_by_children
from cvtrain.models.backbones.fetch import exists, fetch
from cvtrain.models.backbones.options import refused_option
from cvtrain.models.backbones.translate import translations
from cvtrain.models.backbones.weights import load_weights, say_adapted

RESNET_SIDE, FC_SIDE = 14, 7
"""Of a region's map before a ResNet's last stage (of stride 2), and before VGG's fc6."""
SMALL = 32
"""Pixels; images with a side below it are tried out before training begins."""


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Maps: the last map of each stride. A plain ViT has one, at the stride of its patches, whose
    tokens went through the final norm. Where an image is no whole number of patches (ViT, Swin) it
    is padded to the right and below.

    ``pooled`` is what timm's own classifier sees, with whatever layers the network has between its
    last map and that: VGG's two connected layers (fc6, fc7), MobileNetV3's last convolution.

    Args:
        name: the model's name in timm, with or without the tag of its weights.
        in_channels: channels of the images; pretrained filters for RGB are adapted.
        pretrained: fetch timm's weights, and say from where, how large and where to.
        weights: a file to start from instead.
        image_size: pixels, an int or (H, W); read by models that are built for one size alone.
        options: further keywords of ``timm.create_model``; none that fetches or reads files.

    Raises:
        UsageError: timm has no such model or no weights for it, both ``pretrained`` and
            ``weights`` are given, an option is not taken, or the images are too small.
        RunError: the weights could not be fetched.
        CheckpointError: ``weights`` cannot be taken.
    """

    body: Any  # a timm model: each architecture a class of its own
    _cut: str = ""  # the part that ``split`` left to ``later``
    _ended: bool = False  # whether layers after the last map are not to be run

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        pretrained: bool = False,
        weights: str | Path | None = None,
        image_size: int | Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise UsageError(
                "backbone.pretrained=true and backbone.weights=FILE exclude each other: give one"
            )
        if not exists(name):
            raise UsageError(f"backbone.name={name} is no model of timm{_nearest(name)}")
        refused = refused_option(options or {})
        if refused:
            raise UsageError(refused)
        self.name = name
        self.architecture = name.partition(".")[0]
        self.in_channels = in_channels
        body, self.keywords = _create(name, in_channels, image_size, dict(options or {}))
        self._check_small(image_size)
        if pretrained:
            create = functools.partial(_build, name, in_channels, self.keywords)
            body = fetch(name, body, create)
            say_adapted(f"the weights of {name}", 3, in_channels)
        config = body.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        last = {f["reduction"]: (i, f["num_chs"]) for i, f in enumerate(_feature_info(body))}
        self.strides = sorted(last)
        self.indices = [last[s][0] for s in self.strides]
        self.channels = [last[s][1] for s in self.strides]
        self.num_features = int(getattr(body, "head_hidden_size", body.num_features))
        self.body = body
        self.classifiers = [f"{name}." for name in _listed(config.get("classifier"))]
        if weights is not None:
            load_weights(self, weights)

    def input_layers(self) -> list[str]:
        names = _listed(self.body.pretrained_cfg.get("first_conv"))
        return [f"body.{name}.weight" for name in names] or super().input_layers()

    def translations(self, state: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
        return translations(self.body, state)

    def _check_small(self, image_size: int | Sequence[int] | None) -> None:
        """Raise UsageError where images below 32 pixels leave no map: tried out, without data."""
        if image_size is None:
            return
        height, width = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
        if min(height, width) >= SMALL:
            return
        with torch.device("meta"):
            trial = _build(self.name, self.in_channels, self.keywords).eval()
            try:
                trial.forward_features(
                    _padded(torch.zeros(1, self.in_channels, height, width), _patch(trial))
                )
            except (RuntimeError, AssertionError) as error:
                raise UsageError(
                    f"images of {height} x {width} are too small for {self.name}: give it "
                    f"{SMALL} pixels a side or more (data.image_size={SMALL})"
                ) from error

    def set_output(self, output: Output) -> None:
        if output != "pooled":
            head = output == "maps" or self.fc_layers() is None
            self.body.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=head)

    def fc_layers(self) -> Any:
        """VGG's fc6 and fc7."""
        layers = getattr(self.body, "pre_logits", None)
        return layers if isinstance(layers, ConvMlp) else None

    def truncate(self, index: int) -> None:
        for values in (self.strides, self.channels, self.indices):
            del values[index + 1 :]
        self._ended = True
        self.set_output("maps")

    def dilate(self, stride: int) -> bool:
        """Of ResNets whose last stage has one stride, in convolutions: as timm's output_stride."""
        if not isinstance(self.body, ResNet) or self.strides[-2:] != [stride, 2 * stride]:
            return False
        modules = list(self.body.get_submodule("layer4").modules())
        strided = [m for m in modules if getattr(m, "stride", 1) in (2, (2, 2))]
        convs = [m for m in modules if isinstance(m, nn.Conv2d)]
        if any(not isinstance(m, (nn.Conv2d, BasicBlock, Bottleneck)) for m in strided):
            return False  # pooling beside the convolutions
        for conv in convs:
            if conv.stride == (2, 2):
                conv.stride = (1, 1)
            elif conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (2, 2)
        self.strides[-1] = stride
        return True

    def split(self, stride: int) -> tuple[int, int]:
        """Of a ResNet the last stage is cut off (He et al. 2015, arXiv 1512.03385, appendix A), of
        VGG the connected layers fc6 and fc7, which its last pooling precedes.
        """
        resnet, vgg = isinstance(self.body, ResNet), isinstance(self.body, VGG)
        if not (resnet or vgg) or self.strides[-2:] != [stride, 2 * stride]:
            return super().split(stride)
        channels, side = (
            (self.channels[-1], RESNET_SIDE) if resnet else (self.num_features, FC_SIDE)
        )
        for values in (self.strides, self.channels, self.indices):
            values.pop()
        self._cut, self._ended = "layer4" if resnet else "pre_logits", True
        return channels, side

    def forward_tail(self, x: Tensor) -> Tensor:
        return self.body.get_submodule(self._cut)(x) if self._cut else super().forward_tail(x)

    def stages(self) -> list[list[str]]:
        """The groups timm has for the architecture: the stem, then stage by stage (ViT: blocks)."""
        state = self.body.state_dict()
        found: list[list[str]] = []
        if hasattr(self.body, "group_matcher"):
            try:
                matcher = self.body.group_matcher(coarse=True)
            except AssertionError:  # timm's way to say that there are fine groups alone
                matcher = self.body.group_matcher(coarse=False)
            groups = group_with_matcher(state.items(), matcher)
            found = join_norms([groups[key] for key in sorted(groups)], state)
        if len(found) < 2:  # no groups, or patterns that none of its names match
            found = stages_by_children(self.body)
        return [[f"body.{name}" for name in group] for group in found]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = _padded(x, _patch(self.body))
        return self.body.forward_intermediates(
            x,
            indices=self.indices,
            norm=True,
            stop_early=self._ended,
            intermediates_only=True,
        )

    def pooled(self, x: Tensor) -> Tensor:
        x = _padded(x, _patch(self.body))
        features = self.body.forward_features(x)  # (B, C, H, W), (B, H, W, C) or (B, tokens, C)
        return self.body.forward_head(features, pre_logits=True)  # (B, num_features)

    def last_and_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = _padded(x, _patch(self.body))
        features, maps = self.body.forward_intermediates(x, indices=self.indices[-1:], norm=True)
        return maps[-1], self.body.forward_head(features, pre_logits=True)


def _feature_info(body: Any) -> list[dict[str, Any]]:
    info: Any = body.feature_info
    return list(getattr(info, "info", info))


def _listed(names: object) -> list[str]:
    """A name, several, or None -> a list of names."""
    if isinstance(names, (list, tuple)):
        return [str(name) for name in names]
    return [names] if isinstance(names, str) else []


def _nearest(name: str) -> str:
    """``; did you mean resnet18, resnet26 or resnet10t?``"""
    architecture, _, tag = name.partition(".")
    if tag and timm.is_model(architecture):
        tags = timm.list_pretrained(f"{architecture}.*")
        return (
            f": it has {', '.join(tags[:5])}"
            if tags
            else f": there are no weights of {architecture}"
        )
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    if not close:
        return "; see cvtrain list backbones"
    return f"; did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}?"


def _patch(body: Any) -> tuple[int, int]:
    """(height, width) in pixels that an image is padded to a multiple of; (1, 1): any will do."""
    embed = getattr(body, "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    # A strict one takes images of one size alone, whatever its patches.
    if size is None or getattr(embed, "strict_img_size", True):
        return 1, 1
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _padded(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Zeros (the mean color) to the right and below, up to whole patches."""
    below, right = -x.shape[-2] % patch[0], -x.shape[-1] % patch[1]
    return F.pad(x, (0, right, 0, below)) if below or right else x


def _create(
    name: str, in_channels: int, image_size: int | Sequence[int] | None, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A timm model without classifier that takes images of ``image_size``; its keywords."""
    config = timm.get_pretrained_cfg(name)
    tries: list[dict[str, Any]] = [options]
    # Transformers are built for the size of their pretraining unless told otherwise; convolutional
    # networks know none of these keywords.
    if config is not None and config.fixed_input_size and "img_size" not in options:
        tries = [{"dynamic_img_size": True}, {"strict_img_size": False}]
        if image_size is not None:
            size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
            tries.append({"img_size": size})
        tries = [{**extra, **options} for extra in [*tries, {}]]
    for keywords in tries[:-1]:
        try:
            return _build(name, in_channels, keywords), keywords
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return _build(name, in_channels, tries[-1]), tries[-1]


def _build(name: str, in_channels: int, keywords: dict[str, Any], **more: Any) -> Any:
    return timm.create_model(name, num_classes=0, in_chans=in_channels, **keywords, **more)
