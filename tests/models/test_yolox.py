"""YOLOX: the paper's numbers, the loss by hand, what becomes a prediction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cvtrain.layers.conv import ConvBlock
from cvtrain.layers.csp import SPP, STD
from cvtrain.layers.simota import simota
from cvtrain.losses.box_regression import IoULoss, SmoothL1
from cvtrain.models.backbones.csp_darknet import CSPDarknet
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.base import total_loss
from cvtrain.models.detection.yolox import YOLOX, decode_cells, encode_cells, gathered
from cvtrain.structures import Target

# Ge et al. 2021, tables 3 to 5, at 80 classes: million parameters, GFLOPs (two a multiply-add,
# norms and activations counted too), side of the image
PAPER = {
    "nano": (0.91, 1.08, 416),
    "tiny": (5.06, 6.45, 416),
    "s": (9.0, 26.8, 640),
    "m": (25.3, 73.8, 640),
    "l": (54.2, 155.6, 640),
}


def build(size: str = "nano", num_classes: int = 3, **keywords: Any) -> YOLOX:
    torch.manual_seed(0)
    return YOLOX(CSPDarknet(size), IoULoss("iou"), num_classes, size=size, **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", PAPER)
def test_parameters_and_operations_are_the_papers(size: str) -> None:
    millions, giga, side = PAPER[size]
    with torch.device("meta"):
        model = build(size, 80).eval()
        count = 0

        def add(conv: nn.Conv2d, _: object, out: torch.Tensor) -> None:
            nonlocal count
            count += 2 * conv.weight.numel() * out.shape[2] * out.shape[3]

        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        out = model(torch.zeros(1, 3, side, side))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(parameters, 2 if millions < 6 else 1) == millions
    assert 0.96 < count / 1e9 / giga <= 1
    places = sum((side // s) ** 2 for s in (8, 16, 32))
    assert out.logits.shape == (1, places, 80)
    assert out.codes.shape == (1, places, 4)
    if side == 640:
        assert places == 8400


def test_the_stem_is_focus_in_another_order() -> None:
    stem = CSPDarknet("nano").stem.conv
    x = torch.randn(2, 3, 16, 24)
    pixels = F.pixel_unshuffle(x, 2)  # (2, 12, 8, 12), four pixels of a channel after one another
    weight = stem.weight.reshape(-1, 3, 3, 2, 3, 2)  # rows and columns 6 = 3 places x 2 pixels
    weight = weight.permute(0, 1, 3, 5, 2, 4).reshape(-1, 12, 3, 3)
    torch.testing.assert_close(stem(x), F.conv2d(pixels, weight, padding=1))


def test_normalized_convolutions_start_alike_however_few_their_inputs() -> None:
    """Depthwise ones too: Adam turns a kernel as slowly as it is large."""
    model = build("nano")
    kernels = [m.conv.weight.detach() for m in model.modules() if isinstance(m, ConvBlock)]
    assert any(k.shape[1:] == (1, 3, 3) for k in kernels)
    for kernel in kernels:
        assert float(kernel.std()) == pytest.approx(STD, rel=0.25)


def test_pooling_three_times_by_5_is_pooling_by_5_9_and_13() -> None:
    block = SPP(8, 8).eval()
    x = torch.randn(1, 8, 20, 17)
    narrow = block.narrow(x)
    pools = [F.max_pool2d(narrow, k, 1, k // 2) for k in (5, 9, 13)]
    torch.testing.assert_close(block(x), block.join(torch.cat([narrow, *pools], dim=1)))


def scene() -> tuple[torch.Tensor, list[Target]]:
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[4.0, 6, 40, 50], [60, 10, 94, 60], [30.0, 2, 58, 30], [3, 50, 9, 57]])
    none = torch.zeros(0, dtype=torch.int64)
    return images, [
        Target(boxes=boxes[:2], labels=torch.tensor([0, 2])),
        Target(boxes=boxes[:0], labels=none),
        Target(boxes=boxes[2:], labels=torch.tensor([1, 1])),
    ]


def test_the_loss_by_hand() -> None:
    model = build(close_epoch=1)
    images, targets = scene()
    with torch.no_grad():
        for p in model.heads.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        model.eval()
        out = model(images)
        off = model.compute_loss(out, targets)
        model.on_epoch_start(1, 3)
        terms = model.compute_loss(out, targets)
    objects, _ = gathered(targets, images.device)
    boxes = torch.stack([decode_cells(c, out.corners, out.strides) for c in out.codes])
    positive, owner = simota(out.logits, out.objectness, boxes, objects, out.grid)
    answer = dict(zip(positive.tolist(), owner.tolist(), strict=True))
    classes = there = regressed = distance = 0.0
    for b in range(3):
        for a in range(len(out.corners)):
            p = 1 / (1 + math.exp(-float(out.objectness[b, a])))
            owns = b * len(out.corners) + a in answer
            there -= math.log(p if owns else 1 - p)
            if not owns:
                continue
            n = answer[b * len(out.corners) + a]
            x, y, w, h = out.codes[b, a].tolist()
            left, top, s = *out.corners[a].tolist(), float(out.strides[a])
            x0, y0, x1, y1 = objects.boxes[n].tolist()
            cx, cy, pw, ph = left + x * s, top + y * s, math.exp(w) * s, math.exp(h) * s
            wide = max(0.0, min(cx + pw / 2, x1) - max(cx - pw / 2, x0))
            high = max(0.0, min(cy + ph / 2, y1) - max(cy - ph / 2, y0))
            iou = wide * high / (pw * ph + (x1 - x0) * (y1 - y0) - wide * high)
            regressed += 5 * (1 - iou)
            distance += abs(cx - (x0 + x1) / 2) / s + abs(cy - (y0 + y1) / 2) / s
            distance += abs(w - math.log((x1 - x0) / s)) + abs(h - math.log((y1 - y0) / s))
            for k in range(3):
                q = 1 / (1 + math.exp(-float(out.logits[b, a, k])))
                t = iou if k == int(objects.labels[n]) else 0.0
                classes -= t * math.log(q) + (1 - t) * math.log(1 - q)
    count = len(answer)
    assert count >= 4
    assert int(terms["num_positives"]) == count
    assert int(terms["num_objects"]) == 4
    assert off["l1"] == 0
    want = {"classes": classes, "objectness": there, "boxes": regressed, "l1": distance}
    for name, value in want.items():
        assert float(terms[name]) == pytest.approx(value / count, rel=1e-4)
        assert name == "l1" or off[name] == terms[name]


@pytest.mark.parametrize(
    ("close", "epochs", "first"), [(None, 10, None), (3, 10, 3), (0.9, 20, 18), (0, 5, 0)]
)
def test_when_the_l1_loss_begins(close: float | None, epochs: int, first: int | None) -> None:
    model = build(close_epoch=close)
    found = []
    for epoch in range(epochs):
        model.on_epoch_start(epoch, epochs)
        found.append(bool(model.with_l1))
    assert found == [first is not None and e >= first for e in range(epochs)]
    again = build(close_epoch=close)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.with_l1, model.with_l1)  # eval reports the same loss


@torch.no_grad()
def test_batches_are_trained_at_several_sizes() -> None:
    """Boxes go with the images: the loss is that of the resized images, the sizes follow a draw."""
    model = build(multi_scale=[0.5, 1.5], resize_every=1).eval()
    images, targets = scene()
    plain, losses = model.loss(images, targets), set()
    for batch in range(20):
        model.on_batch_start(0, batch)
        terms = model.loss(images, targets)
        losses.add(round(float(terms["objectness"]), 4))
        assert int(terms["num_objects"]) == 4
    assert len(losses) == 3  # 1, 2 and 3 strides of height
    assert round(float(plain["objectness"]), 4) in losses
    assert float(model.compute_loss(model(images), targets)["boxes"]) == float(plain["boxes"])


def test_codes_and_boxes_are_inverses() -> None:
    places = torch.tensor([[0.0, 8.0], [32.0, 64.0]])
    strides = torch.tensor([8.0, 32.0])
    boxes = torch.tensor([[1.0, 3, 9, 20], [10.0, 50, 120, 90]])
    codes = encode_cells(boxes, places, strides)
    torch.testing.assert_close(decode_cells(codes, places, strides), boxes)
    assert torch.isfinite(encode_cells(torch.zeros(2, 4), places, strides)).all()
    assert torch.isfinite(decode_cells(codes * 1000, places, strides)).all()


def test_the_loss_and_the_boxes_agree() -> None:
    """Outputs of little loss decode to the boxes they were made from."""
    model = build().eval()
    images, targets = scene()
    with torch.no_grad():
        out = model(images)
    logits, there = torch.full_like(out.logits, -12.0), torch.full_like(out.objectness, -12.0)
    codes = torch.full_like(out.codes, -7.0)  # boxes of next to no area
    for i, target in enumerate(targets):
        for box, label in zip(target.boxes, target.labels, strict=True):
            inside = ((box[:2] + box[2:]) / 2 - out.corners - out.strides[:, None] / 2).abs().sum(1)
            a = int(inside.argmin())
            logits[i, a, label], there[i, a] = 12.0, 12.0
            codes[i, a] = encode_cells(box[None], out.corners[a : a + 1], out.strides[a : a + 1])[0]
    made = out._replace(logits=logits, objectness=there, codes=codes)
    terms = model.compute_loss(made, targets)
    assert float(total_loss(terms)) < 0.05
    assert int(terms["num_positives"]) == 4
    for target, found in zip(targets, model.decode(made), strict=True):
        assert sorted(found.labels.tolist()) == sorted(target.labels.tolist())
        for box in target.boxes:
            assert float((found.boxes - box).abs().amax(1).min()) < 1e-2


def test_places_in_a_region_to_ignore_are_no_negatives() -> None:
    model = build().eval()
    images, targets = scene()
    with torch.no_grad():
        out = model(images)
    whole = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    hidden = Target(
        boxes=torch.cat([targets[0].boxes, whole]),
        labels=torch.tensor([0, 2, 1]),
        ignore=torch.tensor([False, False, True]),
    )
    plain = model.compute_loss(out, targets[:1] + targets[1:])
    terms = model.compute_loss(out, [hidden, *targets[1:]])
    assert terms["num_positives"] == plain["num_positives"]
    assert terms["boxes"] == plain["boxes"]
    assert terms["classes"] == plain["classes"]
    assert terms["objectness"] < plain["objectness"]


@pytest.mark.parametrize(
    ("shape", "count"), [((128, 128), 1000), ((1, 5000), 0), ((5000, 1), 3), ((1, 1), 1)]
)
def test_objects_too_many_and_images_too_thin(shape: tuple[int, int], count: int) -> None:
    model = build().train()
    height, width = shape
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.9
    boxes = torch.cat([corner, torch.minimum(corner + 3, torch.tensor([width, height]))], dim=1)
    target = Target(boxes=boxes, labels=torch.zeros(count, dtype=torch.int64))
    images = torch.zeros(2, 3, *shape, dtype=torch.uint8)
    terms = model.loss(images, [target, Target()])
    total_loss(terms).backward()
    assert all(torch.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for found in model.predict(images):
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_a_backbone_that_goes_on_beyond_stride_32_ends_there() -> None:
    backbone = DarknetTiny(widths=(4, 8, 8, 8, 8, 8), blocks=(1,) * 6, narrow=None)
    model = YOLOX(backbone, IoULoss("iou"), 3, size="nano")
    images, targets = scene()
    total_loss(model.loss(images, targets)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert backbone.strides[-1] == 32


def test_a_backbone_can_end_earlier() -> None:
    backbone = CSPDarknet("nano")
    backbone.truncate(2)
    maps = backbone(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == backbone.channels == [16, 32, 64]
    assert backbone.strides == [2, 4, 8]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"size": "xl"}, r"size=xl: expected nano \| tiny \| s \| m \| l"),
        ({"center_radius": 0.5}, "center_radius=0.5 must be above 0.5"),
        ({"multi_scale": [1.5, 0.5]}, "smallest and the largest share"),
        ({"multi_scale": [0.5, 1.5], "resize_every": 0}, "resize_every=0"),
        ({"box_weight": -1}, "box_weight=-1"),
        ({"close_epoch": -1}, "close_epoch=-1"),
        ({"prior": 0}, "prior=0 must be above 0"),
        ({"loss": SmoothL1()}, "loss=iou, giou, diou or ciou"),
    ],
)
def test_wrong_values_are_one_line(keywords: dict[str, Any], message: str) -> None:
    given = {"loss": IoULoss("iou"), **keywords}
    with pytest.raises(ValueError, match=message):
        YOLOX(DarknetTiny(), num_classes=3, **given)


def test_the_backbones_size_follows_the_models(compose_config: Any) -> None:
    model = compose_config("task=detection", "model=yolox", "model.size=nano")["model"]
    assert model["backbone"]["size"] == "nano"
    assert compose_config("backbone=csp_darknet")["backbone"]["size"] == "s"
    apart = compose_config("task=detection", "model=yolox", "backbone.size=m")["model"]
    assert (apart["size"], apart["backbone"]["size"]) == ("s", "m")


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    """The shipped configuration in size tiny on real images, from scratch."""
    words = ("model=yolox", "model.size=tiny")
    folder = real_data / "raccoon"
    assert learn_photographs(folder, *words, size=192, steps=150, lr=1e-3) >= 0.9
