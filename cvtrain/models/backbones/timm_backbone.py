"""Any model of timm as a backbone.

timm (Wightman 2019, https://github.com/huggingface/pytorch-image-models, Apache-2.0) holds over a
thousand architectures; each gives its maps by ``forward_intermediates`` (always ``(B, C, H, W)``,
Swin's too) and its pooled vector by ``forward_head(forward_features(x), pre_logits=True)``, which
is what its own classifier sees. The names of the parameters are timm's own below ``body.``, so that
a file of timm's (or torchvision's ResNet) fits, and a classifier's backbone fits a detector's.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models._manipulate import group_with_matcher
from torch import Tensor

from cvtrain.errors import RunError, UsageError
from cvtrain.models.backbones.base import Backbone, Output, join_norms, stages_by_children
from cvtrain.models.backbones.weights import load_weights

log = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Maps: the last map of each stride. A plain ViT has one, at the stride of its patches, whose
    tokens went through the final norm.

    Args:
        name: the model's name in timm, with or without the tag of its weights.
        in_channels: channels of the images; pretrained filters for RGB are adapted.
        pretrained: fetch timm's weights, and say from where, how large and where to.
        weights: a file to start from instead.
        image_size: pixels, an int or (H, W); read by models that are built for one size alone.
        options: further keywords of ``timm.create_model``.

    Raises:
        UsageError: timm has no such model or no weights for it, or both ``pretrained`` and
            ``weights`` are given.
        RunError: the weights could not be fetched.
        CheckpointError: ``weights`` cannot be taken.
    """

    body: Any  # a timm model: each architecture a class of its own

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
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"backbone.name={name} is no model of timm{hint}")
        self.name = name
        self.in_channels = in_channels
        body = _create(name, in_channels, image_size, dict(options or {}), pretrained)
        config = body.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        last = {f["reduction"]: (i, f["num_chs"]) for i, f in enumerate(_feature_info(body))}
        self.strides = sorted(last)
        self.indices = [last[s][0] for s in self.strides]
        self.channels = [last[s][1] for s in self.strides]
        self.num_features = int(getattr(body, "head_hidden_size", body.num_features))
        self.body = body
        if weights is not None:
            load_weights(self, weights)

    def use(self, output: Output) -> None:
        if output == "maps":
            self.body.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)

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
        return self.body.forward_intermediates(
            x, indices=self.indices, norm=True, intermediates_only=True
        )

    def pooled(self, x: Tensor) -> Tensor:
        features = self.body.forward_features(x)  # (B, C, H, W), (B, H, W, C) or (B, tokens, C)
        return self.body.forward_head(features, pre_logits=True)  # (B, num_features)


def _feature_info(body: Any) -> list[dict[str, Any]]:
    info: Any = body.feature_info
    return list(getattr(info, "info", info))


def _create(
    name: str,
    in_channels: int,
    image_size: int | Sequence[int] | None,
    options: dict[str, Any],
    pretrained: bool,
) -> Any:
    """A timm model without classifier that takes images of ``image_size``."""
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
            return _build(name, in_channels, keywords, pretrained)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return _build(name, in_channels, tries[-1], pretrained)


def _build(name: str, in_channels: int, keywords: dict[str, Any], pretrained: bool) -> Any:
    # Without weights first: a keyword it does not take fails before anything is fetched.
    body: Any = timm.create_model(name, num_classes=0, in_chans=in_channels, **keywords)
    if not pretrained:
        return body
    config = body.pretrained_cfg
    source = config.get("hf_hub_id") or config.get("url")
    if not source:
        raise UsageError(f"timm has no weights for {name}: leave backbone.pretrained=false")
    megabytes = sum(p.numel() for p in body.parameters()) * 4 / 1e6
    log.warning(
        "fetching pretrained weights of %s from %s, about %.0f MB, into %s (unless they are there)",
        name,
        f"huggingface.co/{source}" if config.get("hf_hub_id") else source,
        megabytes,
        _cache_folder(bool(config.get("hf_hub_id"))),
    )
    try:
        return timm.create_model(
            name, num_classes=0, in_chans=in_channels, pretrained=True, **keywords
        )
    except Exception as error:  # whatever the hub's client and the network come up with
        raise RunError(
            f"could not fetch the weights of {name} ({type(error).__name__}); without a network, "
            "copy them here and say backbone.weights=FILE backbone.pretrained=false"
        ) from error


def _cache_folder(hub: bool) -> str:
    if hub:
        from huggingface_hub.constants import HF_HUB_CACHE

        return str(HF_HUB_CACHE)
    import torch

    return str(Path(torch.hub.get_dir()) / "checkpoints")
