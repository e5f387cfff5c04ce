"""Every code of the readers is documented, reached by a case, and says one line with a fix."""

from __future__ import annotations

import pytest
from PIL import Image

from cvtrain.data.formats.base import CODES, problem
from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.id_masks import IdMasksReader
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.object_masks import ObjectMasksReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader

BOX = ("cat", 1, 1, 2, 2)


@pytest.fixture
def broken(broken_boxes, broken_images):
    """Data sets of each format with many things wrong at once: name -> what builds and reads it."""
    return {build.__name__: build for build in (*broken_boxes, *broken_images)}


@pytest.fixture
def broken_boxes(make, img, ann):

    def coco():
        make.image("train/a.png", "train/b.png", "train/c.png", "val/v.png")
        ring = [[0, 0, 1, 1], [0, 0, 4, 0, 4, 4]]
        images = [img(1, "a.png"), img(1, "b.png"), img("x", "c.png"), img(4, "gone.png")]
        images += [img(5, "../../out.png"), img(6, "a.png")]
        annotations = [
            ann(1, 1),
            ann(1, 1),
            ann(2, 1),
            ann(2, 4),
            ann(3, 99),
            ann(4, 1, category_id=9),
            ann(5, 1, bbox=None),
            ann(6, 1, segmentation="x"),
            ann(7, 1, segmentation=ring),
            ann(8, 1, segmentation=ring[1]),
            ann(9, 1, bbox=["1", 1, 2, 2], area="big"),
            ann(10, 1, iscrowd=2),
            ann("11", 1),
        ]
        cats = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
        make.coco("train.json", images, annotations, cats)
        make.coco("val.json", [], [], [{"id": 3, "name": "cat"}])
        make.text("test.json", "{")
        return COCOReader(make.root)

    def voc():
        make.image("JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg", "JPEGImages/c.png")
        make.voc("Annotations/a.xml", BOX, extra="<filename>b.jpg</filename>")
        make.text("Annotations/b.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
        make.text("Annotations/c.xml", "<annotation>")
        make.voc("Annotations/d.xml", BOX)
        zero = "<size><width>0</width><height>0</height></size>"
        make.voc("Annotations/f.xml", BOX, size=zero)
        make.image("JPEGImages/f.jpg")
        make.text("ImageSets/Main/train.txt", "a\nb\nc\ne\nf")
        make.text("ImageSets/Main/val.txt", b"\xff")
        return VOCReader(make.root)

    def yolo():
        make.image("images/train/a.jpg", "images/train/b.jpg", "images/train/c.jpg")
        make.image("images/val/a.jpg")
        make.text("labels/train/a.txt", "0 1\n7 0.5 0.5 1 1")
        make.text("labels/train/b.txt", b"\xff")
        yaml = "train: ../images/train\nval: [images/val, gone, {a: b}]\ntest: gone\nnames: [x]"
        make.text("data.yaml", yaml)
        return YOLOReader(make.root)

    def keypoints():
        make.image("images/train/a.jpg")
        make.text("labels/train/a.txt", "0 0.5 0.5 0.2 0.2 0.5 0.5 0.45 0.45")
        make.text("data.yaml", "train: images\\train\nkpt_shape: [2, 2]\nnames: [x]")
        return YOLOReader(make.root)

    def unsaid():
        make.image("images/train/a.jpg", "images/val/a.jpg")
        line = "0 0.5 0.5 0.2 0.1 0.5 0.5 2 0.45 0.45 1\n"
        make.text("labels/train/a.txt", line * 4)
        make.text("labels/val/a.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2")
        make.text("data.yaml", "train: images/train\nval: images/val\nnames: [x]")
        return YOLOReader(make.root)

    return coco, voc, yolo, keypoints, unsaid


@pytest.fixture
def broken_images(make):
    def masks():
        make.image("images/train/a.jpg")
        make.mask("masks/train/b.png", [0])
        make.text("classes.txt", "one")
        return MasksReader(make.root)

    def jpeg_masks():
        make.image("images/a.png")
        (make.root / "masks").mkdir()
        Image.linear_gradient("L").resize((8, 6)).save(make.root / "masks/a.jpg")
        return MasksReader(make.root)

    def object_masks():
        make.image("images/train/a.jpg")
        make.text("masks/train/a_0.png", "x")
        return ObjectMasksReader(make.root)

    def id_masks():
        make.image("images/train/a.jpg")
        make.text("instances/train/a.png", "x")
        return IdMasksReader(make.root)

    def numbered(*values):
        def build():
            for k in "abc":
                make.image(f"images/train/{k}.jpg", size=(len(values), 1))
                make.mask(f"instances/train/{k}.png", values)
            return IdMasksReader(make.root)

        build.__name__ = f"numbered_{'_'.join(map(str, values))}"
        return build

    def csv():
        make.image("a.jpg")
        make.text("labels.csv", "image,label\na.jpg,a|b;a|b\n,a")
        return CSVReader(make.root, label_separator=";")

    def separated():
        make.image("a.jpg")
        make.text("labels.csv", "image,label\na.jpg,a|b")
        return CSVReader(make.root)

    def joined():
        make.image("a.jpg")
        rows = [f"a.jpg,{label}" for label in ("a", "b", "c", "a b", "b c", "a c")]
        make.text("labels.csv", "\n".join(["image,label", *rows]))
        return CSVReader(make.root, label_separator=";")

    def folder():
        make.image("train/a/1.jpg", "val/b/s/1.jpg")
        return FolderReader(make.root)

    def nested():
        make.image("a/b/1.jpg", "a/c/1.jpg")
        return FolderReader(make.root)

    ids = [numbered(*values) for values in ((0, 255), (1, 2, 1), (0, 1, 255))]
    return masks, jpeg_masks, object_masks, id_masks, *ids, csv, separated, joined, folder, nested


def test_every_code_has_a_case(make, broken, tmp_path):
    found = []
    for name, build in broken.items():
        make.root = tmp_path / name
        make.root.mkdir()
        reader = build()
        found += [p for split in reader.splits() for p in reader.read(split).problems]
    assert {p.code for p in found} == set(CODES)
    for p in found:
        assert p.severity == CODES[p.code].severity
        assert p.message
        assert p.fix
        assert "\n" not in p.message + p.fix
        assert p.file
        assert p.split in ("train", "val", "test")


@pytest.mark.parametrize("code", sorted(CODES))
def test_codes_are_consistent(code):
    kind = CODES[code]
    assert code == code.lower().replace("_", "-")
    assert kind.severity in ("error", "note")
    assert kind.rejects in ("image", "annotation", "nothing")
    assert kind.severity == "error" or kind.rejects == "nothing"
    assert kind.curable or kind.rejects == "nothing"
    assert problem(code, "f", "m" * 999).message.endswith("...")
