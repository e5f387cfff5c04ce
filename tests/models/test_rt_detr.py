"""RT-DETR: the paper's numbers, the loss by hand, what becomes a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.layers.boxes import center_size
from cvtrain.layers.hungarian import assign
from cvtrain.layers.query_decoder import Guess
from cvtrain.losses.box_regression import IoULoss, SmoothL1
from cvtrain.losses.set_prediction import Pairs, set_terms
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.base import total_loss
from cvtrain.models.detection.rt_detr import RTDETR
from cvtrain.structures import Target

NARROW = {"channels": 16, "heads": 2, "hidden": 16, "fusion_blocks": 1, "decoder_layers": 3}
SMALL = {"decoder_layers": 3, "fusion_width": 0.5}

# Zhao et al. 2023, table 2 and A: million parameters, GFLOPs at 640 x 640, 80 classes. What counts
# as an operation there is not said: ours are those of convolutions, linear layers and attention.
PAPER = {
    "resnet50d": ({}, 42, 136, 130.7),
    "resnet34d": ({**SMALL, "decoder_layers": 4}, 31, 92, 89.2),
    "resnet18d": (SMALL, 20, 60, 57.1),
}


def build(num_classes: int = 3, **keywords: Any) -> RTDETR:
    torch.manual_seed(0)
    return RTDETR(DarknetTiny(), IoULoss("giou"), num_classes, **{**NARROW, **keywords})


def scene() -> tuple[torch.Tensor, list[Target]]:
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[4.0, 6, 40, 50], [60, 10, 94, 60], [30.0, 2, 58, 30], [3, 50, 9, 57]])
    none = torch.zeros(0, dtype=torch.int64)
    return images, [
        Target(boxes=boxes[:2], labels=torch.tensor([0, 2])),
        Target(boxes=boxes[:0], labels=none),
        Target(boxes=boxes[2:], labels=torch.tensor([1, 1])),
    ]


def shaken(**keywords: Any) -> RTDETR:
    """A model far from its calm start, in eval mode."""
    model = build(**keywords).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_operations_are_the_papers(name: str) -> None:
    keywords, millions, giga, ours = PAPER[name]
    with torch.device("meta"):
        model = RTDETR(TimmBackbone(name), IoULoss("giou"), 80, **keywords).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            out = model(torch.zeros(1, 3, 640, 640))
    # The 1 x 1 convolution of a RepBlock is part of the 3 x 3 one in the end.
    merged = sum(
        p.numel()
        for n, p in model.encoder.named_parameters()
        if ".blocks." in n and ".narrow." in n
    )
    assert round((sum(p.numel() for p in model.parameters()) - merged) / 1e6) == millions
    assert counter.get_total_flops() / 1e9 == pytest.approx(ours, rel=0.01)
    assert 0.94 < counter.get_total_flops() / 1e9 / giga < 1
    assert out.values[0].shape == (1, 8400, 256)  # 80 x 80 + 40 x 40 + 20 x 20 cells
    assert [g.logits.shape for g in out.layers] == [(1, 300, 80)] * len(model.decoder.layers)
    assert out.cells.places.shape == (1, 300, 4)


@torch.no_grad()
def test_the_loss_is_the_sum_over_layers() -> None:
    """Layer by layer and image by image what ``set_terms`` and the matching give."""
    model = shaken(denoising=None)
    images, targets = scene()
    out = model(images)
    terms = model.compute_loss(out, targets)
    found = []
    for guess in (out.cells, *out.layers):
        sums = torch.zeros(3)
        for b, target in enumerate(targets):
            boxes = guess.places[b : b + 1].sigmoid()
            cost = model.costs(
                guess.logits[b : b + 1], boxes, target.boxes, target.labels, out.scale
            )
            ((query, owned),) = assign([cost])[0]
            pairs = Pairs(torch.zeros_like(query), query, target.boxes[owned], target.labels[owned])
            parts = set_terms(
                guess.logits[b : b + 1],
                boxes,
                pairs,
                torch.ones(1, boxes.shape[1]),
                out.scale,
                IoULoss("giou"),
            )
            sums += torch.cat(parts) * torch.tensor([1.0, 5.0, 2.0])
        found.append(sums / 4)  # objects
    want = {
        "classes": found[-1][0],
        "boxes": found[-1][1],
        "overlap": found[-1][2],
        "auxiliary": sum(found[1:-1]).sum(),
        "cells": found[0].sum(),
    }
    assert terms.keys() == {*want, "num_objects", "num_positives"}
    for name, value in want.items():
        torch.testing.assert_close(terms[name], value)
    assert int(terms["num_objects"]) == int(terms["num_positives"]) == 4


@torch.no_grad()
def test_denoising_leaves_the_other_terms_and_the_predictions_alone() -> None:
    model = shaken()
    images, targets = scene()
    out = model(images)
    terms = model.compute_loss(out, targets)
    assert float(terms["denoising"]) > 0
    noiser, model.denoising = model.denoising, None
    for name, value in model.compute_loss(out, targets).items():
        assert torch.equal(value, terms[name])
    model.denoising = noiser
    # The mean over objects: of each image by itself, whatever the others hold.
    alone = [
        model.compute_loss(model(images[b : b + 1]), targets[b : b + 1])["denoising"]
        for b in (0, 2)
    ]
    torch.testing.assert_close(terms["denoising"], (2 * alone[0] + 2 * alone[1]) / 4)


@pytest.mark.parametrize("objects", [0, 1])
def test_every_parameter_gets_a_gradient_in_every_step(objects: int) -> None:
    """Processes wait for each other's gradients, also for that of the labels of no object."""
    model = build()
    images, targets = scene()
    targets = [targets[0 if objects else 1]] * 3
    total_loss(model.train().loss(images, targets)).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_loss_and_the_boxes_agree() -> None:
    """Outputs of little loss decode to the boxes they were made from."""
    model = build(denoising=None).eval()
    images, targets = scene()
    with torch.no_grad():
        out = model(images)
    logits = torch.full_like(out.layers[-1].logits, -12.0)
    places = torch.zeros_like(out.layers[-1].places)
    for b, target in enumerate(targets):
        for n, (box, label) in enumerate(zip(target.boxes, target.labels, strict=True)):
            logits[b, 7 * n, label] = 12.0
            places[b, 7 * n] = (center_size(box) / out.scale).logit()
    made = out._replace(cells=Guess(logits, places), layers=[Guess(logits, places)] * 3)
    terms = model.compute_loss(made, targets)
    assert float(total_loss(terms)) < 0.01
    for target, found in zip(targets, model.decode(made), strict=True):
        assert sorted(found.labels.tolist()) == sorted(target.labels.tolist())
        for box in target.boxes:
            assert float((found.boxes - box).abs().amax(1).min()) < 1e-2


def test_predictions_in_a_region_to_ignore_are_no_negatives() -> None:
    model = shaken(denoising=None)
    images, targets = scene()
    with torch.no_grad():
        out = model(images)
    whole = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    hidden = Target(
        boxes=torch.cat([targets[0].boxes, whole]),
        labels=torch.tensor([0, 2, 1]),
        ignore=torch.tensor([False, False, True]),
    )
    plain = model.compute_loss(out, targets)
    terms = model.compute_loss(out, [hidden, *targets[1:]])
    for name in ("num_objects", "num_positives", "boxes", "overlap"):
        assert terms[name] == plain[name]
    assert terms["classes"] < plain["classes"]
    assert terms["cells"] < plain["cells"]


@torch.no_grad()
def test_fewer_layers_predict_without_training_anew() -> None:
    """They are what the whole decoder says at that layer; the loss is always that of all."""
    whole, part = shaken(), shaken(eval_layers=2)
    images, targets = scene()
    out = whole(images)
    assert whole.state_dict().keys() == part.state_dict().keys()
    assert len(part(images, 2).layers) == 2
    second = whole.decode(out._replace(layers=out.layers[:2]))
    terms, validated = part.loss_and_predict(images, targets)
    assert torch.equal(total_loss(terms), total_loss(whole.compute_loss(out, targets)))
    for a, b, c in zip(second, part.predict(images), validated, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.boxes, c.boxes)
        assert torch.equal(a.scores, b.scores)
    assert not torch.equal(whole.decode(out)[0].scores, second[0].scores)


@torch.no_grad()
def test_batches_are_trained_at_several_sizes() -> None:
    model = build(multi_scale=[0.5, 1.5]).eval()
    images, targets = scene()
    plain, losses = model.loss(images, targets), set()
    for batch in range(20):
        model.on_batch_start(0, batch)
        terms = model.loss(images, targets)
        losses.add(round(float(terms["classes"]), 4))
        assert int(terms["num_objects"]) == 4
    assert len(losses) == 3  # 1, 2 and 3 strides of height
    assert round(float(plain["classes"]), 4) in losses


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
    assert int(terms["num_objects"]) == count
    assert int(terms["num_positives"]) == min(count, 300)
    assert all(torch.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for found in model.predict(images):
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_a_backbone_that_goes_on_beyond_stride_32_ends_there() -> None:
    backbone = DarknetTiny(widths=(4, 8, 8, 8, 8, 8), blocks=(1,) * 6, narrow=None)
    model = RTDETR(backbone, IoULoss("giou"), 3, **NARROW)
    images, targets = scene()
    total_loss(model.loss(images, targets)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert backbone.strides[-1] == 32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"queries": 0}, "queries=0 must be at least 1"),
        ({"max_detections": 0}, "max_detections=0"),
        ({"decoder_layers": 0}, "decoder_layers=0"),
        ({"eval_layers": 4}, "eval_layers=4: this decoder has layers 1 to 3"),
        ({"channels": 18}, "channels=18 must be a multiple of 4"),
        ({"heads": 3}, "channels=16 must be a multiple of heads=3"),
        ({"points": 0}, "points=0"),
        ({"denoising": 0}, "denoising=0"),
        ({"fusion_width": 0.0}, "fusion_width=0.0 above 0"),
        ({"l1_weight": -1.0}, "at least 0"),
        ({"multi_scale": [1.5, 0.5]}, "smallest and the largest share"),
        ({"prior": 0}, "prior=0 must be above 0"),
        ({"loss": SmoothL1()}, "loss=giou, iou, diou or ciou"),
    ],
)
def test_wrong_values_are_one_line(keywords: dict[str, Any], message: str) -> None:
    given = {**NARROW, "loss": IoULoss("giou"), **keywords}
    with pytest.raises(ValueError, match=message):
        RTDETR(DarknetTiny(), num_classes=3, **given)


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    """A narrow one on real images, from scratch."""
    words = ["model=rt_detr", "backbone=darknet_tiny", "model.channels=64", "model.hidden=128"]
    words += ["model.fusion_blocks=1", "model.decoder_layers=2", "model.denoising=20"]
    words += ["model.queries=50"]
    folder = real_data / "raccoon"
    assert learn_photographs(folder, *words, size=128, steps=150, lr=1e-3) >= 0.9
