"""Image/mask pairs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats import masks as masks_module
from cvtrain.data.formats.masks import MasksReader, mask_values
from cvtrain.data.mask_file import levels_of
from cvtrain.errors import DataError


@pytest.fixture
def pairs(make):
    """Two pairs in train, one in val, with these values in their masks."""

    def build(*values, names="sky\r\nsea\r\ncar\r\n"):
        values = values or ([0, 1], [2, 255], [1])
        for place, held in zip(("train/a", "train/b", "val/c"), values, strict=True):
            make.image(f"images/{place}.jpg", size=(4, 4))
            make.mask(f"masks/{place}.png", held)
        if names:
            make.text("classes.txt", names)
        return make

    return build


def test_reads_pairs(pairs, codes):
    reader = MasksReader(pairs().root)
    split = reader.read("train")
    table = split.table
    assert reader.splits() == ["train", "val"]
    assert reader.kinds == {"mask"}
    assert codes(split) == codes(reader.read("val")) == []
    assert [table.files[i] for i in range(2)] == ["images/train/a.jpg", "images/train/b.jpg"]
    assert [table.masks[i] for i in range(2)] == ["masks/train/a.png", "masks/train/b.png"]
    assert table.classes.names == ("sky", "sea", "car")
    assert table.mask_values is None
    assert table.num_annotations == 0


def test_three_classes_open_no_mask(pairs, monkeypatch):
    make = pairs()
    monkeypatch.setattr(masks_module, "mask_values", lambda path, _: pytest.fail(f"opened {path}"))
    MasksReader(make.root).read("train")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (([0, 255], [0], [255, 0]), [0, 255]),
        (([0, 255], [0, 1], [0]), None),
        (([0, 255], [0], [0, 255, 128]), None),
        (([0], [0], [0]), None),
        (([255], [255], [255]), None),
        (([0, 1], [0, 1], [1]), None),
    ],
)
def test_two_classes_are_binary_if_the_whole_set_is(pairs, values, expected):
    make = pairs(*values, names="back\nfront")
    table = MasksReader(make.root).read("train").table
    assert (None if table.mask_values is None else table.mask_values.tolist()) == expected


def test_looking_stops_at_the_first_mask_that_tells(pairs, monkeypatch):
    make = pairs([0, 1], [0, 255], [0], names="back\nfront")
    opened = []

    def spy(path, lossy):
        opened.append(path.name)
        return mask_values(path, lossy)

    monkeypatch.setattr(masks_module, "mask_values", spy)
    reader = MasksReader(make.root)
    reader.read("train")
    reader.read("val")
    assert opened == ["a.png"]


@pytest.mark.parametrize(
    ("values", "names", "mapped"),
    [
        (([0, 255], [0], [255]), ("background", "foreground"), [0, 255]),
        (([0, 2], [255], [1]), ("0", "1", "2"), None),
    ],
)
def test_without_names_the_values_name_the_classes(pairs, values, names, mapped):
    table = MasksReader(pairs(*values, names="").root).read("val").table
    assert table.classes.names == names
    assert (None if table.mask_values is None else table.mask_values.tolist()) == mapped


def test_given_values_and_names(pairs):
    make = pairs([0, 128], [0], [128], names="")
    table = MasksReader(make.root, mask_values=[0, 128]).read("train").table
    assert table.mask_values.tolist() == [0, 128]
    assert table.classes.names == ("0", "128")
    table = MasksReader(make.root, names=["a", "b"], mask_values=[0, 128]).read("train").table
    assert table.classes.names == ("a", "b")
    assert table.mask_values.tolist() == [0, 128]


@pytest.mark.parametrize(("mode", "held"), [("L", {0, 255}), ("P", {0, 255}), ("1", {0, 255})])
def test_values_of_every_mode(make, mode, held):
    assert mask_values(make.mask(f"{mode}.png", [0, 255], mode)) == held


def test_values_of_16_bit_color_and_broken_masks(make, monkeypatch):
    Image.new("I;16", (4, 4), 700).save(make.root / "deep.png")
    Image.new("RGB", (4, 4), (0, 255, 0)).save(make.root / "rgb.png")
    make.text("broken.png", "x")
    assert mask_values(make.root / "deep.png") == {700}
    assert mask_values(make.root / "rgb.png") == set()
    assert mask_values(make.root / "broken.png") == set()
    path = make.mask("large.png", [0, 255])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert mask_values(path) == set()


@pytest.mark.parametrize(
    ("image", "mask", "splits"),
    [
        ("train/images/a.jpg", "train/masks/a.png", ["train"]),
        ("images/a.jpg", "masks/a.png", ["train"]),
        ("images/valid/x/a b ü.JPG", "masks/valid/x/a b ü.png", ["val"]),
    ],
)
def test_layouts(make, codes, image, mask, splits):
    make.image(image)
    make.mask(mask, [0, 1])
    reader = MasksReader(make.root)
    split = reader.read(splits[0])
    assert reader.splits() == splits
    assert codes(split) == []
    assert split.table.masks[0] == mask


def test_lists_and_other_folders_as_in_voc(make):
    make.image("JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg", "../x.jpg")
    make.mask("SegmentationClass/a.png", [0, 1], "P")
    make.text("ImageSets/Segmentation/train.txt", "a\nb\n../../x\na\ngone\n")
    reader = MasksReader(
        make.root,
        names=["background", "cat", "dog"],
        images="JPEGImages",
        masks="SegmentationClass",
        lists="ImageSets/Segmentation",
    )
    split = reader.read("train")
    assert [(p.code, p.image) for p in split.problems] == [
        ("path-outside-root", -1),
        ("duplicate-file", -1),
        ("mask-missing", 1),
        ("image-missing", 2),
        ("mask-missing", 2),
    ]
    assert split.unlisted == ["JPEGImages/c.jpg"]


def test_list_that_is_not_text(make, codes):
    make.image("images/a.jpg")
    make.mask("masks/a.png", [0, 1])
    make.text("lists/train.txt", b"\xff")
    split = MasksReader(make.root, names=["a", "b"], lists="lists").read("train")
    assert codes(split) == ["list-malformed", "empty-split"]


def test_halves_of_pairs(pairs, codes):
    make = pairs()
    make.image("images/train/lonely.jpg")
    make.mask("masks/train/orphan.png", [0])
    split = MasksReader(make.root).read("train")
    missing, orphan = split.problems
    assert (missing.code, missing.image, missing.rejects) == ("mask-missing", 2, "image")
    assert (orphan.code, orphan.file) == ("mask-without-image", "masks/train/orphan.png")
    assert split.table.masks[2] == ""


def test_two_masks_for_one_image(pairs):
    make = pairs()
    make.mask("masks/train/a.bmp", [0])
    (problem,) = MasksReader(make.root).read("train").problems
    assert (problem.code, problem.image) == ("image-ambiguous", 0)


def test_mask_suffix(make, codes):
    make.image("images/train/a.jpg")
    make.mask("masks/train/a_mask.png", [0, 1])
    split = MasksReader(make.root, mask_suffix="_mask").read("train")
    assert codes(split) == []
    assert split.table.masks[0] == "masks/train/a_mask.png"


@pytest.mark.parametrize(
    ("names", "where", "message"),
    [
        (b"sky\n\xff\n", "line 2", "not UTF-8"),
        (b"sky\nsky\n", "", "given twice"),
        (b"\n", "", "no class names"),
        (b"cell\n", "", "two classes or more"),
    ],
)
def test_malformed_class_names(pairs, names, where, message):
    make = pairs()
    make.text("classes.txt", names)
    (problem,) = MasksReader(make.root).read("train").problems
    assert (problem.code, problem.where) == ("classes-missing", where)
    assert message in problem.message


def test_empty_split_unlisted_and_nothing_at_all(pairs, make, codes):
    pairs()
    (make.root / "images/val/c.jpg").unlink()
    make.image("images/extra/x.jpg", "cover.jpg")
    reader = MasksReader(make.root)
    assert codes(reader.read("val")) == ["mask-without-image", "empty-split"]
    assert reader.read("train").unlisted == ["images/extra/x.jpg"]
    with pytest.raises(DataError, match="'photos' and 'masks'"):
        MasksReader(make.root, images="photos")
    with pytest.raises(DataError, match=r"leaves data\.root"):
        MasksReader(make.root, masks="../masks")
    with pytest.raises(DataError, match="given twice"):
        MasksReader(make.root, names=["a", "a"])


@pytest.mark.parametrize("values", [[0], [0, 0], [0, 1, 2, 3], [0, 1, 65536], [0, 1, -1], []])
def test_mask_values_that_are_not_one_for_each_class(pairs, values):
    with pytest.raises(DataError, match=r"data\.reader\.mask_values"):
        MasksReader(pairs().root, mask_values=values)


def jpegs(make, levels, quality, names="", count=3):
    """Pairs with masks of these levels, foregrounds of a few rows, saved as JPEG."""
    for k in range(count):
        make.image(f"images/{k}.png", size=(96, 64))
        pixels = np.full((64, 96), levels[0], np.uint8)
        for n, level in enumerate(levels[1:]):
            pixels[5 + 17 * n + k : 11 + 17 * n + k, 7 : 50 + 13 * k] = level
        (make.root / "masks").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(make.root / f"masks/{k}.jpg", quality=quality)
    if names:
        make.text("classes.txt", names)
    return make.root


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize(
    ("levels", "names", "wanted"),
    [
        ([0, 255], "", ("background", "foreground")),
        ([0, 255], "back\nfront", ("back", "front")),
        ([0, 128], "", None),
        ([0, 90, 180], "", None),
    ],
)
def test_values_of_jpegs_are_the_levels_they_crowd_around(make, levels, names, wanted, quality):
    split = MasksReader(jpegs(make, levels, quality, names)).read("train")
    assert split.problems == []
    if wanted:
        assert split.table.classes.names == wanted
    assert np.abs(split.table.class_values - levels).max() <= 2


@pytest.mark.parametrize("levels", [[0, 1, 2, 3], [0, 20, 40], list(range(0, 200, 25))])
def test_jpegs_without_levels_are_refused(make, codes, levels):
    split = MasksReader(jpegs(make, levels, 75)).read("train")
    assert codes(split) == ["mask-levels"]
    assert split.problems[0].file == "masks/0.jpg"
    assert "PNG" in split.problems[0].fix


def test_noise_has_no_levels():
    draws = np.random.default_rng(0)
    for counts in (np.full(256, 9), draws.integers(0, 5, 256), draws.poisson(300, 256)):
        assert levels_of(counts) is None
    assert levels_of(np.eye(256, dtype=np.int64)[0] * 500) == [0], "blank"
