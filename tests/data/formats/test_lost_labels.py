"""What labels cost which task, in every format, and what ``on_bad=fix`` makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.data.gate.run import run_gate

NAN = [float("nan")] * 4


def noise(make, *names: str) -> None:
    for k, name in enumerate(names):
        path = make.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(k)
        Image.fromarray(draws.integers(0, 256, (40, 60, 3), np.uint8)).save(path)


def coco(make, annotations: list) -> COCOReader:
    noise(make, "train/a.png", "val/b.png")
    record = {"id": 1, "file_name": "a.png", "width": 60, "height": 40}
    make.coco("train.json", [record], annotations)
    good = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 25]}
    polygon = {"segmentation": [[5, 5, 25, 5, 25, 30, 5, 30]]}
    make.coco("val.json", [{**record, "file_name": "b.png"}], [{**good, **polygon}])
    return COCOReader(make.root)


def annotation(k: int, **more) -> dict:
    box = [5.0 + 3 * k, 5.0, 20.0, 25.0]
    return {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, **more}


def check(reader, task, **options):
    return run_gate(reader, task, progress=False, workers=1, strict=False, **options)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: {**a, "bbox": [str(v) for v in a["bbox"]]},
        lambda a: {**a, "image_id": "1", "category_id": "1", "id": str(a["id"])},
    ],
    ids=["quoted box", "text ids"],
)
def test_fix_reads_quoted_numbers_and_trains_on_all(make, spoil) -> None:
    reader = coco(make, [spoil(annotation(k)) for k in range(4)])
    assert check(reader, "detection").stopping
    report = check(reader, "detection", on_bad="fix")
    assert report.stopping == []
    assert report.tables["train"].boxes.tolist() == [
        [5 + 3 * k, 5, 25 + 3 * k, 30] for k in range(4)
    ]
    assert report.counts["train"].annotations_used == 4


def test_drop_leaves_quoted_boxes_out_and_then_stops(make) -> None:
    reader = coco(make, [annotation(k, bbox=["1", "1", "9", "9"]) for k in range(4)])
    stops = check(reader, "detection", on_bad="drop").stopping
    assert [p.message for p in stops] == ["train lost 4 of 4 objects: box-as-text 4"]


@pytest.mark.parametrize("task", ["instance_segmentation", "semantic_segmentation"])
def test_flat_polygons(make, task: str) -> None:
    flat = [5, 5, 25, 5, 25, 30, 5, 30]
    rings = [[v + 3 * k * (i % 2 == 0) for i, v in enumerate(flat)] for k in range(3)]
    reader = coco(make, [annotation(k, segmentation=rings[k]) for k in range(3)])
    assert {p.code for p in check(reader, task).stopping} == {"segment-form"}
    report = check(reader, task, on_bad="fix")
    assert report.stopping == []
    table = report.tables["train"]
    assert [json.loads(table.segments[k]) for k in range(3)] == [[ring] for ring in rings]
    stops = check(reader, task, on_bad="drop").stopping
    assert [p.code for p in stops] == ["labels-lost"]


@pytest.mark.parametrize("task", ["detection", "localization", "multilabel_classification"])
@pytest.mark.parametrize("segmentation", [[5, 5, 25, 5, 25, 30], "x", [[1, 2, 3]], {"counts": 1}])
def test_a_segmentation_costs_no_task_that_does_not_read_it(make, task, segmentation) -> None:
    reader = coco(make, [annotation(k, segmentation=segmentation) for k in range(2)])
    report = check(reader, task)
    assert report.errors == []
    assert report.tables["train"].num_annotations == 2
    (note, _) = [p for p in report.notes if p.code.startswith("segment")]
    assert note.fix == f"none needed: task={task} does not read its segment"
    assert check(reader, "instance_segmentation").errors


@pytest.mark.parametrize(
    "bbox", [None, "x", [1, 2, 3], NAN, [5, 5, 0, 0], [30, 30, -20, -20], [900, 900, 5, 5]]
)
def test_a_box_costs_no_task_that_does_not_read_it(make, bbox) -> None:
    ring = [[5, 5, 25, 5, 25, 30, 5, 30]]
    reader = coco(make, [annotation(0, segmentation=ring, bbox=bbox)])
    for task in ("semantic_segmentation", "multilabel_classification"):
        report = check(reader, task)
        assert report.errors == []
        assert report.tables["train"].num_annotations == 1
    table = check(reader, "semantic_segmentation").tables["train"]
    assert table.boxes.tolist() == [[5, 5, 25, 30]]  # the outline's
    assert check(reader, "detection").stopping


@pytest.mark.parametrize("task", ["detection", "instance_segmentation"])
@pytest.mark.parametrize("bbox", [None, [1, 2, 3], NAN, [5, 5, 0, 0], [900, 900, 5, 5]])
def test_fix_takes_the_box_of_the_outline(make, task: str, bbox) -> None:
    ring = [[5, 5, 25, 5, 25, 30, 5, 30]]
    reader = coco(make, [annotation(0, segmentation=ring, bbox=bbox)])
    report = check(reader, task, on_bad="fix")
    assert report.stopping == []
    assert {p.action for p in report.errors} == {"fixed"}
    assert report.tables["train"].boxes.tolist() == [[5, 5, 25, 30]]
    assert check(reader, task, on_bad="drop").stopping


def test_objects_that_never_became_rows_are_lost(make) -> None:
    spoiled = [annotation(k, iscrowd=7) for k in range(2)]
    report = check(coco(make, [annotation(5), *spoiled]), "detection", on_bad="fix")
    assert [p.message for p in report.stopping] == [
        "train lost 2 of 3 objects: annotation-malformed 2"
    ]


def test_lines_that_never_became_rows_are_lost(make) -> None:
    noise(make, "images/train/a.png", "images/val/b.png")
    make.text("data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    lines = ["0 0.5 0.5 0.2 0.2", "1 0.5 0.5 0.2", "1 0.5 0.5 0.2 x", "y"]
    make.text("labels/train/a.txt", "\n".join(lines))
    make.text("labels/val/b.txt", lines[0])
    reader = YOLOReader(make.root)
    assert reader.read("train").lost.tolist() == [1, 1, -1]
    (stop,) = check(reader, "detection", on_bad="drop").stopping
    assert stop.message == "train lost 3 of 4 objects: line-malformed 3"
    assert check(reader, "detection", on_bad="drop", classes=["cat"]).stopping == []


def test_images_whose_labels_cannot_be_read_are_lost(make) -> None:
    names = [f"train/{k}.png" for k in range(5)]
    noise(make, *names, "val/v.png")
    for k in range(5):
        make.voc(f"train/{k}.xml", ("cat", 5, 5, 25, 30), size="<size/>")
    make.voc("val/v.xml", ("cat", 5, 5, 25, 30), size="<size/>")
    for k in range(3):
        assert check(VOCReader(make.root), "detection", on_bad="drop").stopping == []
        make.text(f"train/{k}.xml", "<annotation>")
    (stop,) = check(VOCReader(make.root), "detection", on_bad="drop").stopping
    assert stop.message == "train lost 3 of 5 images: xml-malformed 3"


def test_masks_and_tags_are_counted(make) -> None:
    noise(make, *(f"images/train/{k}.png" for k in range(3)), "images/val/v.png")
    noise(make, "a.png", "b.png")
    make.text("classes.txt", "one\ntwo")
    for k in range(3):
        make.mask(f"masks/train/{k}.png", [0, 1])
    make.mask("masks/val/v.png", [0, 1])
    (stop, *_) = check(MasksReader(make.root), "semantic_segmentation", on_bad="drop").stopping
    assert stop.code == "empty-split"  # masks of 4 x 4: none is left
    make.text("labels.csv", "image,label,split\na.png,,train\nb.png,x;y,val\n")
    reader = CSVReader(make.root, label_separator=";")
    (stop,) = check(reader, "multilabel_classification").stopping
    assert (stop.code, stop.message) == ("labels-none", "train has no label")


def test_class_folders_are_counted(make) -> None:
    noise(make, *(f"train/{c}/{k}.png" for c in "ab" for k in range(2)), "val/a/v.png")
    for name in ("a/0", "a/1", "b/0"):
        make.text(f"train/{name}.png", b"")
    (stop,) = check(FolderReader(make.root), "classification", on_bad="drop").stopping
    assert stop.message == "train lost 3 of 4 images: image-empty 3"
