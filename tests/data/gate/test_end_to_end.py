"""The issue's list of errors, each written to disk in a real format, through reader and gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader
from cvtrain.data.gate.run import run_gate

XML = """<annotation><filename>{name}.jpg</filename>
<size><width>{width}</width><height>40</height><depth>3</depth></size>
<object><name>{label}</name><bndbox><xmin>5</xmin><ymin>5</ymin>
<xmax>{xmax}</xmax><ymax>30</ymax></bndbox></object></annotation>"""

NAMES = {"train": ["eins zwei", "größe", "c"], "val": ["v"]}


def image(path: Path, seed: int, size: tuple[int, int] = (40, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def voc(root: Path) -> VOCReader:
    for split, names in NAMES.items():
        for i, name in enumerate(names):
            image(root / f"JPEGImages/{name}.jpg", i + 10 * len(names))
            text = XML.format(name=name, width=60, label="cat", xmax=25)
            (root / "Annotations").mkdir(exist_ok=True)
            (root / f"Annotations/{name}.xml").write_text(text, encoding="utf-8")
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        text = "\n".join(names)
        (root / f"ImageSets/Main/{split}.txt").write_text(text, encoding="utf-8")
    return VOCReader(root)


def yolo(root: Path) -> YOLOReader:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    for split, names in NAMES.items():
        for i, name in enumerate(names):
            image(root / f"images/{split}/{name}.jpg", i + 10 * len(names))
            label = root / f"labels/{split}/{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.25 0.25\n1 0.25 0.5 0.1 0.2\n")
    return YOLOReader(root)


def coco_file(split: str) -> dict:
    images, objects = [], []
    for i, name in enumerate(NAMES[split]):
        images.append({"id": i + 1, "file_name": f"{name}.jpg", "height": 40, "width": 60})
        objects.append(
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": 7,
                "bbox": [5, 5, 20, 25],
                "area": 500,
                "iscrowd": 0,
                "segmentation": [[5, 5, 25, 5, 25, 30, 5, 30]],
            }
        )
    categories = [{"id": 7, "name": "cat"}]
    return {"images": images, "annotations": objects, "categories": categories}


def coco(root: Path) -> COCOReader:
    for split, names in NAMES.items():
        for i, name in enumerate(names):
            image(root / f"{split}/{name}.jpg", i + 10 * len(names))
        (root / f"{split}.json").write_text(json.dumps(coco_file(split)))
    return COCOReader(root)


def masks(root: Path) -> MasksReader:
    for split, names in NAMES.items():
        for i, name in enumerate(names):
            image(root / f"images/{split}/{name}.jpg", i + 10 * len(names))
            values = np.random.default_rng(i).integers(0, 3, (40, 60), np.uint8)
            (root / f"masks/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / f"masks/{split}/{name}.png")
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    return MasksReader(root)


def folder(root: Path) -> FolderReader:
    seed = 0
    for split, names in NAMES.items():
        for label in ("cat", "dog"):
            for name in names:
                image(root / f"{split}/{label}/{name}.jpg", seed := seed + 1)
    return FolderReader(root)


def xml(name: str = "größe", **values: object) -> Callable[[Path], None]:
    fields = {"name": name, "width": 60, "label": "cat", "xmax": 25, **values}

    def edit(root: Path) -> None:
        (root / f"Annotations/{name}.xml").write_text(XML.format(**fields), encoding="utf-8")

    return edit


def write(path: str, content: str | bytes) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        raw = content.encode() if isinstance(content, str) else content
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(raw)

    return edit


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def cut(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:900])


def edit_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        content = json.loads((root / "train.json").read_text())
        change(content)
        (root / "train.json").write_text(json.dumps(content))

    return edit


def record(key: str, index: int, **values: object) -> Callable[[Path], None]:
    return edit_json(lambda content: content[key][index].update(values))


def mask(value: int, width: int = 60) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        values = np.zeros((40, width), np.uint8)
        values[:2] = value
        Image.fromarray(values).save(root / "masks/train/c.png")

    return edit


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>'

CASES = [
    ("image cut short", voc, cut("JPEGImages/größe.jpg"), "image-truncated"),
    ("image of zero bytes", folder, write("train/cat/c.jpg", b""), "image-empty"),
    ("no image at all", masks, write("images/train/c.jpg", "hello"), "image-unreadable"),
    ("annotated size differs", voc, xml(width=61), "size-mismatch"),
    ("box inverted", voc, xml(xmax=2), "box-inverted"),
    ("box without area", voc, xml(xmax=5), "box-zero-area"),
    ("box outside", voc, xml(xmax=99), "box-outside"),
    ("box outside", yolo, write("labels/train/c.txt", "0 0.9 0.5 0.5 0.5\n"), "box-outside"),
    ("box NaN", coco, record("annotations", 0, bbox=[5, 5, float("nan"), 9]), "box-nan"),
    ("unknown class", yolo, write("labels/train/c.txt", "5 0.5 0.5 0.2 0.2\n"), "class-unknown"),
    ("unknown class", coco, record("annotations", 0, category_id=8), "class-unknown"),
    (
        "class tables differ",
        coco,
        edit_json(lambda content: content.update(categories=[{"id": 7, "name": "lynx"}])),
        "classes-differ",
    ),
    ("duplicate id", coco, record("images", 1, id=1), "duplicate-image-id"),
    ("image missing", coco, record("images", 1, file_name="gone.jpg"), "image-missing"),
    ("image missing", voc, remove("JPEGImages/größe.jpg"), "image-missing"),
    ("label without image", yolo, remove("images/train/c.jpg"), "label-without-image"),
    ("mask of another size", masks, mask(1, width=61), "mask-size"),
    ("mask value out of range", masks, mask(77), "mask-value"),
    ("image without mask", masks, remove("masks/train/c.png"), "mask-missing"),
    ("path leaves root", coco, record("images", 1, file_name="../../x.jpg"), "path-outside-root"),
    ("entity bomb", voc, write("Annotations/c.xml", BOMB), "xml-entities"),
    ("malformed XML", voc, write("Annotations/c.xml", "<annotation><object>"), "xml-malformed"),
    ("malformed JSON", coco, write("train.json", '{"images": ['), "json-malformed"),
    ("malformed txt", yolo, write("labels/train/c.txt", "0 0.5 zero 0.2 0.2\n"), "line-malformed"),
    ("empty split", voc, write("ImageSets/Main/val.txt", "\n"), "empty-split"),
    (
        "segment empty",
        coco,
        record("annotations", 0, segmentation=[[1, 1, 2, 1, 3, 1]]),
        "segment-empty",
    ),
]


@pytest.mark.parametrize("make", [voc, yolo, coco, masks, folder])
def test_clean_sets_have_no_errors(tmp_path: Path, make: Callable) -> None:
    report = run_gate(make(tmp_path / "ein Ordner"), None, progress=False, workers=1)
    assert report.errors == []
    assert report.rejected == 0


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
@pytest.mark.parametrize(
    ("make", "edit", "code"),
    [case[1:] for case in CASES],
    ids=[f"{case[0]} ({case[1].__name__})" for case in CASES],
)
def test_every_error_of_the_list(tmp_path: Path, make, edit, code: str, on_bad: str) -> None:
    root = tmp_path / "ein Ordner"
    kind = type(make(root))
    edit(root)
    reader = kind(root)  # anew: it looks at the layout when it is made
    report = run_gate(
        reader, None, progress=False, workers=1, on_bad=on_bad, strict=False, allow_empty=True
    )
    found = [p for p in report.errors if p.code == code]
    assert found, [p.code for p in report.problems]
    for p in report.problems:
        assert p.file
        assert p.fix
        assert "\n" not in p.message
        assert not Path(p.file).is_absolute()
    assert report.images == report.used + report.rejected
    if on_bad == "error":
        assert report.stopping
    elif code not in ("json-malformed", "empty-split"):
        assert report.stopping == []
    else:
        assert report.stopping
    for table in report.tables.values():
        if not len(table):
            continue
        limits = np.repeat(table.sizes[:, ::-1], np.diff(table.starts), 0)
        assert np.isfinite(table.boxes).all()
        assert (table.boxes >= 0).all()
        assert (table.boxes[:, 2:] <= limits).all()
        assert (table.boxes[:, 2:] > table.boxes[:, :2]).all()
        assert (table.labels >= 0).all()
        assert (table.labels < len(table.classes)).all()
        assert (table.sizes > 0).all()


@pytest.mark.parametrize("make", [voc, yolo, coco, masks, folder])
@pytest.mark.parametrize("on_bad", ["fix", "drop"])
def test_the_data_set_stays_as_it_is(tmp_path: Path, make, on_bad: str) -> None:
    root = tmp_path / "ein Ordner"
    reader = make(root)
    first = next(p for p in sorted(root.rglob("*.jpg")) if "train" in str(p) or make is voc)
    first.write_bytes(first.read_bytes()[:700])

    def state() -> dict:
        return {
            p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
            for p in [root, *root.rglob("*")]
        }

    before = state()
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    report = run_gate(reader, None, progress=False, workers=1, on_bad=on_bad)
    assert report.rejected == 1
    assert state() == before
    for path in before:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_one_bit_masks_are_black_and_white(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / f"images/{split}/a.png", 1)
        mask = np.zeros((40, 60), bool)
        mask[5:20, 5:30] = True
        path = tmp_path / f"masks/{split}/a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(mask).save(path)
    (tmp_path / "classes.txt").write_text("background\ncell\n")
    report = run_gate(MasksReader(tmp_path), "semantic_segmentation", progress=False)
    assert report.errors == []
    assert report.tables["train"].mask_values.tolist() == [0, 255]


def test_masks_without_class_names_are_one_error_not_one_for_each(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / f"images/{split}/a.png", 1)
        path = tmp_path / f"masks/{split}/a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.ones((40, 60), np.uint8)).save(path)
    (tmp_path / "classes.txt").write_text("\n")
    report = run_gate(MasksReader(tmp_path), None, progress=False, strict=False)
    assert [p.code for p in report.errors] == ["classes-missing"]


@pytest.mark.parametrize("on_bad", ["error", "fix"])
def test_a_fault_of_the_yaml_is_said_once_not_by_each_split(tmp_path: Path, on_bad: str) -> None:
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat\n")
    report = run_gate(YOLOReader(tmp_path), None, progress=False, strict=False, on_bad=on_bad)
    faults = [p for p in report.errors if p.code == "yaml-malformed"]
    assert [(p.where, p.action) for p in faults] == [("line 4", "")]
    assert len(report.stopping) == 3


def test_what_fix_takes_as_it_stands_is_said(tmp_path: Path) -> None:
    yolo(tmp_path)
    for label in (tmp_path / "labels/val").iterdir():
        label.unlink()
    options = {"progress": False, "on_bad": "fix", "strict": False}
    report = run_gate(YOLOReader(tmp_path), None, allow_empty=True, **options)
    assert [(p.code, p.action) for p in report.errors] == [("labels-missing", "taken as written")]
    assert report.stopping == []
    report = run_gate(YOLOReader(tmp_path), None, **options)
    assert [(p.code, p.message) for p in report.stopping] == [("labels-none", "val has no object")]
