"""R-CNN: the paper's numbers, its draws, its loss and what its stages learn from, each by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.data.formats.voc import VOCReader
from cvtrain.layers.box_coder import BoxCoder
from cvtrain.metrics import metrics_for
from cvtrain.models.backbones.alexnet import AlexNet
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.base import evaluating, total_loss
from cvtrain.models.detection.rcnn import RCNN, Outputs
from cvtrain.proposals.selective_search import selective_search, settings
from cvtrain.structures import ImageInfo, Target

from .conftest import photographs

SIZE = 64


@pytest.fixture
def model() -> RCNN:
    torch.manual_seed(0)
    return RCNN(DarknetTiny(widths=(8, 8, 16, 16)), 3, SIZE)


def batch() -> tuple[Tensor, list[Target], list[Tensor]]:
    """Three images: two objects, one that is to be ignored beside one that is not, none."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    targets = [
        Target(
            boxes=torch.tensor([[4.0, 4, 24, 34], [30, 20, 60, 60]]), labels=torch.tensor([2, 0])
        ),
        Target(
            boxes=torch.tensor([[0.0, 0, 30, 64], [40, 10, 60, 30]]),
            labels=torch.tensor([1, 0]),
            ignore=torch.tensor([True, False]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]
    proposals = [
        # IoU with the first object 1, about 0.8, 0.53 and 0.35; then far from both
        torch.tensor(
            [[4.0, 4, 24, 34], [4, 8, 24, 34], [4, 4, 24, 20], [4, 4, 24, 14.5], [50, 2, 60, 10]]
        ),
        torch.tensor([[2.0, 2, 28, 60], [41, 11, 60, 31], [36, 40, 60, 60]]),
        torch.tensor([[5.0, 5, 40, 40], [0, 0, 64, 64]]),
    ]
    return images, targets, proposals


# The paper's numbers ------------------------------------------------------------------------------


def test_alexnet_gives_the_papers_features() -> None:
    with torch.device("meta"):
        model = RCNN(AlexNet(), 20, 500, crop_size=227)
    assert model.stages["svms"].weight.shape == (20, 4096)
    assert model.stages["boxes"].weight.shape == (20, 4, 9216)  # pool5: 6 x 6 x 256
    assert model.fc.weight.shape == (21, 4096)
    assert (model.crops, model.positives, model.padding) == (128, 32, 16)


def test_vgg16_gives_the_papers_features() -> None:
    with torch.device("meta"):
        model = RCNN(TimmBackbone("vgg16"), 20, 500)
    assert model.crop_size == 224
    assert model.stages["svms"].weight.shape == (20, 4096)
    assert model.stages["boxes"].weight.shape == (20, 4, 7 * 7 * 512)


@pytest.mark.parametrize(
    ("size", "crop"), [(500, 224), (128, 64), (64, 32), (30, 32), ([300, 200], 96), (2000, 224)]
)
def test_crops_follow_the_image(size: Any, crop: int) -> None:
    model = RCNN(DarknetTiny(), 2, size)
    assert model.crop_size == crop
    assert model.padding == {224: 16, 96: 7, 64: 5, 32: 2}[crop]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_map_and_features_of_one_pass_are_those_of_two(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        last, pooled = backbone.last_and_pooled(x)
        torch.testing.assert_close(last, backbone(x)[-1])
        torch.testing.assert_close(pooled, backbone.pooled(x))


def test_a_backbone_with_a_pooling_of_its_own_is_asked_for_it() -> None:
    class Largest(DarknetTiny):
        def pooled(self, x: Tensor) -> Tensor:
            return self(x)[-1].amax(dim=(2, 3))

    backbone, x = Largest().eval(), torch.randn(1, 3, 64, 64)
    last, pooled = backbone.last_and_pooled(x)
    torch.testing.assert_close(last.amax(dim=(2, 3)), pooled)


@pytest.mark.parametrize(("chosen", "count"), [("pooled", 32), ("map", 128), (None, 128)])
@pytest.mark.parametrize("regression", [True, False])
def test_svms_see_what_was_chosen(chosen: Any, count: int, regression: bool) -> None:
    torch.manual_seed(0)
    model = RCNN(DarknetTiny(), 3, SIZE, svm_features=chosen, box_regression=regression)
    images, targets, proposals = batch()
    assert model.examples(images, targets, proposals)["features"].shape[1] == count
    svms: Any = model.stages["svms"]
    svms.fitted.fill_(True)
    svms.weight.normal_()
    with evaluating(model):
        maps, features = model._described(next(iter(model._passes(images, proposals))))
        seen = model(images, proposals).margins
    torch.testing.assert_close(seen, svms(features if count == 32 else maps))


def test_what_is_stored_is_in_buffers(model: RCNN) -> None:
    assert not any(name.startswith("stages.") for name, _ in model.named_parameters())
    assert {"stages.svms.weight", "stages.boxes.weight"} <= model.state_dict().keys()
    plain = RCNN(DarknetTiny(), 3, SIZE, svm=False, box_regression=False)
    assert not any(name.startswith("stages.") for name in plain.state_dict())


# Fine-tuning ------------------------------------------------------------------------------


def test_a_step_draws_a_quarter_of_positives(model: RCNN) -> None:
    objects = torch.tensor([[10.0, 10, 30, 30]])
    target = Target(boxes=objects, labels=torch.tensor([1]))
    near = objects + torch.rand(100, 1)
    far = torch.tensor([[40.0, 40, 60, 60]]) + torch.rand(300, 1)
    drawn, labels, counted = model._draw([target, target], [torch.cat([near, far])] * 2)
    assert (labels == 2).sum() == 32
    assert (labels == 0).sum() == 96
    assert counted.sum() == 128
    every = torch.cat(drawn)
    assert ((every[:, 0] < 35) == (labels == 2)).all()
    assert min(map(len, drawn)) > 40, "of both images"


def test_objects_are_positives_of_their_own_and_ignored_regions_nothing(model: RCNN) -> None:
    _, targets, proposals = batch()
    drawn, labels, counted = model._draw(targets, proposals)
    found = {(i, *b) for i, d in enumerate(drawn) for b in d.tolist()}
    assert (1, 40, 10, 60, 30) in found, "an object of the targets"
    assert (1, 2, 2, 28, 60) not in found, "a proposal inside an ignored region"
    assert (1, 0, 0, 30, 64) not in found
    # 2 objects and 3 proposals; 1 object and 1 proposal; the rest are background
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 3 + [3] * 4
    assert counted.all()


def test_the_training_loss_is_the_mean_cross_entropy_of_the_draw(model: RCNN) -> None:
    images, targets, proposals = batch()
    model.eval()  # batch norm's statistics do not depend on the batch
    torch.manual_seed(5)
    terms = model.loss(images, targets, proposals)
    torch.manual_seed(5)
    drawn, labels, _ = model._draw(targets, proposals)
    total = 0.0
    logits = model(images, drawn).logits
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += float(np.log(np.exp(row).sum())) - row[label]
    assert float(terms["classes"].detach()) == pytest.approx(total / len(labels), rel=1e-5)
    assert terms["num_objects"] == 3
    assert terms["num_positives"] == 7


def test_the_validation_loss_weighs_all_boxes_as_the_draw_does(model: RCNN) -> None:
    _, targets, proposals = batch()
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    terms = model.compute_loss(Outputs(logits, None, None, proposals, (SIZE, SIZE)), targets)
    labels = [3, 3, 3, 0, 0, None, 1, 0, 0, 0]
    mean = {}
    for kind in (True, False):
        values = [
            float(F.cross_entropy(logits[i], torch.tensor(label)))
            for i, label in enumerate(labels)
            if label is not None and (label > 0) == kind
        ]
        mean[kind] = sum(values) / len(values)
    expected = 0.25 * mean[True] + 0.75 * mean[False]
    assert float(terms["classes"]) == pytest.approx(expected, rel=1e-5)
    none = [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))] * 3
    terms = model.compute_loss(Outputs(logits, None, None, proposals, (SIZE, SIZE)), none)
    background = F.cross_entropy(logits, torch.zeros(10, dtype=torch.int64))
    torch.testing.assert_close(terms["classes"], background)


def test_nothing_to_learn_from_still_gives_every_parameter_a_gradient(model: RCNN) -> None:
    images, _, proposals = batch()
    whole = torch.tensor([[0.0, 0, SIZE, SIZE]])
    target = Target(boxes=whole, labels=torch.tensor([0]), ignore=torch.tensor([True]))
    loss = total_loss(model.train().loss(images[:1], [target], [proposals[0][:1]]))
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_passes_of_any_size_say_the_same(model: RCNN) -> None:
    images, _, proposals = batch()
    proposals[1] = proposals[1][:0]  # an image without boxes
    with evaluating(model):
        whole = model(images, proposals).logits
        model.crops_per_pass = 2
        torch.testing.assert_close(model(images, proposals).logits, whole)


def test_bfloat16_gives_finite_gradients_and_float32_results(model: RCNN) -> None:
    images, targets, proposals = batch()
    model.on_epoch_start(0, 1)
    for stage in model.stages.values():
        stage.fit(model.examples(images, targets, proposals))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total_loss(model.train().loss(images, targets, proposals)).backward()
        _, found = model.loss_and_predict(images, targets, proposals)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert {p.boxes.dtype for p in found} == {p.scores.dtype for p in found} == {torch.float32}


def test_a_thousand_objects_and_a_row_of_pixels(model: RCNN) -> None:
    low = torch.rand(1000, 2) * 50
    boxes = torch.cat([low, low + 3], dim=1)
    targets = [Target(boxes=boxes, labels=torch.zeros(1000, dtype=torch.int64))]
    image = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    assert torch.isfinite(model.loss(image, targets, [boxes[:50]])["classes"])
    row = torch.zeros(1, 3, 1, 5000, dtype=torch.uint8)
    (found,) = model.predict(row, [torch.tensor([[0.0, 0, 5000, 1], [10, 0, 20, 1]])])
    assert found.boxes is not None
    assert torch.isfinite(found.boxes).all()


# Stages ------------------------------------------------------------------------------


def test_what_svms_and_regressors_learn_from(model: RCNN) -> None:
    images, targets, proposals = batch()
    found = model.examples(images, targets, proposals)
    signs = found["signs"]
    assert found["features"].shape == (3 + 10, 2 * 2 * 32), "a small last map"
    # First image: two objects, then its proposals. Of class 2, IoU 1, 0.87, 0.53 and 0.35 are
    # neither; all are negatives of class 1, and of class 0, whose object is elsewhere.
    assert signs[:7].tolist() == [
        [-1, -1, 1], [1, -1, -1],
        [-1, -1, 0], [-1, -1, 0], [-1, -1, 0], [-1, -1, 0], [-1, -1, -1],
    ]  # fmt: skip
    # Second: one object; a proposal in the ignored region, one at the object, one apart.
    assert signs[7:11].tolist() == [[1, -1, -1], [0, 0, 0], [0, -1, -1], [-1, -1, -1]]
    assert (signs[11:] == -1).all()
    assert found["pair_labels"].tolist() == [2, 2, 0]
    near = torch.cat([proposals[0][:2], proposals[1][1:2]])
    truth = torch.tensor([[4.0, 4, 24, 34], [4, 4, 24, 34], [40, 10, 60, 30]])
    codes = torch.from_numpy(found["pair_codes"])
    torch.testing.assert_close(BoxCoder().decode(codes, near), truth, atol=1e-4, rtol=1e-5)
    with evaluating(model):
        (crops,) = model._passes(images, [near[:2], near[2:], near[:0]])
        maps, features = model._described(crops)
    np.testing.assert_allclose(found["pair_maps"], maps.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["features"][2:4], maps[:2].numpy(), rtol=1e-4, atol=1e-5)
    model.svm_map = False
    found = model.examples(images, targets, proposals)
    np.testing.assert_allclose(found["features"][2:4], features[:2].numpy(), rtol=1e-4, atol=1e-5)


def test_only_the_best_boxes_of_an_image_are_learned_from_where_asked(model: RCNN) -> None:
    images, targets, proposals = batch()
    model.fit_boxes = 2
    assert len(model.examples(images, targets, proposals)["features"]) == 3 + 6


def test_fitted_stages_score_and_move_the_boxes(model: RCNN) -> None:
    images, _, proposals = batch()
    before = model.predict(images, proposals)
    margins, codes = torch.randn(10, 3), torch.randn(10, 3, 4) * 0.1
    model.stages["svms"].forward = lambda features: margins
    model.stages["boxes"].forward = lambda maps: codes
    torch.testing.assert_close(model.predict(images, proposals)[0].scores, before[0].scores)
    for stage in model.stages.values():
        stage.fitted.fill_(True)
    model.select.iou, model.select.min_score = 1.0, 0.0
    (first, *_) = model.predict(images, proposals)
    assert first.boxes is not None
    assert first.scores is not None
    assert first.labels is not None
    assert len(first.boxes) == 5 * 3
    flat = (2 * margins[:5]).sigmoid().flatten()
    torch.testing.assert_close(first.scores, flat.sort(descending=True).values)
    best = int(margins[:5].argmax())
    row, label = divmod(best, 3)
    moved = BoxCoder().decode(codes[row, label], proposals[0][row]).clamp(0, SIZE)
    torch.testing.assert_close(first.boxes[0], moved)
    assert first.labels[0] == label
    model.on_epoch_start(0, 1)  # another network: what was fitted is void
    torch.testing.assert_close(model.predict(images, proposals)[1].scores[:2], before[1].scores[:2])


@pytest.mark.parametrize(
    ("features", "said", "held", "weight"),
    [(None, None, True, 2.0), ("pooled", None, False, 50.0), ("pooled", True, True, 2.0)],
)
def test_what_svms_see_is_brought_to_one_length(features, said, held, weight) -> None:
    torch.manual_seed(0)
    words = {"svm_features": features, "svm_normalize": said, "svm_positive_weight": None}
    model = RCNN(DarknetTiny(), 3, SIZE, **words).eval()
    assert model.stages["svms"].positive_weight == weight
    images, targets, proposals = batch()
    with torch.no_grad():
        examples = model.examples(images, targets, proposals)
    lengths = np.linalg.norm(examples["features"], axis=1)
    assert np.allclose(lengths, 1.0, atol=1e-5) == held
    model.stages["svms"].fit(examples)
    with torch.no_grad():
        margins = model(images, proposals).margins
    objects = sum(len(t.boxes) for t in targets[:1])
    first = torch.from_numpy(examples["features"][objects : objects + len(proposals[0])])
    torch.testing.assert_close(margins[: len(first)], model.stages["svms"](first))


def test_stages_learn_a_simple_world(model: RCNN) -> None:
    """Features that tell the class, maps that tell the way: what is fitted says both."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 8)).astype(np.float32)
    signs = np.full((600, 3), -1, np.int8)
    for k in range(2):
        features[20 * k : 20 * k + 20, k] += 8
        signs[20 * k : 20 * k + 20, k] = 1
    maps = generator.normal(size=(300, 6)).astype(np.float32) * 100
    codes = maps[:, :4] / 1000 + 0.05
    model = RCNN(DarknetTiny(), 3, SIZE)
    svms, regressors = model.stages["svms"], model.stages["boxes"]
    regressors.strength = 1.0
    svms.weight, regressors.weight = torch.zeros(3, 8), torch.zeros(3, 4, 6)
    labels = np.zeros(300, np.int64)
    examples = {"features": features, "signs": signs, "pair_maps": maps, "pair_codes": codes}
    message = svms.fit(examples)
    assert message.startswith("3 classes, 40 objects, ")
    margins = svms(torch.from_numpy(features)).numpy()
    assert (margins[signs > 0] > 0).all()
    assert (margins[:, :2][signs[:, :2] < 0] < 0).mean() > 0.99
    assert (margins[:, 2] < -1000).all(), "a class without objects is never said"
    assert regressors.fit({**examples, "pair_labels": labels}) == (
        "300 pairs of box and object, 1 of 3 classes"
    )
    moved = regressors(torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(moved[:, 0], codes, atol=0.01)
    assert not moved[:, 1:].any(), "a class without pairs leaves boxes where they are"
    assert svms.fit({**examples, "signs": np.minimum(signs, 0)}).startswith("3 classes, 0 objects")
    assert (svms(torch.from_numpy(features)) < -1000).all()
    nothing = {"pair_maps": maps[:0], "pair_codes": codes[:0], "pair_labels": labels[:0]}
    assert regressors.fit(nothing).startswith("0 pairs")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"padding": 16}, "padding=16 leaves nothing"),
        ({"positives": 200}, "positives=200"),
        ({"svm_C": 0.0}, "svm_C=0.0"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"fit_boxes": 0}, "fit_boxes=0"),
        ({"svm_features": "fc7"}, "svm_features=fc7"),
    ],
)
def test_values_out_of_range_are_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as info:
        RCNN(DarknetTiny(), 3, 64, **wrong)
    assert "\n" not in str(info.value)


def test_boxes_are_needed(model: RCNN) -> None:
    images, targets, _ = batch()
    with pytest.raises(ValueError, match="given its boxes"):
        model.loss(images, targets)


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path) -> None:
    """At 160 pixels, from scratch, through all stages, which see the pooled features.

    The header of the model has what other choices reach.
    """
    size, table = 160, VOCReader(root=str(real_data / "raccoon")).read("train").table
    images, targets = photographs(table, 16, size)
    search = settings("fast", max_boxes=2000)
    boxes = [
        torch.from_numpy(selective_search(image.permute(1, 2, 0).numpy(), search).boxes)
        for image in images
    ]
    torch.manual_seed(0)
    model = RCNN(DarknetTiny(), 1, size, svm_features="pooled").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(80):
        loss = total_loss(model.loss(images, targets, boxes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    examples = model.examples(images, targets, boxes)
    values = []
    for stage in (None, *model.stages.values()):
        if stage is not None:
            stage.fit(examples)
        metrics = metrics_for("detection", table.classes)
        infos = [ImageInfo(i, f"{i}", f"{i}", size, size) for i in range(len(images))]
        metrics.update(model.predict(images, boxes), targets, infos)
        values.append(metrics.compute()["mAP50"])
    assert values[-1] > values[0], "what the softmax has"
    assert values[-1] >= 0.95
