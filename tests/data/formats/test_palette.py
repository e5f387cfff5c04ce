"""Palettes in every form that tools write, and masks read by them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.files import MalformedError
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.palette import read_palette
from cvtrain.data.gate.run import run_gate
from cvtrain.data.mask_file import ClassOfValue, decode_mask
from cvtrain.errors import DataError

ROAD, CAR = 128 << 16 | 64 << 8 | 128, 64 << 8 | 128


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "road 128 64 128\nfast car\t0 64 128\nVoid 0 0 0\n"),
        ("p.txt", "# made by hand\n128 64 128\t\troad\n0 64 128 fast car\n0 0 0 void"),
        ("p.csv", "name,r,g,b\nroad,128,64,128\nfast car,0,64,128\nunlabeled,0,0,0"),
        ("p.csv", "name;r;g;b\r\nroad;128;64;128\r\nfast car;0;64;128\r\nignore;0;0;0"),
        ("p.txt", "road #804080\nfast car #004080\nvoid #000000"),
        ("p.txt", "#804080 road\n#004080 fast car\n#000000 void"),
        (
            "p.txt",
            "# label:color_rgb:parts:actions\n"
            "road:128,64,128::\nfast car:0,64,128::\nvoid:0,0,0::",
        ),
        ("p.json", json.dumps({"road": [128, 64, 128], "fast car": "#004080", "void": [0, 0, 0]})),
        (
            "p.json",
            json.dumps(
                {
                    "labels": [
                        {"name": "road", "color": [128, 64, 128]},
                        {"name": "fast car", "colour": [0, 64, 128, 255]},
                        {"name": "Unlabelled", "color": [0, 0, 0]},
                    ]
                }
            ),
        ),
    ],
)  # fmt: skip
def test_forms_of_colors(make, name, content):
    palette = read_palette(make.text(name, content))
    assert palette.colors
    assert palette.classes.names == ("road", "fast car")
    assert palette.values.tolist() == [ROAD, CAR]
    assert palette.void.tolist() == [0]
    assert (palette.places.tolist(), palette.void_places.tolist()) == ([0, 1], [2])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "0: unlabeled\n7: road\n92: banner\n"),
        ("p.csv", "name,value\nunlabeled,0\nroad,7\nbanner,92"),
        ("p.txt", "7 road\n92 banner\nvoid 0\nnothing 255"),
        (
            "p.json",
            json.dumps({"categories": [{"id": 7, "name": "road"}, {"id": 92, "name": "banner"}]}),
        ),
        ("p.json", json.dumps({"road": 7, "banner": 92})),
    ],
)
def test_forms_of_values(make, name, content):
    palette = read_palette(make.text(name, content))
    assert not palette.colors
    assert palette.classes.names == ("road", "banner")
    assert palette.values.tolist() == [7, 92]


@pytest.mark.parametrize(
    ("name", "content", "where", "said"),
    [
        ("p.txt", "", "", "no class in it"),
        ("p.txt", "road 1 2 3\ncar one two", "line 2", "neither NAME R G B nor NAME VALUE"),
        ("p.txt", "road 1 2 300", "line 1", r"the color \[1, 2, 300\] is not of numbers 0 to 255"),
        ("p.txt", "road 1 2 3\ncar 1 2 3", "line 2", "'car' has the color 1 2 3 of 'road'"),
        ("p.txt", "road 7\ncar 7", "line 2", "'car' has the value 7 of 'road'"),
        ("p.txt", "car 1 2 3\ncar 4 5 6", "line 2", "class 'car' stands on line 1 already"),
        ("p.txt", "road 1 2 3\ncar 7", "line 2", "some entries have colors, others pixel values"),
        ("p.txt", "road 70000", "line 1", "70000 is not in 0..65535"),
        ("p.json", "{", "line 1", "not JSON"),
        ("p.json", "3", "", "an object or a list of classes is expected"),
        ("p.json", "[3]", "entry 1", "3 has no name"),
        ("p.json", '[{"color": [1, 2, 3]}]', "entry 1", "the name 'None' is none"),
        ("p.json", '{"road": [1, 2]}', "'road'", "neither"),
    ],
)
def test_what_is_wrong_with_a_palette(make, name, content, where, said):
    with pytest.raises(MalformedError, match=said) as caught:
        read_palette(make.text(name, content))
    assert caught.value.where == where


@pytest.fixture
def colored(make):
    """Three pairs of 4 x 4 pixels: road, car and void in colors, as RGB and as palette PNG."""

    def build(palette="palette.txt", mode="RGB", odd=()):
        colors = np.zeros((4, 4, 3), np.uint8)
        colors[1:3], colors[3] = (128, 64, 128), (0, 64, 128)
        for k, place in enumerate(("train/a", "train/b", "val/c")):
            make.image(f"images/{place}.jpg", size=(4, 4))
            held = colors.copy()
            if place in odd:
                held[0, :3] = (1, 2, 3)
            path = make.root / f"masks/{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(held)
            (image.quantize() if mode == "P" else image.convert(mode)).save(path)
            Image.fromarray(np.full((4, 4, 3), 40 * k, np.uint8)).save(
                make.root / f"images/{place}.jpg"
            )
        if palette:
            make.text(palette, "road 128 64 128\ncar 0 64 128\nvoid 0 0 0")
        return make.root

    return build


def gate(reader, **options):
    options = {"strict": False, "progress": False, **options}
    return run_gate(reader, "semantic_segmentation", **options)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("named", [True, False])
def test_masks_in_colors(colored, mode, named):
    root = colored("palette.txt" if not named else "mine.txt", mode)
    reader = MasksReader(root, palette="mine.txt" if named else None)
    report = gate(reader)
    assert not report.errors
    table = report.tables["train"]
    assert table.classes.names == ("road", "car")
    assert table.mask_colors
    pixels = decode_mask(root / table.masks[0], table.mask_colors)
    classes = ClassOfValue(table.mask_values)(pixels)
    assert classes[:, 0].tolist() == [255, 0, 0, 1]


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_a_color_that_the_palette_lacks(colored, on_bad):
    report = gate(MasksReader(colored(odd=("train/b",))), on_bad=on_bad)
    (problem,) = report.errors
    assert (problem.code, problem.file) == ("mask-color", "masks/train/b.png")
    assert problem.message == "color 1 2 3 (3 pixels); not among the 3 of the palette"
    assert report.counts["train"].used == (2 if on_bad == "fix" else 1)
    assert report.images == report.used + report.rejected


def test_colors_without_a_palette_name_the_key(colored):
    report = gate(MasksReader(colored(palette=None), names=["road", "car"]))
    assert {p.code for p in report.errors} == {"mask-mode", "empty-split"}
    assert "data.palette=FILE" in report.errors[0].fix


def test_a_broken_or_absent_palette_is_one_line(colored):
    root = colored(palette=None)
    (root / "bad.txt").write_text("road 1 2 3\nroad")
    (problem, *_) = MasksReader(root, palette="bad.txt").read("train").problems
    assert (problem.code, problem.file, problem.where) == ("classes-missing", "bad.txt", "line 2")
    with pytest.raises(DataError, match=r"data\.palette=gone\.txt: no such file"):
        MasksReader(root, palette="gone.txt")
    with pytest.raises(DataError, match=r"omit data\.reader\.names"):
        MasksReader(root, palette="bad.txt", names=["a", "b"])


def test_gray_masks_beside_a_palette_hold_indices_or_its_grays(make):
    for place in ("train/a", "val/b"):
        make.image(f"images/{place}.jpg", size=(4, 4))
        make.mask(f"masks/{place}.png", [0, 2])
    make.text("class_dict.csv", "name,r,g,b\nsky,1,2,3\nvoid,0,0,0\nsea,4,5,6")
    table = MasksReader(make.root).read("train").table
    assert not table.mask_colors
    assert (table.classes.names, table.mask_values.tolist()) == (("sky", "sea"), [0, 2])
    assert table.mask_void.tolist() == [1]
    for place in ("train/a", "val/b"):
        make.mask(f"masks/{place}.png", [0, 255])
    make.text("class_dict.csv", "name,r,g,b\nland,0,0,0\nhouse,255,255,255")
    table = MasksReader(make.root).read("train").table
    assert (table.mask_colors, table.mask_values.tolist()) == (True, [0, 0xFFFFFF])


def test_values_with_gaps_and_of_16_bits(make):
    for place in ("train/a", "val/b"):
        make.image(f"images/{place}.jpg", size=(4, 4))
        path = make.root / f"masks/{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.resize(np.array([0, 7, 700, 255], np.uint16), (4, 4))).save(path)
    table = MasksReader(make.root).read("train").table
    assert (table.classes.names, table.mask_values.tolist()) == (("0", "7", "700"), [0, 7, 700])
    reader = MasksReader(make.root, names={7: "road", 700: "car"}, mask_void=[0])
    report = gate(reader)
    assert not report.errors
    table = report.tables["train"]
    assert table.classes.names == ("road", "car")
    classes = ClassOfValue(table.mask_values)(decode_mask(make.root / table.masks[0]))
    assert classes[0].tolist() == [255, 0, 1, 255]
    report = gate(MasksReader(make.root, names={7: "road", 700: "car"}))
    assert report.errors[0].message == "value 0 (4 pixels); classes are 7, 700, void is 255"


@pytest.mark.parametrize(
    ("images", "masks", "options"),
    [
        ("images/train/a.jpg", "masks/train/a_mask.gif", {}),
        ("images/train/x/a.jpg", "masks/train/x/a-gt.png", {}),
        (
            "leftImg8bit/train/ulm/a_leftImg8bit.png",
            "gtFine/train/ulm/a_gtFine_labelIds.png",
            {"images": "leftImg8bit", "masks": "gtFine", "image_suffix": "_leftImg8bit"},
        ),
        (
            "train2017/a.jpg",
            "stuffthingmaps/train2017/a.png",
            {"images": ".", "masks": "stuffthingmaps"},
        ),
        (
            "all/train/a.jpg",
            "all/train/a_mask.png",
            {"images": "all", "masks": "all", "mask_suffix": "_mask"},
        ),
    ],
)
def test_names_and_folders(make, codes, images, masks, options):
    second = [
        name.replace("a.", "b.").replace("a_", "b_").replace("a-", "b-") for name in (images, masks)
    ]
    for image, mask in ((images, masks), second):
        make.image(image, size=(4, 4))
        make.mask(mask, [0, 1, 2])
    split = MasksReader(make.root, **options).read("train")
    assert codes(split) == []
    assert [split.table.files[0], split.table.masks[0]] == [images, masks]


def test_one_folder_for_both_wants_the_suffix(make):
    make.image("all/a.jpg", "all/a_mask.png")
    with pytest.raises(DataError, match=r"one folder, all; say data\.reader\.mask_suffix=_mask"):
        MasksReader(make.root, images="all", masks="all")


def test_an_object_number_is_no_suffix(make, codes):
    make.image("images/a.jpg", "masks/a_0.png")
    split = MasksReader(make.root, names=["x", "y"]).read("train")
    assert codes(split) == ["mask-missing", "mask-without-image"]
