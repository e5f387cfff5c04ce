"""One mask file an object, and masks that number objects: read, and what is wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from cvtrain.data.datamodule import DataModule
from cvtrain.data.formats.files import MalformedError
from cvtrain.data.formats.id_masks import IdMasksReader
from cvtrain.data.formats.mask_objects import objects_of, read_object, read_pixels
from cvtrain.data.formats.object_masks import ObjectMasksReader
from cvtrain.data.gate.run import run_gate
from cvtrain.data.masks import from_mask, mask_box, rle_areas, to_mask, to_masks
from cvtrain.errors import DataError

SIZE = (20, 30)  # height, width


def gate(reader, **options):
    options = {"strict": False, "progress": False, **options}
    report = run_gate(reader, "instance_segmentation", **options)
    assert report.images == report.used + report.rejected
    return report


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def picture(k=0):
    return np.random.default_rng(k).integers(0, 256, (*SIZE, 3), np.uint8)


def block(y, x, value=255, height=5, width=6, dtype=np.uint8):
    out = np.zeros(SIZE, dtype)
    out[y : y + height, x : x + width] = value
    return out


def test_objects_are_those_of_a_loop_over_the_values():
    rng = np.random.default_rng(3)
    for _ in range(20):
        pixels = rng.integers(0, 6, tuple(rng.integers(1, 12, 2))).astype(np.uint16) * 300
        found = objects_of(pixels, (0, 600))
        wanted = [v for v in np.unique(pixels).tolist() if v not in (0, 600)]
        assert [o.value for o in found] == wanted
        for item in found:
            mask = (pixels == item.value).astype(np.uint8)
            assert np.array_equal(to_mask(item.segment, *pixels.shape), mask)
            assert item.segment.replace(b" ", b"") == from_mask(mask).replace(b" ", b"")
            assert item.box == mask_box(mask)


@pytest.mark.parametrize("layout", ["{0}/images/{0}.png {0}/masks/{1}.png", "root", "stage"])
def test_the_bowls_layout(make, codes, layout):
    folder = {"root": "", "stage": "stage1_train/"}.get(layout, "train/")
    for k, ident in enumerate(("f0a", "b7c")):
        save(make.root / f"{folder}{ident}/images/{ident}.png", picture(k))
        save(make.root / f"{folder}{ident}/masks/x{k}.png", block(2, 3))
        save(make.root / f"{folder}{ident}/masks/y.png", block(9, 9, value=1))
    assert ObjectMasksReader.detect(make.root)
    reader = ObjectMasksReader(make.root)
    split = reader.read("train")
    table = split.table
    assert (codes(split), reader.splits()) == ([], ["train"])
    assert [table.files[k] for k in range(2)] == [
        f"{folder}{i}/images/{i}.png" for i in ("b7c", "f0a")
    ]
    assert table.classes.names == ("object",)
    assert table.boxes.tolist() == [[3, 2, 9, 7], [9, 9, 15, 14]] * 2
    masks = to_masks(table.segments, table.rows(0), *SIZE)
    assert np.array_equal(masks[1], block(9, 9, value=1))
    assert table.object_files[1] == f"{folder}b7c/masks/y.png"


@pytest.mark.parametrize("form", ["a_{0}.png", "a_cat_{0}.png", "a/{0}.png", "a/cat/{0}.png"])
def test_names_that_begin_with_the_images(make, codes, form):
    save(make.root / "images/train/a.jpg", picture())
    save(make.root / "images/train/a_1.jpg", picture(1))
    for k in (0, 2, 10):
        save(make.root / "masks/train" / form.format(k), block(k, k))
    save(make.root / "masks/train/a_1_cat_0.png", block(1, 1))
    assert ObjectMasksReader.detect(make.root)
    reader = ObjectMasksReader(make.root, names=["dog", "cat"] if "cat" in form else None)
    split = reader.read("train")
    assert codes(split) == []
    assert np.diff(split.table.starts).tolist() == [3, 1]
    assert split.table.boxes[:, 0].tolist() == [0, 2, 10, 1]
    assert set(split.table.labels.tolist()) == {1 if "cat" in form else 0}


def test_an_image_without_masks_is_background_one_without_their_folder_is_not(make):
    for ident in "abc":
        save(make.root / f"{ident}/images/{ident}.png", picture(ord(ident)))
    save(make.root / "a/masks/0.png", block(1, 1))
    (make.root / "b/masks").mkdir()
    report = gate(ObjectMasksReader(make.root), splits=["train"])
    assert [(p.code, p.file) for p in report.errors] == [("mask-missing", "c/images/c.png")]
    assert [p.file for p in report.notes if p.code == "image-without-annotation"] == [
        "b/images/b.png"
    ]


def test_what_is_wrong_with_masks_of_objects(make):
    for name, split in (("a", "train"), ("v", "val")):
        save(make.root / f"images/{split}/{name}.png", picture(ord(name)))
        save(make.root / f"masks/{split}/{name}_0.png", block(2, 3))
    save(make.root / "masks/train/a_1.png", block(0, 0, value=0))
    save(make.root / "masks/train/a_2.png", np.full((3, 4), 255, np.uint8))
    make.text("masks/train/a_3.png", "no image")
    make.text("masks/train/a_4.png", "")
    pieces = block(0, 0) | block(12, 20)
    save(make.root / "masks/train/a_5.png", pieces)
    save(make.root / "masks/train/b_0.png", block(1, 1))
    report = gate(ObjectMasksReader(make.root), on_bad="fix")
    message = {p.file.rpartition("/")[2]: (p.code, p.message) for p in report.errors}
    assert message.pop("a_1.png") == ("segment-empty", "the mask has no pixel set")
    assert message.pop("a_2.png") == ("segment-size", "the mask is 4 x 3, its image 30 x 20")
    assert message.pop("a_3.png")[0] == "object-unreadable"
    assert message.pop("a_4.png") == ("object-unreadable", "it is empty (0 bytes)")
    assert message.pop("b_0.png")[0] == "mask-without-image"
    assert not message
    table = report.tables["train"]
    assert table.boxes.tolist() == [[3, 2, 9, 7], [0, 0, 26, 17]]
    assert np.array_equal(to_masks(table.segments, table.rows(0), *SIZE)[1], pieces > 0)
    assert [table.object_files[k] for k in range(2)] == [
        "masks/train/a_0.png",
        "masks/train/a_5.png",
    ]


def test_a_class_that_no_name_says(make):
    save(make.root / "images/a.png", picture())
    save(make.root / "masks/a_cow_0.png", block(2, 3))
    (problem,) = ObjectMasksReader(make.root, names=["cat", "dog"]).read("train").problems
    assert (problem.code, problem.annotation) == ("class-unknown", 0)
    assert problem.message == "none of the classes cat, dog in its name"


def test_soft_edges_and_noise_are_not_the_object(tmp_path):
    soft = block(4, 4, value=250)
    soft[4, 4:10], soft[0, 0] = 90, 3
    assert read_object(save(tmp_path / "soft.png", soft)).box == (4, 5, 10, 9)
    color = np.dstack([block(2, 2), block(2, 2) * 0, block(2, 2) * 0])
    assert read_object(save(tmp_path / "red.png", color)).box == (2, 2, 8, 7)
    deep = block(3, 1, value=65535, dtype=np.uint16)
    assert read_object(save(tmp_path / "deep.png", deep)).box == (1, 3, 7, 8)
    Image.fromarray(np.zeros(SIZE, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(MalformedError, match="no whole numbers"):
        read_pixels(tmp_path / "float.tif")


@pytest.fixture
def numbered(make):
    """Writes an image and its instance mask into each split, and gives a reader."""

    def build(pixels, folder="instances", **options):
        for k, split in enumerate(("train", "val")):
            save(make.root / f"images/{split}/a.png", picture(k))
            save(make.root / f"{folder}/{split}/a.png", pixels)
        return IdMasksReader(make.root, masks=folder, **options)

    return build


def test_numbers_of_16_bits_and_colors_are_objects(numbered):
    pixels = block(0, 0, 7, dtype=np.uint16) | block(12, 20, 40_000, dtype=np.uint16)
    table = numbered(pixels).read("train").table
    assert table.lines.tolist() == [7, 40_000]
    assert table.boxes.tolist() == [[0, 0, 6, 5], [20, 12, 26, 17]]
    colors = np.dstack([block(0, 0), block(12, 20, 9), block(0, 0, 0)])
    reader = numbered(colors)
    assert IdMasksReader.detect(reader.root)
    assert reader.read("train").table.boxes.tolist() == [[20, 12, 26, 17], [0, 0, 6, 5]]


def test_class_times_1000_as_in_cityscapes(numbered):
    pixels = block(0, 0, 24_001, dtype=np.uint16) + block(0, 10, 26_000, dtype=np.uint16)
    pixels += block(10, 0, 7, dtype=np.uint16) + block(10, 10, 26, dtype=np.uint16)
    table = numbered(pixels, divisor=1000, names={24: "person", 26: "car"}).read("train").table
    assert table.classes.names == ("person", "car")
    assert table.classes.ids == (24, 26)
    assert table.labels.tolist() == [1, 0, 1]  # by value: 26 (a crowd), 24001, 26000
    assert table.flags.tolist() == [1, 0, 0]
    table = numbered(pixels, divisor=1000).read("train").table
    assert table.classes.names == ("24", "26")
    (problem,) = numbered(pixels, divisor=1000, names={24: "person"}).read("train").problems
    assert (problem.code, problem.where) == ("class-unknown", "object 26000")


def test_classes_from_masks_beside_as_in_voc(make, numbered):
    pixels = block(0, 0, 1) + block(10, 10, 2) + block(10, 0, 255)
    classes = block(0, 0, 15) + block(10, 10, 3)
    classes[0, 0], classes[10, 10:12] = 255, 15
    for split in ("train", "val"):
        save(make.root / f"semantic/{split}/a.png", classes)
    names = ["background", *(f"c{k}" for k in range(1, 21))]
    options = {"classes": "semantic", "background": [0, 255]}
    table = numbered(pixels, names=names, **options).read("train").table
    assert len(table.classes) == 20
    assert [table.classes.names[k] for k in table.labels] == ["c15", "c3"]
    assert numbered(pixels, **options).read("train").table.classes.names == ("3", "15")
    save(make.root / "semantic/train/a.png", classes[:5])
    (problem,) = numbered(pixels, names=names, **options).read("train").problems
    assert problem.code == "mask-unreadable"
    assert problem.message == "its mask of classes is 30 x 5, it is 30 x 20 pixels"


def test_what_is_wrong_with_numbered_masks(make, numbered):
    reader = numbered(block(1, 1, 3))
    save(make.root / "images/train/b.png", picture(5))
    save(make.root / "instances/train/b.png", block(1, 1, 3)[:9])
    save(make.root / "images/train/c.png", picture(6))
    save(make.root / "instances/train/d.png", block(1, 1, 3))
    save(make.root / "images/train/e.png", picture(7))
    make.text("instances/train/e.png", "x")
    report = gate(IdMasksReader(reader.root), on_bad="drop")
    message = {p.file: p.code for p in report.errors}
    assert message == {
        "instances/train/b.png": "segment-size",
        "images/train/c.png": "mask-missing",
        "instances/train/d.png": "mask-without-image",
        "instances/train/e.png": "mask-unreadable",
    }
    assert report.counts["train"].used == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"divisor": 1}, r"data\.reader\.divisor=1: give a whole number from 2"),
        ({"divisor": 10, "classes": "x"}, "give one of them"),
        ({"classes": "gone"}, r"data\.reader\.classes=gone: no such folder"),
        ({"names": {"a": "b"}}, "give VALUE: NAME"),
        ({"names": ["a", "a"]}, "name each class once"),
        ({"background": ["x"]}, "give numbers"),
        ({"images": "gone"}, "no folders 'gone' and 'instances' found"),
    ],
)
def test_values_that_cannot_be_used(make, options, said):
    make.image("images/a.png", "instances/a.png")
    with pytest.raises(DataError, match=said):
        IdMasksReader(make.root, **options)


def test_five_hundred_objects_are_read_at_once(tmp_path):
    pixels = np.zeros((512, 512), np.uint16)
    for k in range(500):
        y, x = divmod(k, 25)
        pixels[y * 20 : y * 20 + 15, x * 20 : x * 20 + 15] = k + 1
    found = objects_of(read_pixels(save(tmp_path / "many.png", pixels)))
    assert len(found) == 500
    rles = [json.loads(o.segment) for o in found]
    assert coco.decode(rles).sum() == 500 * 225
    assert rle_areas(rles).tolist() == [225] * 500  # pycocotools' own refuses more than 255


@pytest.mark.parametrize("task", ["instance_segmentation", "semantic_segmentation"])
def test_samples_of_five_hundred_objects(numbered, task):
    pixels = np.zeros((160, 160), np.uint16)
    pixels[::7, ::7] = np.arange(23 * 23).reshape(23, 23) + 1
    reader = numbered(pixels)
    for split in ("train", "val"):
        save(reader.root / f"images/{split}/a.png", np.zeros((160, 160, 3), np.uint8))
    tables = run_gate(reader, task, progress=False).tables
    for augment in (None, {"transforms": [], "copy_paste": 1.0}):
        augment = None if task.startswith("semantic") else augment
        module = DataModule(tables, task, augment, image_size=160, num_workers=0)
        for train in (True, False):
            target = module.dataset("train", train=train)[0].target
            if task.startswith("semantic"):
                assert int((target.mask == 1).sum()) == 529
            else:
                assert target.masks.sum(dim=(1, 2)).tolist() == [1] * len(target.boxes)
                assert len(target.boxes) == 529


def test_numbers_in_a_jpeg_are_refused(make):
    pixels = np.zeros((40, 60), np.uint8)
    make.image("images/a.png", "images/b.png", size=(60, 40))
    (make.root / "instances").mkdir()
    Image.fromarray(pixels).save(make.root / "instances/b.jpg")
    pixels[5:20, 7:31] = 255
    Image.fromarray(pixels).save(make.root / "instances/a.jpg")
    (problem,) = IdMasksReader(make.root).read("train").problems
    assert (problem.code, problem.file) == ("mask-unreadable", "instances/a.jpg")
    assert problem.message == "it is a JPEG, which changes numbers; save it as PNG"


def test_black_is_the_background_of_a_palette_whatever_its_index(make):
    pixels = np.ones((40, 60), np.uint8)
    pixels[5:20, 7:31] = 0
    make.image("images/a.png", size=(60, 40))
    (make.root / "instances").mkdir()
    image = Image.frombytes("P", (60, 40), pixels.tobytes())
    image.putpalette([0, 128, 0, 0, 0, 0])
    image.save(make.root / "instances/a.png")
    table = IdMasksReader(make.root).read("train").table
    assert table.boxes.tolist() == [[7, 5, 31, 20]]
    image.putpalette([0, 0, 0, 0, 128, 0])
    image.save(make.root / "instances/a.png")
    assert IdMasksReader(make.root).read("train").table.boxes.tolist() == [[0, 0, 60, 40]]


def _numbered(make, pixels, masks=4):
    for k in range(masks):
        save(make.root / f"images/train/{k}.png", picture(k))
        save(make.root / f"instances/train/{k}.png", pixels(k))
    return IdMasksReader(make.root)


def _apart(*values, background=0):
    """A block of each value, six at most, none touching another."""
    out = np.full(SIZE, background, np.uint8)
    for k, value in enumerate(values):
        y, x = 1 + 9 * (k // 3), 1 + 10 * (k % 3)
        out[y : y + 6, x : x + 7] = value
    return out


@pytest.mark.parametrize(
    ("pixels", "code", "part"),
    [
        (_apart(255, 255), "masks-of-one-value", "the value 255 alone, in 4 of them of several"),
        (_apart(1), "masks-of-one-value", "data=masks for task=semantic_segmentation"),
        (_apart(2, 3, background=1), "background-numbered", "data.reader.background=[0,1]"),
        (_apart(1, 2, 255), "void-numbered", "data.reader.background=[0,255]"),
    ],
)
def test_masks_that_may_mean_something_else(make, pixels, code, part) -> None:
    reader = _numbered(make, lambda k: pixels)
    report = gate(reader)
    (found,) = [p for p in report.problems if p.code != "no-val-split"]
    assert (found.code, part in found.message) == (code, True)
    assert any(part in line for line in report.summary_lines())
    background = [int(v) for v in part.partition("[")[2].rstrip("]").split(",") if v]
    if background:  # what is named settles it
        report = gate(IdMasksReader(make.root, background=background))
        assert {p.code for p in report.problems} == {"no-val-split"}


@pytest.mark.parametrize(
    "pixels",
    [
        lambda k: _apart(1, 2, 3),
        lambda k: _apart(k + 1),
        lambda k: _apart(1, 200, 255),
        lambda k: _apart(1, 2, background=k),
        lambda k: np.where(_apart(9) == 9, 0, 4).astype(np.uint8),
    ],
)
def test_masks_that_number_objects_are_not_doubted(make, pixels) -> None:
    assert {p.code for p in gate(_numbered(make, pixels)).problems} == {"no-val-split"}
