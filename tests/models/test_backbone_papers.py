"""The networks written here against what their papers print."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvtrain.errors import UsageError
from cvtrain.instantiate import instantiate
from cvtrain.models.backbones.overfeat import OverFeatBackbone


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sides(backbone: nn.Module, size: int) -> list[int]:
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
        instantiate(node)
