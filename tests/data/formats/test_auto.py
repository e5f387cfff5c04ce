"""Recognizing layouts."""

from __future__ import annotations

import pytest

from cvtrain.data.formats.auto import READERS, AutoReader, recognize
from cvtrain.errors import DataError


@pytest.fixture
def layouts(make, img, ann):
    """Format -> what puts a data set of it into the root."""

    def coco():
        make.image("train/a.jpg", "val/b.jpg")
        make.coco("train.json", [img(1, "a.jpg")], [ann(1, 1)])
        make.coco("val.json", [img(1, "b.jpg")], [])

    def voc():
        make.image("JPEGImages/a.jpg")
        make.voc("Annotations/a.xml", ("cat", 1, 1, 2, 2))

    def yolo():
        make.image("images/train/a.jpg")
        make.text("labels/train/a.txt", "0 0.5 0.5 1 1")
        make.text("data.yaml", "train: images/train\nnames: [cat]")

    def masks():
        make.image("images/train/a.jpg")
        make.mask("masks/train/a.png", [0, 1])

    def object_masks():
        make.image("images/train/a.jpg")
        make.mask("masks/train/a_0.png", [0, 255])
        make.mask("masks/train/a_1.png", [255, 0])

    def id_masks():
        make.image("images/train/a.jpg")
        make.mask("instances/train/a.png", [0, 1, 2])

    def folder():
        make.image("train/cat/a.jpg", "train/dog/b.jpg")

    def csv():
        make.image("images/a.jpg", "images/b.jpg")
        make.text("labels.csv", "image,labels\na.jpg,cat;dog\nb.jpg,cat")

    return {f.__name__: f for f in (coco, voc, yolo, masks, object_masks, id_masks, csv, folder)}


@pytest.mark.parametrize("name", list(READERS))
def test_every_layout_is_recognized_and_read(make, layouts, name):
    layouts[name]()
    reader = AutoReader(make.root)
    assert reader.name == name
    assert type(reader.reader) is READERS[name]
    assert reader.splits()[0] == "train"
    assert reader.read("train").problems == []
    assert reader.kinds == reader.reader.kinds
    assert "\n" not in reader.found
    assert str(make.root) in reader.found
    assert "splits: train" in reader.found


def _csv(file: str, files: list[str]) -> str:
    if file == "classes.csv":
        return "class,color\ncat,red\ndog,blue"
    boxes = any(f.endswith(".xml") for f in files)
    return "filename,class,xmin\na.jpg,cat,1" if boxes else "image,label\na.jpg,cat"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["cat/a.jpg", "dog/b.jpg"], "folder"),
        (["train/a.jpg", "train/a.xml"], "voc"),
        (["a.jpg", "a.xml"], "voc"),
        (["train/a.jpg", "train/a.txt"], "yolo"),
        (["cat/a.jpg", "dog/b.jpg", "classes.csv"], "folder"),
        (["images/a.jpg", "labels.csv"], "csv"),
        (["train/a.jpg", "val/a.jpg", "train.csv", "val.csv"], "csv"),
        (["a.jpg", "a.xml", "labels.csv"], "voc"),  # of boxes, as tools for boxes leave it
        (["images/a.png", "masks/a.png"], "masks"),
        (["VOCdevkit/VOC2012/Annotations/a.xml", "VOCdevkit/VOC2012/JPEGImages/a.jpg"], "voc"),
    ],
)
def test_variants(make, files, name):
    for file in files:
        if file.endswith(".xml"):
            make.voc(file, ("cat", 1, 1, 2, 2))
        elif file.endswith(".csv"):
            make.text(file, _csv(file, files))
        elif file.endswith(".txt"):
            make.text(file, "0 0.5 0.5 1 1")
        else:
            make.image(file)
    assert recognize(make.root)[0] == name


@pytest.mark.parametrize(
    "files",
    [[], ["a.jpg", "b.jpg"], ["images/a.jpg"], ["only/a.jpg"], ["train/a.jpg", "val/b.jpg"]],
)
def test_unknown_folders_get_all_layouts(make, files):
    make.image(*files)
    with pytest.raises(DataError) as error:
        AutoReader(make.root)
    message = str(error.value)
    assert "\n" not in message
    assert all(f"{start}: " in message for start in ("COCO", "VOC", "YOLO", "masks", "folder"))


def test_a_json_of_something_else_is_not_coco(make):
    make.image("train/cat/a.jpg", "train/dog/b.jpg")
    make.json("train.json", {"epochs": 3})
    make.text("val.json", "")
    assert recognize(make.root)[0] == "folder"


def test_two_layouts_are_asked_about(make, layouts):
    layouts["voc"]()
    layouts["yolo"]()
    with pytest.raises(DataError, match="say data=voc or data=yolo"):
        AutoReader(make.root)


def test_doubt_inside_a_layout_is_passed_on(make):
    make.coco("annotations/instances_train2014.json", [], [])
    make.coco("annotations/instances_train2017.json", [], [])
    with pytest.raises(DataError, match="train_json"):
        AutoReader(make.root)


@pytest.mark.parametrize("root", ["/no/such/folder", None, ""])
def test_no_folder(root):
    with pytest.raises(DataError, match=r"data\.root"):
        AutoReader(root)


def test_a_file_is_no_folder(make):
    with pytest.raises(DataError, match="is a file"):
        AutoReader(make.text("x.zip", "x"))


@pytest.mark.parametrize("parent", ["", "VOC2012", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("objects", [False, True])
def test_masks_of_pascal_voc_without_boxes_are_named(make, parent, objects) -> None:
    base = f"{parent}/" if parent else ""
    make.image(f"{base}JPEGImages/a.jpg")
    make.mask(f"{base}SegmentationClass/a.png", [0, 1], "P")
    if objects:
        make.mask(f"{base}SegmentationObject/a.png", [0, 1], "P")
    make.text(f"{base}ImageSets/Segmentation/train.txt", "a")
    folder = f" data.folder={parent}" if parent else ""
    line = f"write data=voc_segmentation{folder} for task=semantic_segmentation"
    line += f", data=voc_objects{folder} for task=instance_segmentation" if objects else ""
    with pytest.raises(DataError) as caught:
        AutoReader(make.root)
    assert str(caught.value).endswith(line)
    make.voc(f"{base}Annotations/a.xml", ("cat", 1, 1, 2, 2))
    assert f"its masks: data=voc_segmentation{folder}" in AutoReader(make.root).found


def test_boxes_of_another_format_beside_vocs_masks_are_read(make, img, ann) -> None:
    make.image("JPEGImages/a.jpg")
    make.mask("SegmentationClass/a.png", [0, 1], "P")
    make.coco("annotations.json", [img(1, "JPEGImages/a.jpg")], [ann(1, 1)])
    assert AutoReader(make.root).name == "coco"
