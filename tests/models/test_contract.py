"""What every model promises. Each yaml of conf/model is found: a new one needs no edit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from cvtrain.data.masks import rles_from_masks
from cvtrain.data.table import Classes
from cvtrain.errors import UsageError
from cvtrain.instantiate import instantiate
from cvtrain.metrics import metrics_for
from cvtrain.models.base import Model, total_loss
from cvtrain.structures import ImageInfo, Prediction, Target
from cvtrain.tasks.paste_masks import paste_rles

CONF = Path(__file__).resolve().parents[2] / "conf"
SIZE = 64
MODELS = {
    path.stem: yaml.safe_load(path.read_text())["model"]
    for path in sorted((CONF / "model").glob("*.yaml"))
}
PAIRS = [(name, task) for name, model in MODELS.items() for task in model["tasks"]]
WITH_BACKBONE = [p for p in PAIRS if "backbone" in MODELS[p[0]]]
BACKBONES = sorted(p.stem for p in (CONF / "backbone").glob("*.yaml"))
LOSSES = sorted(p.stem for p in (CONF / "loss").glob("*.yaml"))
SMALL = ((0.19, 0.12), (0.375, 0.22), (0.375, 0.25), (0.25, 0.4))
"""Center and side of one more object an image, in shares of the image: all sizes there are."""
LARGE = ((0.5, 0.55), (0.5, 0.68), (0.5, 0.82), (0.5, 0.97))
OBJECTS = {"full": [2, 3, 1, 4], "half_empty": [2, 0, 0, 3], "empty": [0, 0, 0, 0]}

RELATED = {
    "darknet53": "darknet19",
    "mobilenet_v3_large": "mobilenet_v3_small",
    "overfeat_accurate": "overfeat_fast",
    "resnet34": "timm",
    "resnet101": "resnet50",
    "yolov1": "yolov1_20",
}
"""Backbones that are paired in the slow tests, since one of the same code is in the fast ones."""
SHALLOW = ("window_net",)
"""Backbones that end too early for a pyramid: models that need one say so."""

Build = Callable[..., Any]
MakeBatch = Callable[..., tuple[Tensor, list[Target]]]
pair = pytest.mark.parametrize(("name", "task"), PAIRS)


SMALLER = {
    "yolox": ["model.size=tiny"],
    "unet": ["model.width=8"],
    "unet_encoder": ["model.widths=[32,32,16,16,16]"],
    "smp": ["+model.options.pyramid_channels=32", "+model.options.segmentation_channels=32"],
    "deconvnet": ["model.width=8", "model.hidden=64", "model.max_windows=3"],
    "faster_rcnn": [
        "model.channels=64",
        "model.hidden=[128,128]",
        "model.rpn.candidates=[200,100]",
    ],
    "mask_rcnn": [
        "model.channels=64",
        "model.hidden=[128,128]",
        "model.rpn.candidates=[200,100]",
    ],
    "sliding_window": ["model.sides=[0.35,0.6]", "model.ratios=[0.6,1.6]"],
    "rfcn": ["model.channels=64", "model.rpn.candidates=[200,100]"],
    "light_head_rcnn": [
        "model.middle=16",
        "model.hidden=128",
        "model.rpn.candidates=[200,100]",
    ],
    "fast_rcnn": ["model.hidden=[128,128]"],
    "fcos": ["model.channels=64"],
    "retinanet": ["model.channels=64"],
    "rt_detr": [
        "model.channels=64",
        "model.hidden=128",
        "model.fusion_blocks=1",
        "model.decoder_layers=2",
        "model.denoising=20",
    ],
    "overfeat localization": ["model.scales=[1,1.5]"],
    "overfeat detection": ["model.scales=[1.5,3]"],
    "overfeat": ["model.hidden=[64,64]", "model.regressor_hidden=[64,64]"],
}
"""What makes a model small enough for many short tests, where its defaults do not."""
THIN = {
    "resnet18": ["backbone=timm", "backbone.name=test_resnet"],
    "overfeat_fast": ["backbone=darknet_tiny"],
}
"""In place of a backbone, one of few parameters, for the short tests that learn nothing."""
LEARNABLE = {
    "fcn": ["model.learn_last=true"],
    # Windows are learned from crops; batch norm has 16 codes here, where one an image made four.
    "deconvnet": ["model.inference=whole", "model.image_size=32"],
    # The one map has 4 x 4 places here, and of windows everywhere most are far from all objects.
    "fast_rcnn": ["model.neck=fpn", "model.background_iou=0"],
}
"""What a model is set to where it is to overfit one batch of so small images."""


def shipped(name: str, task: str) -> list[str]:
    """A model on the backbone of its yaml."""
    words = [f"task={task}", f"model={name}", "data=shapes", f"data.image_size={SIZE}"]
    return [*words, *SMALLER.get(name, []), *SMALLER.get(f"{name} {task}", [])]


def overrides(name: str, task: str) -> list[str]:
    """The same on a thin backbone: what is tested is what the model makes of its maps."""
    chosen = re.search(r"override /backbone: (\w+)", (CONF / "model" / f"{name}.yaml").read_text())
    return [*shipped(name, task), *(THIN.get(chosen[1], []) if chosen else [])]


def given(name: str, images: Tensor) -> list[list[Tensor]]:
    """What a model is told beside the images: nothing, or boxes to look at, the same for each."""
    if not MODELS[name].get("proposals"):
        return []
    height, width = images.shape[-2:]
    boxes = [torch.tensor([[0.0, 0.0, width, height]])]
    for side in (height // 4, height // 3, height // 2):
        y, x = torch.arange(0, height - side + 1, 4), torch.arange(0, width - side + 1, 4)
        corner = torch.cartesian_prod(x, y)  # (windows, 2)
        boxes.append(torch.cat([corner, corner + side], dim=1).float())
    return [[torch.cat(boxes)] * len(images)]


def test_there_are_models_for_every_part_of_the_contract() -> None:
    assert {"yolo", "classifier"} <= MODELS.keys()
    assert {"darknet_tiny", "yolov1", "yolov1_20", "timm", "resnet18"} <= set(BACKBONES)
    assert {"yolo", "cross_entropy", "focal", "bce"} <= set(LOSSES)


@pytest.mark.parametrize("name", MODELS)
def test_the_yaml_says_what_the_model_is(name: str) -> None:
    model = MODELS[name]
    assert model["name"] == name
    assert model["tasks"]
    assert 1950 < model["year"] < 2100
    assert model["about"]
    assert "\n" not in model["about"]
    figure = model["about"].rpartition("; ")[2]
    assert any(c.isdigit() for c in figure), "the paper's headline figure stands last"
    assert model["paper"]
    assert model["default_resize"] in ("stretch", "letterbox")
    assert set(model.get("losses", [])) <= set(LOSSES)


@pair
@pytest.mark.parametrize("objects", OBJECTS)
def test_loss_is_finite_whatever_the_targets(
    name: str, task: str, objects: str, build_model: Build, make_batch: MakeBatch
) -> None:
    model = build_model(*overrides(name, task))
    images, targets = make_batch(task, OBJECTS[objects], SIZE)
    terms = model.train().loss(images, targets, *given(name, images))
    assert all(v.ndim == 0 and torch.isfinite(v) for v in terms.values())
    assert total_loss(terms).requires_grad
    assert not any(v.requires_grad for k, v in terms.items() if k.startswith("num_"))


@pair
def test_every_trainable_parameter_gets_a_gradient(
    name: str, task: str, build_model: Build, make_batch: MakeBatch
) -> None:
    model = build_model(*overrides(name, task))
    images, targets = make_batch(task, OBJECTS["full"], SIZE)
    zero: list[str] = []
    for places in ((), SMALL, LARGE):
        # A layer may see objects of one size alone.
        if places and task in ("detection", "instance_segmentation"):
            for target, (center, share) in zip(targets, places, strict=True):
                assert target.boxes is not None
                box = [center - share / 2] * 2 + [center + share / 2] * 2
                target.boxes[0] = torch.tensor(box) * SIZE
                if target.masks is not None:
                    low, high = (round(v * SIZE) for v in (box[0], box[2]))
                    target.masks[0] = False
                    target.masks[0, low:high, low:high] = True
        with torch.no_grad():  # some start at 0 on purpose, and hide those before them
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.01)
        total_loss(model.train().loss(images, targets, *given(name, images))).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
        zero = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
        if not zero:
            break
    assert not zero


@pair
@pytest.mark.parametrize("training", [True, False])
def test_predict_restores_the_mode_and_changes_nothing(
    name: str, task: str, training: bool, build_model: Build, make_batch: MakeBatch
) -> None:
    model = build_model(*overrides(name, task)).train(training)
    frozen = next(m for m in model.modules() if not list(m.children()))
    frozen.eval()  # a part in another mode keeps it
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images, targets = make_batch(task, OBJECTS["full"], SIZE)
    first = model.predict(images, *given(name, images))
    _, second = model.loss_and_predict(images, targets, *given(name, images))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)


@pair
def test_predictions_are_inside_the_image_and_finite(
    name: str, task: str, build_model: Build, make_batch: MakeBatch
) -> None:
    model = build_model(*overrides(name, task))
    with torch.no_grad():  # far from the calm start
        for p in model.parameters():
            p.add_(torch.randn_like(p) * p.std(correction=0).clamp(min=0.01))
    for images in (
        make_batch(task, OBJECTS["full"], SIZE)[0],
        torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8),
        torch.full((2, 3, SIZE, SIZE), 255, dtype=torch.uint8),
    ):
        predictions = model.predict(images, *given(name, images))
        assert len(predictions) == len(images)
        for p in predictions:
            assert_well_formed(p, task, SIZE, SIZE)


@pair
def test_training_and_validation_loss_have_the_same_terms(
    name: str, task: str, build_model: Build, make_batch: MakeBatch
) -> None:
    model = build_model(*overrides(name, task))
    images, targets = make_batch(task, OBJECTS["half_empty"], SIZE)
    training = model.train().loss(images, targets, *given(name, images))
    validation, _ = model.loss_and_predict(images, targets, *given(name, images))
    assert training.keys() == validation.keys()
    assert not any(v.requires_grad for v in validation.values())


@pair
def test_the_config_round_trips_through_a_checkpoint(
    name: str, task: str, compose_config: Build, make_batch: MakeBatch, tmp_path: Path
) -> None:
    config = compose_config(*overrides(name, task))["model"]
    model = instantiate(config, where="model", num_classes=3)
    torch.save({"config": config, "state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = instantiate(content["config"], where="model", num_classes=3)
    again.load_state_dict(content["state_dict"])
    images, _ = make_batch(task, OBJECTS["full"], SIZE)
    more = given(name, images)
    for a, b in zip(model.predict(images, *more), again.predict(images, *more), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize(("name", "task"), WITH_BACKBONE)
def test_the_model_keeps_the_backbone_under_its_name(
    name: str, task: str, build_model: Build
) -> None:
    """``backbone.weights=CHECKPOINT`` looks for it there."""
    keys = build_model(*overrides(name, task)).state_dict()
    assert any(k.startswith("backbone.") for k in keys)


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(b, marks=pytest.mark.slow) if b in RELATED else b for b in BACKBONES],
)
@pytest.mark.parametrize(("name", "task"), WITH_BACKBONE)
def test_every_pairing_instantiates_on_the_meta_device(
    name: str, task: str, backbone: str, compose_config: Build
) -> None:
    side = MODELS[name]["default_image_size"]
    if "timm_backbone" in (CONF / "backbone" / f"{backbone}.yaml").read_text():
        side -= side % 32  # transformers take whole patches alone
    words = (f"task={task}", f"model={name}", "data=shapes", f"data.image_size={side}")
    config = compose_config(*words, backbone=backbone)
    model, message = None, ""
    try:
        with torch.device("meta"):
            model = instantiate(config["model"], where="model", num_classes=20)
    except UsageError as error:
        message = str(error)
    if message:
        assert backbone in SHALLOW, message
        assert "choose another backbone" in message
        return
    assert isinstance(model, Model)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if "backbone" not in m])
def test_a_model_without_a_backbone_instantiates_on_the_meta_device(
    name: str, compose_config: Build
) -> None:
    config = compose_config(f"task={MODELS[name]['tasks'][0]}", f"model={name}", "data=shapes")
    with torch.device("meta"):
        model = instantiate(config["model"], where="model", num_classes=20)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "task", "backbone"),
    [(*p, BACKBONES[i % len(BACKBONES)]) for i, p in enumerate(WITH_BACKBONE)],
)
def test_a_backbone_in_place_is_the_one_chosen(
    name: str, task: str, backbone: str, compose_config: Build
) -> None:
    """For every model and every backbone: pairings need not be composed one by one."""
    words = (f"task={task}", f"model={name}", "data=shapes", "data.image_size=96")
    chosen = compose_config(*words, f"backbone={backbone}")
    assert compose_config(*words, backbone=backbone) == chosen


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_a_module(loss: str, compose_config: Build) -> None:
    built = instantiate(compose_config("data=shapes", f"loss={loss}")["loss"], where="loss")
    assert isinstance(built, torch.nn.Module)


@pytest.mark.parametrize(
    ("name", "task", "loss"),
    [(n, t, c) for n, t in PAIRS if "loss" in MODELS[n] for c in MODELS[n].get("losses", LOSSES)],
)
def test_every_loss_a_model_names_works_with_it(
    name: str, task: str, loss: str, build_model: Build, make_batch: MakeBatch
) -> None:
    model = build_model(*overrides(name, task), f"loss={loss}")
    images, targets = make_batch(task, OBJECTS["half_empty"], SIZE)
    terms = model.loss(images, targets, *given(name, images))
    assert torch.isfinite(total_loss(terms))


@pair
@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart(
    name: str, task: str, build_model: Build, compose_config: Build, make_batch: MakeBatch
) -> None:
    monitor = compose_config(*shipped(name, task))["task"]["monitor"]
    model = build_model(*shipped(name, task), *LEARNABLE.get(name, [])).train()
    images, targets = make_batch(task, [1, 2, 3, 1], SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    metrics = metrics_for(task, Classes.from_names(["red", "green", "blue"]))
    value, truths = 0.0, targets
    for step in range(1, 401):
        model.on_epoch_start((step - 1) // 40, 10)  # some learn one thing after the other
        loss = total_loss(model.loss(images, targets, *given(name, images)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if step % 40 == 0:
            metrics.reset()
            infos = [ImageInfo(i, f"{i}", f"{i}", SIZE, SIZE) for i in range(len(images))]
            predictions = model.predict(images, *given(name, images))
            if task == "instance_segmentation":  # compared as RLE
                predictions = [pasted(p) for p in predictions]
                truths = [with_rles(t) for t in targets]
            metrics.update(predictions, truths, infos)
            value = metrics.compute()[monitor]
            if value >= 0.95:
                break
    assert value >= 0.95


def pasted(p: Prediction) -> Prediction:
    """A prediction of the small images as the metric takes it."""
    assert p.boxes is not None
    assert p.mask_probs is not None
    rles = paste_rles(p.mask_probs.numpy(), p.boxes.numpy(), SIZE, SIZE)
    return replace(p, mask_probs=None, rles=rles)


def with_rles(target: Target) -> Target:
    assert target.masks is not None
    return replace(target, masks=None, rles=rles_from_masks(target.masks.numpy()))


def assert_equal(a: Prediction, b: Prediction) -> None:
    for key, value in vars(a).items():
        other = getattr(b, key)
        assert (value is None) == (other is None)
        if value is not None:
            torch.testing.assert_close(value, other, rtol=0, atol=0)


def assert_well_formed(p: Prediction, task: str, height: int, width: int) -> None:
    if task in ("classification", "localization"):
        assert p.probs is not None
        assert p.probs.shape == (3,)
        torch.testing.assert_close(p.probs.sum(), torch.tensor(1.0))
    if task == "multilabel_classification":
        assert p.probs is not None
        assert p.probs.shape == (3,)
        assert ((p.probs >= 0) & (p.probs <= 1)).all()
    if task == "semantic_segmentation":
        assert p.mask is not None
        assert p.mask.shape == (height, width)
        assert 0 <= p.mask.min() <= p.mask.max() < 3
    if task in ("localization", "detection", "instance_segmentation"):
        assert p.boxes is not None
        assert p.boxes.dtype == torch.float32
        assert p.boxes.shape[1:] == (4,)
        assert torch.isfinite(p.boxes).all()
        assert (p.boxes >= 0).all()
        assert (p.boxes <= torch.tensor([width, height, width, height])).all()
        assert (p.boxes[:, 2:] >= p.boxes[:, :2]).all()
    if task == "localization":
        assert p.labels is not None
        assert 1 <= len(p.labels) == len(p.labels.unique()) <= 5  # one guess a class
    if task in ("localization", "detection", "instance_segmentation"):
        assert p.boxes is not None
        assert p.scores is not None
        assert p.labels is not None
        assert len(p.scores) == len(p.labels) == len(p.boxes)
        assert ((p.scores >= 0) & (p.scores <= 1)).all()
        assert (p.scores.diff() <= 0).all()
        assert ((p.labels >= 0) & (p.labels < 3)).all()
    if task == "instance_segmentation":
        assert p.boxes is not None
        assert p.mask_probs is not None
        assert p.mask_probs.dtype == torch.float32
        assert p.mask_probs.ndim == 3
        assert len(p.mask_probs) == len(p.boxes)
        assert p.mask_probs.shape[1] == p.mask_probs.shape[2] > 1  # where there is no object too
        assert ((p.mask_probs >= 0) & (p.mask_probs <= 1)).all()
