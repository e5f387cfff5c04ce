"""Damaged files never crash a reader: they become problems, or a DataError of one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.errors import DataError

ROUNDS = 150
STRANGE = [None, True, -1, 2**70, 1e400, float("nan"), "", "x", "../..", [], {}, [[]], [1]]
STRANGE += ["\ud800", "x" * 5000]


def damage(raw: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, doubled or put in."""
    data = bytearray(raw)
    for _ in range(int(rng.integers(1, 4))):
        at, span = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 20))
        kind = rng.integers(0, 4)
        if kind == 0:
            data[at : at + span] = rng.integers(0, 256, span, np.uint8).tobytes()
        elif kind == 1:
            del data[at : at + span]
        elif kind == 2:
            data[at:at] = data[at : at + span]
        else:
            data[at:at] = rng.choice([b"{", b"]", b"\0", b"-", b"9" * 30, b"<", b"&", b"\n", b": "])
    return bytes(data)


def read_all(reader_type, root):
    """Reads every split; gives the number of problems, -1 where the folder is refused."""
    try:
        reader = reader_type(root)
        splits = [reader.read(split) for split in reader.splits()]
    except DataError as error:
        return len(str(error).splitlines()) - 2  # -1
    assert reader.kinds
    for split in splits:
        table = split.table
        assert table.starts[-1] == table.num_annotations == len(table.labels) == len(table.lines)
        assert (table.labels < len(table.classes)).all()
        for p in split.problems:
            assert "\n" not in p.message
            assert p.image < len(table)
            assert p.annotation < table.num_annotations
    return sum(len(split.problems) for split in splits)


@pytest.fixture
def coco(make, img, ann):
    make.image("train/a.png", "train/b.png")
    annotations = [
        ann(1, 1, segmentation=[[0, 0, 4, 0, 4, 4]], area=8.0, iscrowd=0),
        ann(2, 2, segmentation={"size": [6, 8], "counts": [8, 4, 36]}),
        ann(3, 2, segmentation={"size": [6, 8], "counts": "84T1"}),
    ]
    return make.coco("train.json", [img(1, "a.png"), img(2, "b.png")], annotations)


def test_coco_bytes(make, coco):
    rng = np.random.default_rng(0)
    raw = coco.read_bytes()
    found = []
    for _ in range(ROUNDS):
        coco.write_bytes(damage(raw, rng))
        found.append(read_all(COCOReader, make.root))
    assert sum(count > 0 for count in found) > ROUNDS / 2


def test_coco_values(make, coco):
    """Every value in the JSON replaced by every strange one."""
    document = json.loads(coco.read_bytes())
    places: list[tuple] = []

    def collect(node, path):
        places.append(path)
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((*path, key))
            if isinstance(value, (dict, list)) and value:
                collect(value, (*path, key))

    collect(document, ())
    wrong = 0
    for path in places[1:]:
        for value in STRANGE:
            changed = json.loads(json.dumps(document))
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            coco.write_text(json.dumps(changed))
            wrong += read_all(COCOReader, make.root) != 0
    assert wrong > len(places) * len(STRANGE) / 2


def test_voc_bytes(make):
    rng = np.random.default_rng(0)
    make.image("JPEGImages/a.jpg", "JPEGImages/b.jpg")
    make.voc("Annotations/b.xml", ("dog", 1, 1, 2, 2))
    path = make.voc("Annotations/a.xml", ("cat", 1, 1, 2, 2), extra="<filename>a.jpg</filename>")
    listed = make.text("ImageSets/Main/train.txt", "a\nb\n")
    raw, lines = path.read_bytes(), listed.read_bytes()
    found = []
    for n in range(ROUNDS):
        path.write_bytes(damage(raw, rng) if n % 3 else raw)
        listed.write_bytes(lines if n % 3 else damage(lines, rng))
        found.append(read_all(VOCReader, make.root))
    assert sum(count > 0 for count in found) > ROUNDS / 2


def test_yolo_bytes(make):
    rng = np.random.default_rng(0)
    make.image("images/train/a.jpg", "images/val/b.jpg")
    label = make.text("labels/train/a.txt", "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.1 0.2 0.2\n")
    make.text("labels/val/b.txt", "")
    yaml = make.text("data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: [x, y]\n")
    texts = label.read_bytes(), yaml.read_bytes()
    found = []
    for n in range(ROUNDS):
        label.write_bytes(damage(texts[0], rng) if n % 2 else texts[0])
        yaml.write_bytes(texts[1] if n % 2 else damage(texts[1], rng))
        found.append(read_all(YOLOReader, make.root))
    assert sum(count > 0 for count in found) > ROUNDS / 2


def test_csv_bytes(make):
    rng = np.random.default_rng(0)
    make.image("a.jpg", "b, c.jpg", "d.jpg")
    listed = make.text(
        "list.csv", 'image,labels,split\na.jpg,x;y,train\n"b, c.jpg",x,val\nd,,train\n'
    )
    raw = listed.read_bytes()
    found = []
    for _ in range(ROUNDS):
        listed.write_bytes(damage(raw, rng))
        found.append(read_all(CSVReader, make.root))
    assert sum(count != 0 for count in found) > ROUNDS / 2
