"""Every backbone is what it says it is: maps, channels, strides, pooled features, gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cvtrain.errors import UsageError
from cvtrain.instantiate import instantiate
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.backbones.yolov1 import YOLOv1Backbone

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = sorted(p.stem for p in (CONF / "backbone").glob("*.yaml"))
# Their maps: test_backbone_papers.py, test_sliding_window.py.
UNPADDED = {"alexnet", "overfeat_fast", "overfeat_accurate", "window_net"}
FAST = ["darknet_tiny", "resnet18", "yolov1_20"]
named = pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)


def build(name: str, compose_config: Any, size: int = 64, *overrides: str) -> Any:
    torch.manual_seed(0)
    chosen = ["task=classification", f"backbone={name}", f"data.image_size={size}", *overrides]
    config = compose_config(*chosen)
    return instantiate(config["backbone"], where="backbone")


@pytest.mark.parametrize("name", NAMES)
def test_any_image_size_gives_maps_as_declared(name: str, compose_config: Any) -> None:
    with torch.device("meta"):
        backbone = build(name, compose_config)
        backbone.set_output("maps")
        backbone.eval()
    assert isinstance(backbone, Backbone)
    assert backbone.strides == sorted(set(backbone.strides))
    for size in [(64, 64), (224, 320), (97, 131), (33, 64), (33, 33)]:
        if min(size) < backbone.minimum_size:
            assert name.startswith("overfeat")
            with pytest.raises(ValueError, match="are too small"), torch.device("meta"):
                backbone(torch.zeros(2, 3, *size))
            continue
        with torch.device("meta"):
            maps = backbone(torch.zeros(2, 3, *size))
        assert [(m.shape[0], m.shape[1]) for m in maps] == [(2, c) for c in backbone.channels]
        for found, stride in zip(maps, backbone.strides, strict=True):
            for side, pixels in zip(found.shape[2:], size, strict=True):
                low = 1 if name in UNPADDED else pixels // stride
                assert low <= side <= math.ceil(pixels / stride)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 4])
def test_images_have_any_number_of_channels(name: str, channels: int, compose_config: Any) -> None:
    with torch.device("meta"):
        backbone = build(name, compose_config, 96, f"data.channels={channels}")
        assert backbone.in_channels == channels
        images = torch.zeros(2, channels, 97, 99, dtype=torch.uint8)
        features = backbone.eval().pooled(backbone.normalizer()(images))
        state = backbone.state_dict()
    assert features.shape == (2, backbone.num_features)
    assert [state[layer].shape[1] for layer in backbone.input_layers()] == [channels]


@named
def test_every_parameter_serves_the_maps(name: str, compose_config: Any) -> None:
    backbone = build(name, compose_config)
    backbone.set_output("maps")
    # Drop path and the like may leave a block out in training.
    backbone.eval()(torch.randn(2, 3, 64, 64))[-1].square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@named
def test_every_parameter_serves_the_pooled_features(name: str, compose_config: Any) -> None:
    backbone = build(name, compose_config)
    backbone.set_output("pooled")
    features = backbone.eval().pooled(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, backbone.num_features)
    features.square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_take_any_image_size(name: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name)
        assert backbone.pooled(torch.zeros(1, 3, 128, 192)).shape == (1, backbone.num_features)


def test_models_of_one_size_are_built_for_the_images() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("mixer_s16_224", image_size=[64, 64])
        assert backbone.pooled(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.num_features)


@pytest.mark.parametrize("name", ["vgg16", "convnext_tiny"])
def test_images_too_small_for_a_network_are_refused_before_work(name: str) -> None:
    wanted = rf"16 x 40 are too small for {name}: .*image_size=32"
    with pytest.raises(UsageError, match=wanted), torch.device("meta"):
        TimmBackbone(name, image_size=[16, 40])


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_small_images_serve_where_they_leave_a_map(name: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name, image_size=16)
        assert backbone.eval()(torch.zeros(1, 3, 16, 16))[-1].shape[2:] == (1, 1)


def test_padding_leaves_whole_patches_as_they_are() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("vit_tiny_patch16_224").eval()
    x = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        padded = torch.nn.functional.pad(x, (0, 0, 0, 8))
        torch.testing.assert_close(backbone.pooled(x), backbone.pooled(padded))
        whole = backbone.body.forward_head(backbone.body.forward_features(padded), pre_logits=True)
        torch.testing.assert_close(backbone.pooled(padded), whole)


def test_options_reach_timm() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("resnet18", options={"output_stride": 16})
        backbone.set_output("maps")
    assert backbone.strides[-1] == 16
    with pytest.raises(TypeError, match="color"):
        TimmBackbone("resnet18", options={"color": 1})


def test_images_are_normalized_as_the_weights_expect() -> None:
    with torch.device("meta"):
        assert tuple(TimmBackbone("vit_small_patch16_224").mean) == (0.5, 0.5, 0.5)
    assert TimmBackbone("resnet18").normalizer().mean.flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )


@pytest.mark.parametrize("layers", [20, 24])
def test_yolov1_layers(layers: int) -> None:
    with torch.device("meta"):
        backbone = YOLOv1Backbone(layers=layers)
        maps = backbone(torch.zeros(1, 3, 448, 448))
    sides = [224, 112, 56, 28, 14, 7][: len(maps)]
    assert [m.shape[-1] for m in maps] == sides
    assert backbone.channels == [64, 192, 512, 1024, 1024, 1024][: len(maps)]
    count = {20: 22_403_136, 24: 60_155_968}[layers]
    assert sum(p.numel() for p in backbone.parameters()) == count
    with torch.device("meta"):
        normed = YOLOv1Backbone(layers=layers, batch_norm=True)
    assert all(c.conv.bias is None for c in normed.convs.values())


def test_wrong_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="layers=21"):
        YOLOv1Backbone(layers=21)
    with pytest.raises(ValueError, match=r"widths=\[8, 16\] blocks=\[1\]"):
        DarknetTiny(widths=[8, 16], blocks=[1])
    with pytest.raises(ValueError, match="blocks >= 1"):
        DarknetTiny(widths=[8], blocks=[0])
    with pytest.raises(UsageError, match="no model of timm"):
        TimmBackbone("resnet_18")


# Stages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["maps", "pooled"])
def test_every_entry_is_in_one_stage(name: str, output: Any, compose_config: Any) -> None:
    with torch.device("meta"):
        backbone = build(name, compose_config)
    backbone.set_output(output)
    stages = backbone.stages()
    assert len(stages) >= max(2, len(backbone.strides))
    assert all(stages)
    assert sorted(n for stage in stages for n in stage) == sorted(backbone.state_dict())
    shapes = {n: t.ndim for n, t in backbone.state_dict().items()}
    assert all(any(shapes[n] > 1 for n in stage) for stage in stages), "each has a kernel"


def test_stages_go_from_the_image_to_the_last_map() -> None:
    with torch.device("meta"):
        resnet = TimmBackbone("resnet18").stages()
        vit = TimmBackbone("vit_small_patch16_224").stages()
        swin = TimmBackbone("swin_tiny_patch4_window7_224").stages()
    tops = [{n.split(".")[1] for n in stage} for stage in resnet]
    assert tops == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert len(vit) == 1 + 12
    assert {"body.cls_token", "body.pos_embed"} < set(vit[0])
    assert vit[-1][-2:] == ["body.norm.weight", "body.norm.bias"], "a norm is no stage of its own"
    assert swin[-1][-2:] == ["body.norm.weight", "body.norm.bias"]


class Plain(Backbone):
    """Children in order, as most people write them; a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)])
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def test_stages_of_a_backbone_of_ones_own() -> None:
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert Plain().stages() == [
        ["token", "conv1.weight", "conv1.bias", *(f"bn1.{n}" for n in bn)],
        ["layers.0.weight", "layers.0.bias"],
        ["layers.1.weight", "layers.1.bias", "norm.weight", "norm.bias"],
    ]
    with pytest.raises(AttributeError, match="another name"):
        Plain().stages = nn.ModuleList()  # type: ignore[method-assign, assignment]
