"""The networks written here against what their papers print."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvtrain.errors import UsageError
from cvtrain.instantiate import instantiate
from cvtrain.models.backbones.alexnet import AlexNet
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.darknet19 import Darknet19
from cvtrain.models.backbones.overfeat import OverFeatBackbone
from cvtrain.models.backbones.timm_backbone import TimmBackbone


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sides(backbone: Backbone, size: int) -> list[int]:
    return [m.shape[-1] for m in backbone(torch.zeros(1, 3, size, size))]


# Sermanet et al. 2013, tables 1 and 3: (side of the image, maps, final pool, input of the first
# connected layer, its units, million parameters in table 4)
OVERFEAT = {
    "fast": (231, [56, 24, 12], 2, 6, 3072, 145),
    "accurate": (221, [108, 30, 15], 3, 5, 4096, 144),
}


@pytest.mark.parametrize("version", OVERFEAT)
def test_overfeat(version: str) -> None:
    size, want, pool, connected, units, millions = OVERFEAT[version]
    with torch.device("meta"):
        backbone = OverFeatBackbone(version)  # type: ignore[arg-type]
        assert sides(backbone, size) == want
    assert (backbone.trained_at, backbone.final_pool) == (size, pool)
    assert want[-1] // pool == connected
    whole = parameters(backbone) + (1024 * connected**2 + 1) * units
    whole += (units + 1) * 4096 + (4096 + 1) * 1000
    assert millions <= whole / 1e6 < millions + 1


def test_overfeats_maps_at_the_papers_scales() -> None:
    # Table 5, before pooling: the layer that is pooled at offsets
    scales = {
        (245, 245): (17, 17),
        (281, 317): (20, 23),
        (317, 389): (23, 29),
        (461, 569): (35, 44),
    }
    with torch.device("meta"):
        backbone = OverFeatBackbone("accurate")
        for size, want in scales.items():
            assert backbone(torch.zeros(1, 3, *size))[-1].shape[2:] == want


@pytest.mark.parametrize("version", OVERFEAT)
def test_too_small_an_image_is_one_line(version: str) -> None:
    with torch.device("meta"):
        backbone = OverFeatBackbone(version)  # type: ignore[arg-type]
        least = backbone.minimum_size
        assert sides(backbone, least)[-1] == 1
        with pytest.raises(ValueError, match=f"images of {least - 1} x 300 are too small"):
            backbone(torch.zeros(1, 3, least - 1, 300))
    node = {
        "_target_": "cvtrain.models.backbones.overfeat.OverFeatBackbone",
        "version": version,
        "image_size": 32,
    }
    with pytest.raises(UsageError, match=rf"images of 32 x 32 .*data.image_size={least}"):
        instantiate(node, where="backbone")


def multiply_adds(backbone: Backbone, size: int) -> int:
    """Of the convolutions, on one image of ``size`` x ``size``."""
    count = 0

    def add(conv: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal count
        count += conv.weight.numel() * out.shape[2] * out.shape[3]

    hooks = [m.register_forward_hook(add) for m in backbone.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[arg-type]
    backbone.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return count


def test_alexnet() -> None:
    # Krizhevsky et al. 2012, figure 2: 55 x 55 x 96, 27 x 27 x 256, 13 x 13 x 384 / 384 / 256,
    # and "60 million parameters" (section 1); 60,965,224 with 1000 classes
    with torch.device("meta"):
        backbone = AlexNet()
        assert sides(backbone, 224) == [55, 27, 13]
        assert [c.conv.out_channels for c in backbone.convs.values()] == [96, 256, 384, 384, 256]  # type: ignore[union-attr]
        assert [c.conv.groups for c in backbone.convs.values()] == [1, 2, 1, 2, 2]  # type: ignore[union-attr]
        assert backbone.pooled(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)
        assert parameters(backbone) + (4096 + 1) * 1000 == 60_965_224
        backbone.set_output("maps")
        assert parameters(backbone) == 2_334_080


def test_alexnets_normalization_is_the_papers() -> None:
    # Section 3.3: b = a / (k + alpha * sum of a^2 over n = 5 neighboring channels) ^ beta
    a = torch.rand(1, 9, 1, 1) * 50
    squares = [float(a[0, max(0, i - 2) : i + 3].square().sum()) for i in range(9)]
    want = [float(a[0, i]) / (2 + 1e-4 * squares[i]) ** 0.75 for i in range(9)]
    assert AlexNet().norm(a).flatten().tolist() == pytest.approx(want, rel=1e-5)


def test_alexnets_connected_layers_see_6_by_6_at_224() -> None:
    torch.manual_seed(0)
    backbone = AlexNet().eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        last = nn.functional.max_pool2d(backbone(x)[-1], 3, 2)
        fc6, fc7 = (backbone.connected[n].conv for n in ("fc6", "fc7"))  # type: ignore[union-attr]
        hidden = torch.relu(last.flatten(1) @ fc6.weight.flatten(1).T + fc6.bias)
        want = torch.relu(hidden @ fc7.weight.flatten(1).T + fc7.bias)
        torch.testing.assert_close(backbone.pooled(x), want, rtol=1e-4, atol=1e-4)


def test_darknet_19() -> None:
    # YOLO9000, table 6, and section 3: "Darknet-19 only requires 5.58 billion operations"
    with torch.device("meta"):
        backbone = Darknet19()
        assert sides(backbone, 224) == [224, 112, 56, 28, 14, 7]
        assert backbone.channels == [32, 64, 128, 256, 512, 1024]
        assert len(backbone.convs) == 18
        operations = 2 * (multiply_adds(backbone, 224) + 7 * 7 * 1024 * 1000)
    assert operations / 1e9 == pytest.approx(5.58, abs=0.01)


def test_darknet_53() -> None:
    # YOLOv3, table 1 (53 layers, the last connected) and table 2: 18.7 billion operations
    with torch.device("meta"):
        backbone = TimmBackbone("darknet53")
        assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == 52
        assert backbone.channels[1:] == [64, 128, 256, 512, 1024]
        operations = 2 * (multiply_adds(backbone, 256) + 1024 * 1000)
    assert operations / 1e9 == pytest.approx(18.7, abs=0.2)


def test_vgg_16() -> None:
    # Simonyan & Zisserman 2014, table 2: 138 million parameters
    with torch.device("meta"):
        backbone = TimmBackbone("vgg16")
        whole = parameters(backbone) + (4096 + 1) * 1000
        assert round(whole / 1e6) == 138
        assert backbone.pooled(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)
        assert sides(backbone, 224) == [224, 112, 56, 28, 14, 7]


def test_wrong_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="version=slow: the paper has fast and accurate"):
        OverFeatBackbone("slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm=group: there is lrn, batch or none"):
        AlexNet(norm="group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images of 30 x 64 are too small"), torch.device("meta"):
        AlexNet(image_size=[30, 64])
