"""R-FCN and Light-Head R-CNN: numbers of the papers, votes against a slow reference, dilation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.base import total_loss
from cvtrain.models.detection.light_head_rcnn import LargeSeparable, LightHeadRCNN
from cvtrain.models.detection.rfcn import RFCN

PAIR = pytest.mark.parametrize("system", [RFCN, LightHeadRCNN])


def boxes_of(count: int, side: int) -> list[Tensor]:
    """Boxes of two images, one of them reaching out of the map's last row and column."""
    torch.manual_seed(5)
    corner = torch.rand(2 * count, 2) * side * 0.6
    boxes = torch.cat([corner, corner + torch.rand(2 * count, 2) * side * 0.4 + 9], dim=1)
    boxes[0, 2:] = side
    return list(boxes.split(count))


def pooled_slowly(x: Tensor, boxes: list[Tensor], k: int, stride: int) -> Tensor:
    """Equation 1 of R-FCN as torchvision rounds it: means of cells, cell (i, j) of map (i, j)."""
    found = []
    height, width = x.shape[-2:]
    for image, of_image in zip(x.double(), boxes, strict=True):
        for box in of_image.tolist():
            left, top, right, bottom = (math.floor(v / stride + 0.5) for v in box)
            w, h = max(right - left, 0.1), max(bottom - top, 0.1)
            out = torch.zeros(x.shape[1] // k**2, k, k)
            for i in range(k):
                for j in range(k):
                    y1, y2 = (math.floor(i * h / k) + top, math.ceil((i + 1) * h / k) + top)
                    x1, x2 = (math.floor(j * w / k) + left, math.ceil((j + 1) * w / k) + left)
                    y1, y2 = (min(max(v, 0), height) for v in (y1, y2))
                    x1, x2 = (min(max(v, 0), width) for v in (x1, x2))
                    if y2 > y1 and x2 > x1:
                        for c in range(len(out)):
                            part = image[(c * k + i) * k + j, y1:y2, x1:x2]
                            out[c, i, j] = part.sum() / ((y2 - y1) * (x2 - x1))
            found.append(out)
    return torch.stack(found)


@pytest.mark.parametrize("k", [3, 7])
def test_a_regions_score_is_the_vote_of_its_cells(k: int) -> None:
    torch.manual_seed(0)
    model = RFCN(DarknetTiny(), 4, channels=8, positions=k).eval()
    maps = [
        torch.zeros(2, 1, 9, 9),
        torch.randn(2, 5 * k * k, 9, 9),
        torch.randn(2, 4 * k * k, 9, 9),
    ]
    boxes = boxes_of(6, 9 * 16)
    logits, codes = model.classify(maps, boxes)
    assert logits.shape == (12, 5)
    assert codes.shape == (12, 1, 4)
    for found, x in ((logits, maps[1]), (codes[:, 0], maps[2])):
        slow = pooled_slowly(x, boxes, k, 16).mean(dim=(2, 3))
        torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-4)


def test_r_fcn_has_the_papers_maps_and_parameters() -> None:
    """VOC: 7 x 7 x 21 score maps and 7 x 7 x 4 box maps after 1024 channels."""
    with torch.device("meta"):
        model = RFCN(TimmBackbone("resnet101"), 20)
        assert model.dilated
        outputs = model.eval().maps(torch.zeros(1, 3, 608, 992, dtype=torch.uint8))
    assert [tuple(m.shape[1:]) for m in outputs] == [
        (1024, 38, 62),
        (1029, 38, 62),
        (196, 38, 62),
    ]
    heads = [model.reduce, model.score_maps, model.box_maps]
    count = [sum(p.numel() for p in m.parameters()) for m in heads]
    assert count == [2048 * 1024 + 1024, 1024 * 1029 + 1029, 1024 * 196 + 196]
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert backbone == 44_549_160 - (2048 * 1000 + 1000)  # ResNet-101 without its classifier


def test_light_head_has_the_papers_thin_map_and_one_layer() -> None:
    with torch.device("meta"):
        model = LightHeadRCNN(TimmBackbone("resnet101"), 80, middle=256)
        outputs = model.eval().maps(torch.zeros(1, 3, 800, 1216, dtype=torch.uint8))
    assert [tuple(m.shape[1:]) for m in outputs] == [(1024, 50, 76), (490, 50, 76)]
    thin = sum(p.numel() for p in model.thin.parameters())
    assert thin == 2 * (15 * 2048 * 256 + 256 + 15 * 256 * 490 + 490)
    [connected] = model.head.connected
    assert connected.weight.shape == (2048, 490)
    assert model.head.logits.weight.shape == (81, 2048)
    assert model.head.codes.weight.shape == (4, 2048)


def test_the_large_separable_convolution_is_a_sum_of_two_orders() -> None:
    torch.manual_seed(0)
    layer = LargeSeparable(3, 2, 4, kernel=5).double()
    x = torch.randn(1, 3, 9, 11).double()
    out = layer(x)
    kernels = []
    for branch in (layer.tall_wide, layer.wide_tall):
        first, second = (p for p in branch.parameters() if p.ndim == 4)
        # One after the other they are a full 5 x 5 kernel, (out, in, 5, 5).
        if first.shape[2] == 5:
            kernels.append(torch.einsum("miy,omx->oiyx", first[..., 0], second[:, :, 0]))
        else:
            kernels.append(torch.einsum("mix,omy->oiyx", first[:, :, 0], second[..., 0]))
    whole = torch.nn.functional.conv2d(x, kernels[0] + kernels[1], padding=2)
    torch.testing.assert_close(out, whole)  # biases start at 0
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        LargeSeparable(3, 2, 4, kernel=4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_a_dilated_resnet_is_that_of_timm(name: str) -> None:
    torch.manual_seed(0)
    ours = TimmBackbone(name).eval()
    theirs = timm.create_model(name, features_only=True, output_stride=16, out_indices=[3, 4])
    theirs.eval().load_state_dict(
        {k.removeprefix("body."): v for k, v in ours.state_dict().items()}, strict=False
    )
    ours.set_output("maps")
    assert ours.dilate(16)
    x = torch.randn(1, 3, 96, 64)
    for found, wanted in zip(ours(x)[-2:], theirs(x), strict=True):
        assert found.shape[2:] == (6, 4)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18d", "mobilenetv3_small_100", "vgg11_bn"])
def test_other_networks_are_left_as_they_are(name: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name)
        strides = list(backbone.strides)
        assert not backbone.dilate(16)
        assert backbone.strides == strides
        model = RFCN(backbone, 3, channels=8).eval()
        maps = model.maps(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert [m.shape[2:] for m in maps] == [(4, 6)] * 3


@PAIR
@pytest.mark.parametrize("ohem", [False, True])
def test_random_or_hard_regions_count(
    system: Callable[..., Any], ohem: bool, make_batch: Any
) -> None:
    torch.manual_seed(0)
    model = system(DarknetTiny(), 3, sample=8, ohem=ohem).train()
    images, targets = make_batch("detection", [2, 0], 64)
    terms = model.loss(images, targets)
    assert set(terms) == {
        "objectness",
        "proposals",
        "classes",
        "boxes",
        "num_objects",
        "num_positives",
    }
    assert terms["num_positives"] <= 8
    total_loss(terms).backward()
    assert all(p.grad is not None for p in model.parameters())


@PAIR
@pytest.mark.parametrize("size", [(64, 320), (16, 400)])
def test_any_shape_of_image(system: Callable[..., Any], size: tuple[int, int]) -> None:
    model = system(DarknetTiny(), 3)
    [found] = model.predict(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()


@PAIR
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positions": 0}, "roi size=0 must be at least 1"),
        ({"sample": 0}, "count=0 must be at least 1"),
        ({"roi": "max"}, "roi method max"),
        ({"foreground_iou": 2.0}, "foreground_iou=2.0"),
    ],
)
def test_values_that_cannot_be_are_refused(
    system: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        system(DarknetTiny(), 3, **options)
