"""Boxes from outside go where the image goes, and arrive in the batch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cvtrain.data.collate import collate
from cvtrain.data.datamodule import DataModule, build_datamodule
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.given_boxes import around, corners
from cvtrain.data.table import Table

Tables = Callable[..., dict[str, Table]]


class Truths:
    """Proposals that are the objects themselves, after one tiny box and the whole image."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def boxes(self, file: str) -> SimpleNamespace:
        row = next(i for i in range(len(self.table)) if self.table.files[i] == file)
        height, width = self.table.sizes[row]
        first = [[3, 3, 4, 4], [0, 0, width, height]]
        found = np.concatenate([first, self.table.boxes[self.table.rows(row)]])
        return SimpleNamespace(boxes=found.astype(np.float32))


def module(tables: dict[str, Table], augment: Any = None, **options: Any) -> DataModule:
    settings = {"batch_size": 4, "image_size": [64, 80], "num_workers": 0, **options}
    source = Truths(tables["train"])
    return DataModule(tables, "detection", augment, proposals=source, **settings)


def augment(*targets: str, **options: Any) -> dict[str, Any]:
    nodes = [{"_target_": t, "p": 1.0} for t in targets]
    return {"name": "test", "transforms": nodes, **options}


def test_corners_and_back() -> None:
    boxes = np.array([[1, 2, 5, 9], [0, 0, 10, 10.5]], np.float32)
    points = corners(boxes)
    assert points.shape == (8, 3)
    assert around(points, 20, 20).tolist() == boxes.tolist()
    assert around(points, 6, 4).tolist() == [[1, 2, 4, 6], [0, 0, 4, 6]]
    assert around(points + np.array([100, 0, 0]), 20, 30).tolist() == [[0, 0, 30, 20]], (
        "none is left"
    )
    assert around(corners(np.zeros((0, 4))), 7, 9).tolist() == [[0, 0, 9, 7]]


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_fitted_as_the_objects_are(shapes: Tables, resize: str) -> None:
    tables = shapes(num_train=5)
    dataset = module(tables, resize=resize).dataset("train")
    for row in range(5):
        sample = dataset[row]
        assert sample.proposals is not None
        assert sample.proposals.dtype == np.float32
        np.testing.assert_allclose(sample.proposals[2:], sample.target.boxes, atol=1e-4)
        tiny = sample.proposals[0]
        assert 0 < tiny[2] - tiny[0] < 2, "small boxes stay"
        assert sample.info.placement is not None
        back = sample.info.placement.boxes_to_original(torch.from_numpy(sample.proposals))
        assert back[1].tolist() == pytest.approx([0, 0, 64, 48], abs=1e-3)


@pytest.mark.parametrize(
    "transforms",
    [["albumentations.HorizontalFlip"], ["albumentations.VerticalFlip"], []],
)
def test_augmented_as_the_objects_are(shapes: Tables, transforms: list[str]) -> None:
    tables = shapes(num_train=6)
    dataset = module(tables, augment(*transforms)).dataset("train", train=True)
    plain = module(tables).dataset("train")
    moved = 0
    for row in range(6):
        sample = dataset[1, row]
        assert sample.proposals is not None
        assert len(sample.proposals) == 2 + len(sample.target.boxes)
        np.testing.assert_allclose(sample.proposals[2:], sample.target.boxes, atol=1e-3)
        moved += not np.allclose(sample.proposals, plain[row].proposals, atol=0.5)
    assert moved == (6 if transforms else 0)


def test_crops_and_mosaics_keep_boxes_inside(shapes: Tables) -> None:
    tables = shapes(num_train=6)
    node = augment(mosaic=0.5, min_visibility=0.9)
    node["transforms"] = [{"_target_": "cvtrain.augment.ResizedCrop"}]
    dataset = module(tables, node).dataset("train", train=True)
    counts = set()
    for epoch in range(6):
        for row in range(6):
            boxes = dataset[epoch, row].proposals
            assert boxes is not None
            counts.add(len(boxes))
            assert (boxes >= 0).all()
            assert (boxes[:, [0, 2]] <= 80).all()
            assert (boxes[:, [1, 3]] <= 64).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(counts) > 2


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_them(shapes: Tables, workers: int) -> None:
    tables = shapes(num_train=6)
    data = module(tables, num_workers=workers)
    batch = next(iter(data.loader("train")))
    assert batch.proposals is not None
    assert [len(b) for b in batch.proposals] == [2 + len(t.boxes) for t in batch.targets]
    for boxes, target in zip(batch.proposals, batch.targets, strict=True):
        torch.testing.assert_close(boxes[2:], target.boxes, atol=1e-4, rtol=0)
    assert batch.to("meta").proposals[0].device.type == "meta"


def test_without_a_source_there_are_none(shapes: Tables) -> None:
    tables = shapes(num_train=2)
    dataset = VisionDataset(tables["train"], "detection", height=32, width=32)
    batch = collate([dataset[0], dataset[1]])
    assert batch.proposals is None
    assert batch.to("cpu").proposals is None


def test_localization_has_them_too(shapes: Tables) -> None:
    tables = shapes("localization", num_train=2)
    source = Truths(tables["train"])
    data = DataModule(tables, "localization", num_workers=0, image_size=64, proposals=source)
    assert len(data.dataset("train")[0].proposals) == 3


def test_from_the_config(tmp_path: Any) -> None:
    shared = {"num_train": 3, "num_val": 2, "num_test": 0, "scene_size": 64}
    config = {
        "data": {
            "name": "shapes",
            "reader": {
                "_target_": "cvtrain.data.shapes.ShapesReader", "task": "detection", **shared
            },
            "on_bad": "error", "val_fraction": 0.2, "channels": 3, "batch_size": 2,
            "image_size": 64, "resize": "letterbox", "num_workers": 0, "cache": "none",
        },
        "proposals": {
            "_target_": "cvtrain.proposals.source.SelectiveSearch", "name": "selective_search",
            "mode": "single", "max_boxes": 40,
        },
    }  # fmt: skip
    data, _ = build_datamodule(config, "detection", progress=False)
    assert data.make_boxes().images == len(data.table("train")) + len(data.table("val"))
    batch = next(iter(data.loader("val")))
    assert batch.proposals is not None
    assert [0, 0, 64, 64] in batch.proposals[0].tolist()
    assert all(1 <= len(b) <= 40 for b in batch.proposals)
