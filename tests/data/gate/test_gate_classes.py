"""Classes of the splits together: what val lacks is a note, what it adds an error, by format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.id_masks import IdMasksReader
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.data.gate.run import GateReport, run_gate
from cvtrain.data.table import Classes, Problem

DRAWS = np.random.default_rng(5)
Labels = dict[str, list[str]]
"""Split -> a class for each of its images."""


def noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(DRAWS.integers(0, 256, (30, 40, 3), np.uint8)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def folder(root: Path, labels: Labels, named: bool) -> Any:
    for split, names in labels.items():
        for i, name in enumerate(names):
            noise(root / split / name / f"{i}.png")
    return FolderReader(root, names=["cat", "dog", "emu"] if named else None), "classification"


def csv(root: Path, labels: Labels, named: bool) -> Any:
    for split, names in labels.items():
        rows = "".join(f"{split}{i}.png,{name}\n" for i, name in enumerate(names))
        text(root / f"{split}.csv", f"image,label\n{rows}")
        for i in range(len(names)):
            noise(root / f"{split}{i}.png")
    return CSVReader(root, names=["cat", "dog", "emu"] if named else None), "classification"


def voc(root: Path, labels: Labels, named: bool) -> Any:
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>20</ymax></bndbox>"
    for split, names in labels.items():
        for i, name in enumerate(names):
            noise(root / split / f"{i}.png")
            item = f"<object><name>{name}</name>{box}</object>"
            text(root / split / f"{i}.xml", f"<annotation>{item}</annotation>")
    return VOCReader(root, names=["cat", "dog", "emu"] if named else None), "detection"


def coco(root: Path, labels: Labels, named: bool) -> Any:
    every = ["cat", "dog", "emu"]
    for split, names in labels.items():
        for i in range(len(names)):
            noise(root / split / f"{i}.png")
        own = every if named else [name for name in every if name in names]
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(len(names))]
        annotations = [
            {"id": i, "image_id": i, "category_id": every.index(name), "bbox": [5, 5, 20, 15]}
            for i, name in enumerate(names)
        ]
        categories = [{"id": every.index(name), "name": name} for name in own]
        content = {"images": images, "annotations": annotations, "categories": categories}
        text(root / f"{split}.json", json.dumps(content))
    return COCOReader(root), "detection"


def yolo(root: Path, labels: Labels, named: bool) -> Any:
    every = ["cat", "dog", "emu"]
    for split, names in labels.items():
        for i, name in enumerate(names):
            noise(root / f"images/{split}/{i}.png")
            text(root / f"labels/{split}/{i}.txt", f"{every.index(name)} 0.5 0.5 0.4 0.4\n")
    places = "".join(f"{split}: images/{split}\n" for split in labels)
    text(root / "data.yaml", f"{places}names: [cat, dog, emu]\n")
    return YOLOReader(root), "detection"


def masks(root: Path, labels: Labels, named: bool) -> Any:
    every = ["cat", "dog", "emu"]
    for split, names in labels.items():
        for i, name in enumerate(names):
            noise(root / f"images/{split}/{i}.png")
            (root / f"masks/{split}").mkdir(parents=True, exist_ok=True)
            mask = Image.new("L", (40, 30), every.index(name))
            mask.save(root / f"masks/{split}/{i}.png")
    return MasksReader(root, names=every if named else None), "semantic_segmentation"


def id_masks(root: Path, labels: Labels, named: bool) -> Any:
    every = ["cat", "dog", "emu"]
    for split, names in labels.items():
        for i, name in enumerate(names):
            noise(root / f"images/{split}/{i}.png")
            (root / f"instances/{split}").mkdir(parents=True, exist_ok=True)
            mask = np.zeros((30, 40), np.uint16)
            mask[5:20, 5:20] = (every.index(name) + 1) * 1000
            Image.fromarray(mask).save(root / f"instances/{split}/{i}.png")
    reader = IdMasksReader(root, divisor=1000, names=every if named else None)
    return reader, "instance_segmentation"


FORMATS = [folder, csv, voc, coco, yolo, masks, id_masks]
WHERE_NAMED = {yolo}
"""Formats whose classes are always named in one place."""


def check(made: tuple[Any, str], **options: Any) -> GateReport:
    reader, task = made
    return run_gate(reader, task, strict=False, progress=False, workers=1, **options)


def said(report: GateReport) -> list[tuple[str, str, str]]:
    found = [p for p in report.problems if p.code.startswith("class")]
    return [(p.code, p.split, p.severity) for p in found]


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("make", FORMATS)
def test_a_class_that_only_train_has_is_a_note(make: Callable[..., Any], split, tmp_path) -> None:
    labels = {"train": ["cat", "dog", "emu"], "val": ["cat", "dog", "emu"]}
    labels[split] = ["dog", "dog"]
    report = check(make(tmp_path, labels, named=False))
    assert said(report) == [("classes-absent", split, "note")]
    (note,) = [p for p in report.notes if p.code == "classes-absent"]
    first, last = ("1", "3") if make is id_masks else ("0", "2")
    names = f"{first!r}, {last!r}" if make in (masks, id_masks) else "'cat', 'emu'"
    assert note.message == f"{split} has nothing of {names}, which train has"
    assert report.stopping == []
    assert len({table.classes for table in report.tables.values()}) == 1
    table = report.tables[split]
    if make is folder:
        assert table.classes.names == ("cat", "dog", "emu")
        assert table.image_labels.tolist() == [1, 1]


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("make", FORMATS)
def test_a_class_that_train_lacks_is_an_error(make: Callable[..., Any], split, tmp_path) -> None:
    labels = {"train": ["cat", "dog"], "val": ["cat", "dog"]}
    labels[split] = ["cat", "dog", "emu"]
    report = check(make(tmp_path, labels, named=False))
    if make in WHERE_NAMED:
        assert said(report) == [("class-unused", "train", "note")]
        return
    assert said(report) == [("classes-differ", split, "error")]
    (error,) = report.errors
    name = {masks: "2", id_masks: "3"}.get(make, "emu")
    assert error.message == f"{split} has {name!r}, a class that train does not have"
    assert report.stopping == [error]
    assert check(make(tmp_path, labels, named=False), on_bad="fix").stopping == []


@pytest.mark.parametrize("make", FORMATS)
def test_a_class_that_is_named_may_lack_images(make: Callable[..., Any], tmp_path) -> None:
    labels = {"train": ["cat", "dog"], "val": ["cat", "dog", "emu"]}
    report = check(make(tmp_path, labels, named=True))
    assert said(report) == [("class-unused", "train", "note")]
    assert report.notes[0].message == "class 'emu' never occurs in train, but in val"


def test_a_class_that_is_not_chosen_may_differ(tmp_path) -> None:
    labels = {"train": ["cat", "dog", "emu"], "val": ["cat", "dog", "fox"]}
    report = check(folder(tmp_path, labels, named=False), classes=["cat", "dog"])
    assert report.errors == []
    assert "classes-absent" not in [p.code for p in report.notes]


def test_a_readers_own_tables_may_lack_classes(dataset, box) -> None:
    dataset.classes = {
        "train": Classes(("cat", "dog", "emu"), (3, 9, 12)),
        "val": Classes(("dog",), (9,)),
    }
    dataset.add("a.png", boxes=[box] * 3, labels=[0, 1, 2])
    dataset.add("v.png", split="val", boxes=[box], labels=[0])
    report = dataset.gate("detection", check_boxes=False)
    assert [p.code for p in report.problems if p.code.startswith("class")] == ["classes-absent"]
    assert report.tables["val"].classes == dataset.classes["train"]
    assert report.tables["val"].labels.tolist() == [1]
    dataset.classes["val"] = Classes(("dog",), (8,))
    (error,) = [p for p in dataset.gate("detection").errors if p.code == "classes-differ"]
    assert error.message == (
        "val has the classes 1: dog, train has 3: cat, dog, emu: 'dog' has another id"
    )


def test_a_readers_own_masks_may_lack_classes(dataset) -> None:
    dataset.kinds = frozenset({"mask"})
    dataset.classes = {"val": Classes.from_names(["cat"])}
    for split, value in (("train", 1), ("val", 0)):
        mask = np.zeros((40, 60), np.uint8)
        mask[20:] = value
        dataset.save(f"m-{split}.png", Image.fromarray(mask))
        dataset.add(f"{split}.png", split=split, mask=f"m-{split}.png")
    report = dataset.gate("semantic_segmentation")
    assert dict.fromkeys(p.code for p in report.problems) == {"classes-absent": None}
    assert report.tables["val"].class_values.tolist() == [0, 1]


# Notes beside errors -----------------------------------------------------------------------------


def of(report: GateReport, *codes: str) -> list[Problem]:
    return [p for p in report.problems if p.code in codes]


@pytest.mark.parametrize("on_bad", ["error", "drop"])
def test_an_image_whose_line_is_malformed_is_not_called_empty(tmp_path, on_bad) -> None:
    labels = {"train": ["cat", "dog", "emu"], "val": ["cat", "dog", "emu"]}
    made = yolo(tmp_path, labels, named=True)
    text(tmp_path / "labels/train/0.txt", "0 0.5\n")
    text(tmp_path / "labels/train/1.txt", "\n")
    report = check(made, on_bad=on_bad, allow_empty=True)
    assert [p.file for p in of(report, "image-without-annotation")] == ["images/train/1.png"]
    absent = of(report, "class-unused", "classes-absent")
    assert [p.message for p in absent] == ["class 'dog' never occurs in train, but in val"]
    dropped = [p.message for p in of(report, "class-dropped")]
    assert dropped == ["all that train has of 'cat' is dropped"] * (on_bad == "drop")


def test_classes_are_not_called_unused_where_labels_cannot_be_read(tmp_path) -> None:
    labels = {"train": ["cat", "dog"], "val": ["cat", "dog"]}
    made = yolo(tmp_path, labels, named=True)
    assert [p.code for p in check(made).problems] == ["class-unused"]
    (tmp_path / "labels/train/0.txt").write_bytes(b"\xff")
    made = YOLOReader(tmp_path), "detection"
    assert [p.code for p in check(made).problems] == ["label-malformed"]


def test_images_are_not_called_unlisted_where_the_yaml_is_wrong(tmp_path) -> None:
    labels = {"train": ["cat", "dog", "emu"], "val": ["cat", "dog", "emu"]}
    yolo(tmp_path, labels, named=True)
    noise(tmp_path / "images/other/o.png")
    assert [p.code for p in check((YOLOReader(tmp_path), "detection")).problems] == [
        "file-unlisted"
    ]
    config = tmp_path / "data.yaml"
    good = config.read_text()
    for wrong in ("names: [a, a]\n", good.replace("images/train", "gone"), good + "nc: 7\n"):
        config.write_text(wrong)
        report = check((YOLOReader(tmp_path), "detection"))
        assert report.errors
        assert [p.code for p in report.notes] == []


def test_an_image_that_is_named_in_another_way_is_not_called_unlisted(tmp_path) -> None:
    rows = "old/a.png,cat\nb.png,dog\n"
    text(tmp_path / "labels.csv", f"image,label\n{rows}")
    for name in ("sub/a.png", "b.png", "c.png"):
        noise(tmp_path / name)
    report = check((CSVReader(tmp_path), "classification"))
    assert [p.file for p in of(report, "file-unlisted")] == ["c.png"]


def test_annotations_that_are_lost_are_counted(tmp_path) -> None:
    labels = {"train": ["cat", "dog"], "val": ["cat", "dog"]}
    coco(tmp_path, labels, named=False)
    content = json.loads((tmp_path / "train.json").read_text())
    content["annotations"][0]["iscrowd"] = 5
    text(tmp_path / "train.json", json.dumps(content))
    report = check((COCOReader(tmp_path), "detection"))
    assert [p.code for p in report.problems] == ["annotation-malformed"]
    content["annotations"][0].update(iscrowd=0, image_id=77)
    text(tmp_path / "train.json", json.dumps(content))
    report = check((COCOReader(tmp_path), "detection"))
    assert [p.code for p in report.problems] == ["image-unknown"]


def test_masks_that_cannot_be_read_leave_classes_open(tmp_path) -> None:
    labels = {"train": ["cat", "dog", "emu"], "val": ["cat", "dog", "emu"]}
    made = masks(tmp_path, labels, named=True)
    (tmp_path / "masks/train/1.png").write_bytes(b"no mask")
    assert [p.code for p in check(made).problems] == ["mask-unreadable"]
