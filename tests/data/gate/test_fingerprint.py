"""What a resumed run notices of its data, and what it may not mistake for a change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.data.datamodule import DataModule
from cvtrain.data.fingerprint import Fingerprint

OUTLINE = b"[[5, 5, 25, 5, 25, 30]]"


@pytest.fixture
def print_of(dataset) -> Callable[[str], Fingerprint]:
    def make(task: str) -> Fingerprint:
        return Fingerprint.of(DataModule(dataset.gate(task).tables, task, image_size=32))

    return make


@pytest.fixture
def boxed(dataset, box) -> Any:
    dataset.kinds = frozenset({"boxes", "segments"})
    for name in ("a.png", "b.png"):
        boxes, segments = [box, [30.0, 2.0, 50.0, 20.0]], [OUTLINE, b"[[30, 2, 50, 2, 50, 20]]"]
        dataset.add(name, boxes=boxes, labels=[0, 1], segments=segments)
    return dataset


def swap(row: Any) -> None:
    for name in ("boxes", "labels", "segments"):
        setattr(row, name, getattr(row, name)[::-1])


def change(name: str, value: Any) -> Callable[[Any], None]:
    return lambda row: setattr(row, name, value)


@pytest.mark.parametrize(
    ("edit", "task", "noticed"),
    [
        (change("labels", [0, 0]), "detection", True),
        (change("flags", [0, 1]), "detection", True),
        (change("boxes", [[5.0, 5.0, 25.0, 30.0], [30.0, 2.0, 50.0, 21.0]]), "detection", True),
        (change("segments", [OUTLINE, b"[[30, 2, 50, 3, 50, 20]]"]), "detection", False),
        (change("segments", [OUTLINE, b"[[30, 2, 50, 3, 50, 20]]"]), "instance_segmentation", True),
        (swap, "instance_segmentation", False),
    ],
)
def test_annotations_that_the_task_reads(boxed, print_of, edit, task, noticed) -> None:
    before = print_of(task)
    assert before.changes(print_of(task)) == []
    edit(boxed.rows["train"][1])
    expected = ["1 image is annotated differently (b.png)"] if noticed else []
    assert before.changes(print_of(task)) == expected


def test_images_and_splits(boxed, print_of, box) -> None:
    boxed.add("c.png", boxes=[box])
    before = print_of("detection")
    boxed.rows["val"] = [boxed.rows["train"].pop(0)]
    boxed.rows["train"].pop(0)
    boxed.add("d\x1b[1m.png", boxes=[box])
    boxed.save("c.png")
    assert sorted(before.changes(print_of("detection"))) == [
        "1 image is changed in its pixels (c.png)",
        "1 image is gone (b.png)",
        "1 image is in another split (a.png)",
        "1 image is new (d\\x1b[1m.png)",
    ]


def test_a_copy_with_other_times_is_the_same_data(boxed, print_of) -> None:
    before = print_of("detection")
    moved = Path(shutil.copytree(boxed.root, boxed.root.with_name("moved")))
    for path in moved.iterdir():
        os.utime(path, ns=(1, 1))
    boxed.root = moved
    assert before.changes(print_of("detection")) == []


def test_masks_and_classes_of_images(dataset, print_of) -> None:
    dataset.kinds = frozenset({"mask", "label"})
    mask = np.zeros((40, 60), np.uint8)
    for name in ("a", "b"):
        dataset.save(f"{name}_mask.png", Image.fromarray(mask))
        dataset.add(f"{name}.png", mask=f"{name}_mask.png", label=0)
    dataset.add("c.png", mask="a_mask.png", label=1)
    masks, labels = print_of("semantic_segmentation"), print_of("classification")
    mask[3, 4] = 1
    dataset.save("b_mask.png", Image.fromarray(mask))
    dataset.rows["train"][0].label = 1
    message = ["1 image is annotated differently (b.png)"]
    assert masks.changes(print_of("semantic_segmentation")) == message
    assert labels.changes(print_of("classification")) == [message[0].replace("b.png", "a.png")]


def test_what_a_checkpoint_holds_of_it(boxed, print_of, tmp_path) -> None:
    boxed.add("caf\udce9.png", boxes=[])
    before = print_of("detection")
    torch.save(before.to_state(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    again = Fingerprint.from_state(state)
    assert again is not None
    assert again.splits["train"].same(before.splits["train"])
    assert again.changes(before) == []
    assert Fingerprint.from_state({**state, "version": 0}) is None
    assert Fingerprint.from_state(None) is None


def test_the_classes_of_a_coco_file_as_a_run_reads_them(tmp_path, monkeypatch) -> None:
    from cvtrain.data.datamodule import build_datamodule

    names = [f"{i}.png" for i in range(4)]
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / name)
    images = [{"id": i, "file_name": n, "width": 60, "height": 40} for i, n in enumerate(names)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [3, 4, 20, 10]} for i in range(4)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    reader = {
        "_target_": "cvtrain.data.formats.coco.COCOReader",
        "root": str(tmp_path),
        "train_json": "train.json",
        "train_images": ".",
    }
    data = {"name": "coco", "root": str(tmp_path), "reader": reader, "on_bad": "error"}
    data |= {"val_fraction": 0.5, "channels": 3, "batch_size": 2, "image_size": 32}
    data |= {"resize": "letterbox", "num_workers": 0, "cache": "none"}

    def read() -> Fingerprint:
        (tmp_path / "train.json").write_text(json.dumps(content))
        module, _ = build_datamodule({"data": data}, "detection", progress=False)
        return Fingerprint.of(module)

    before = read()
    content["annotations"] = boxes[::-1]
    assert before.changes(read()) == []
    boxes[2]["category_id"] = 2
    assert before.changes(read()) == ["1 image is annotated differently (2.png)"]
