"""Models from their YAML, and small batches that any of the tasks can be learned from."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.masks import rles_from_masks, to_masks
from cvtrain.data.table import Table
from cvtrain.instantiate import instantiate
from cvtrain.metrics import metrics_for
from cvtrain.models.base import total_loss
from cvtrain.structures import ImageInfo, Target
from cvtrain.tasks.paste_masks import paste_rles

CONF = Path(__file__).resolve().parents[2] / "conf"
NUM_CLASSES = 3
EPOCHS = 20
COLORS = torch.tensor([[230, 30, 30], [30, 220, 40], [40, 60, 240]], dtype=torch.uint8)


PARTS = ("model", "task", "backbone", "loss")


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., dict[str, Any]]:
    """Overrides -> the composed configuration, resolved, as plain dicts (groups that resolve).

    ``backbone``: a file of conf/backbone put in place of the composed one, which is what choosing
    it composes to and many times faster; test_contract.py compares the two.
    """

    @functools.cache  # Hydra takes longer than most of what is tested
    def composed(overrides: tuple[str, ...]) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=list(overrides))

    def resolved(*overrides: str, backbone: str | None = None) -> dict[str, Any]:
        cfg = composed(overrides)
        if backbone is not None:
            cfg = copy.deepcopy(cfg)
            with open_dict(cfg):
                cfg.backbone = OmegaConf.load(CONF / "backbone" / f"{backbone}.yaml")
        return {p: OmegaConf.to_container(cfg[p], resolve=True) for p in PARTS}

    return resolved


@pytest.fixture(scope="session")
def build_model(compose_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Overrides -> a model, with the weights that seed 0 gives."""

    def build(*overrides: str, num_classes: int = NUM_CLASSES) -> Any:
        torch.manual_seed(0)
        return instantiate(
            compose_config(*overrides)["model"], where="model", num_classes=num_classes
        )

    return build


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Tensor, list[Target]]]:
    """A batch of colored rectangles on noise; the color is the class.

    ``objects``: how many there are on each image. Targets have what the task needs; an image
    without objects is all void to semantic segmentation, and to classification it is of class 0.
    """

    def make(task: str, objects: list[int], size: int = 64) -> tuple[Tensor, list[Target]]:
        generator = torch.Generator().manual_seed(7)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        shape = (len(objects), 3, size, size)
        images = torch.randint(90, 160, shape, dtype=torch.uint8, generator=generator)
        targets = []
        for i, count in enumerate(objects):
            # One object in each corner at most: none hides another, and no cell holds two centers.
            boxes, labels, masks = [], [], []
            places = range(count)
            if task == "localization":  # one object per image, each in another corner
                places = range(i % 4, i % 4 + min(count, 1))
            semantic = torch.full((size, size), 255 if count == 0 else 0)
            for corner in places:
                left, top = (corner % 2) * size // 2, (corner // 2) * size // 2
                w, h = draw(size // 4, size // 2), draw(size // 4, size // 2)
                x, y = left + draw(0, size // 2 - w + 1), top + draw(0, size // 2 - h + 1)
                # One class an image where the image has one label.
                single = task in ("classification", "localization")
                label = i % NUM_CLASSES if single else draw(0, NUM_CLASSES)
                images[i, :, y : y + h, x : x + w] = COLORS[label][:, None, None]
                mask = torch.zeros(size, size, dtype=torch.bool)
                mask[y : y + h, x : x + w] = True
                semantic[mask] = label
                boxes.append([x, y, x + w, y + h])
                labels.append(label)
                masks.append(mask)
            targets.append(_target(task, boxes, labels, masks, semantic, i % NUM_CLASSES))
        return images, targets

    return make


def _target(
    task: str,
    boxes: list[list[int]],
    labels: list[int],
    masks: list[Tensor],
    semantic: Tensor,
    label: int,
) -> Target:
    whole = torch.tensor(label)
    if task == "classification":
        return Target(label=whole)
    if task == "multilabel_classification":
        present = torch.zeros(NUM_CLASSES)
        present[labels] = 1.0
        return Target(probs=present)
    if task == "semantic_segmentation":
        return Target(mask=semantic)
    found = Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        ignore=torch.zeros(len(labels), dtype=torch.bool),
    )
    if task == "localization":
        found.label = whole
    if task == "instance_segmentation":
        size = semantic.shape[-1]
        found.masks = torch.stack(masks) if masks else torch.zeros(0, size, size, dtype=torch.bool)
    return found


@pytest.fixture(scope="session")
def learn_photographs(build_model: Callable[..., Any]) -> Callable[..., float]:
    """Train the shipped configuration of a detector on 16 photographs; the mAP50 it reaches there.

    ``settings`` are those of ``by_heart``. ``propose`` gives a model that is told where to look its
    boxes: an image ``(H, W, 3)`` uint8 -> ``(P, 4)``.
    """

    def learn(
        root: Path,
        *words: str,
        size: int = 224,
        propose: Callable[[np.ndarray], np.ndarray] | None = None,
        **settings: Any,
    ) -> float:
        table = VOCReader(root=str(root)).read("train").table
        images, targets = photographs(table, 16, size)
        base = ("task=detection", "data=shapes", f"data.image_size={size}")
        model = build_model(*base, *words, num_classes=len(table.classes)).train()
        boxes = None
        if propose is not None:
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, W, 3)
            boxes = [torch.from_numpy(propose(image)).float() for image in pixels]
        metrics = metrics_for("detection", table.classes)
        infos = [ImageInfo(i, f"{i}", f"{i}", size, size) for i in range(len(images))]

        def score() -> float:
            metrics.reset()
            metrics.update(model.predict(images, boxes), targets, infos)
            return metrics.compute()["mAP50"]

        return by_heart(model, images, targets, score, boxes, **settings)

    return learn


@pytest.fixture(scope="session")
def learn_outlines(build_model: Callable[..., Any]) -> Callable[..., float]:
    """Train a model of instances on 16 images of a table, as ``by_heart`` does; the lower of the
    mAP50 of masks and of boxes it reaches there.
    """

    def learn(table: Table, *words: str, size: int, **settings: Any) -> float:
        images, targets = outlines(table, 16, size)
        base = ("task=instance_segmentation", "data=shapes", f"data.image_size={size}")
        model = build_model(*base, *words, num_classes=len(table.classes)).train()
        metrics = metrics_for("instance_segmentation", table.classes)
        infos = [ImageInfo(i, f"{i}", f"{i}", size, size) for i in range(len(images))]
        truths = [replace(t, masks=None, rles=rles_from_masks(t.masks.numpy())) for t in targets]

        def score() -> float:
            found = []
            for p in model.predict(images):
                rles = paste_rles(p.mask_probs.numpy(), p.boxes.double().numpy(), size, size)
                found.append(replace(p, mask_probs=None, rles=rles))
            metrics.reset()
            metrics.update(found, truths, infos)
            values = metrics.compute()
            return min(values["mask_mAP50"], values["mAP50"])

        return by_heart(model, images, targets, score, **settings)

    return learn


def by_heart(
    model: Any,
    images: Tensor,
    targets: list[Target],
    score: Callable[[], float],
    boxes: list[Tensor] | None = None,
    steps: int = 300,
    lr: float = 2e-3,
    batch: int = 16,
    one_cycle: bool = False,
) -> float:
    """From scratch, AdamW without augmentation, until ``score`` says 0.95 or for ``steps`` steps of
    ``batch`` images, tried after every 30: what it said last.

    The steps make ``EPOCHS`` epochs, for models of several phases.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    if one_cycle:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    value = 0.0
    for step in range(1, steps + 1):
        model.on_epoch_start((step - 1) * EPOCHS // steps, EPOCHS)
        part = [(step * batch + i) % len(images) for i in range(batch)]
        given = None if boxes is None else [boxes[i] for i in part]
        loss = total_loss(model.loss(images[part], [targets[i] for i in part], given))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % 30 == 0 or step == steps:
            value = score()
            if value >= 0.95:
                break
    return value


def photographs(table: Table, count: int, size: int) -> tuple[Tensor, list[Target]]:
    """The first images of a table, stretched to ``size`` x ``size``, and their objects."""
    images, targets = [], []
    for i in range(count):
        image = Image.open(Path(table.root, table.files[i])).convert("RGB")
        boxes = table.boxes[table.rows(i)] * ([size / image.width, size / image.height] * 2)
        array = np.array(image.resize((size, size), Image.Resampling.BILINEAR))
        images.append(torch.from_numpy(array).permute(2, 0, 1))  # (H, W, 3) -> (3, H, W)
        targets.append(
            Target(
                boxes=torch.from_numpy(boxes).float(),
                labels=torch.from_numpy(table.labels[table.rows(i)]),
                ignore=torch.zeros(len(boxes), dtype=torch.bool),
            )
        )
    return torch.stack(images), targets


def outlines(table: Table, count: int, size: int) -> tuple[Tensor, list[Target]]:
    """The upper left ``size`` x ``size`` pixels of the first images of a table that has segments,
    and the objects that have pixels there.
    """
    images, targets = [], []
    for i in range(count):
        if table.generator is not None:
            array = table.generator(table.files[i])
        else:
            array = np.array(Image.open(Path(table.root, table.files[i])).convert("RGB"))
        images.append(torch.from_numpy(array[:size, :size]).permute(2, 0, 1))  # -> (3, H, W)
        rows = table.rows(i)
        masks = to_masks(table.segments, rows, *array.shape[:2])[:, :size, :size]  # (N, H, W)
        seen = masks.any(axis=(1, 2))
        masks = torch.from_numpy(masks[seen].astype(bool))
        targets.append(
            Target(
                boxes=masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0]),
                labels=torch.from_numpy(table.labels[rows][seen]),
                ignore=torch.zeros(len(masks), dtype=torch.bool),
                areas=masks.flatten(1).sum(dim=1).double(),
                masks=masks,
            )
        )
    return torch.stack(images), targets
