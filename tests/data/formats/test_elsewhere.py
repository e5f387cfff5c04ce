"""Absolute paths of another machine: what is said of them, in each format; never guessed."""

from __future__ import annotations

import pytest

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.formats.elsewhere import Images
from cvtrain.data.formats.files import below, is_absolute
from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.formats.yolo import YOLOReader


def said(reader):
    """Code, place and message of the errors of train."""
    found = reader.read("train").problems
    return [(p.code, p.where, p.message) for p in found if p.severity == "error"]


LEADS = "is an absolute path that does not lead into data.root"


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        (r"C:\data\1.jpg", True),
        ("d:/data/1.jpg", True),
        (r"\\server\share\1.jpg", True),
        ("/home/x/1.jpg", True),
        (r"data\1.jpg", False),
        ("c:1.jpg", False),
        ("C1/x.jpg", False),
    ],
)
def test_absolute_paths(tmp_path, path, absolute):
    assert is_absolute(path) is absolute
    assert (below(tmp_path, "", path) is None) is absolute


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (r"C:\data\train\1.jpg", "; its end '1.jpg' is there: write that"),
        ("C:/data/set/train/sub/2.jpg", "; its end 'sub/2.jpg' is there: write that"),
        ("/home/x/train/sub/2.jpg", "; its end 'sub/2.jpg' is there: write that"),
        (r"\\nas\train\2.jpg", "; 'train/sub/2.jpg' alone has its name: write that, if it is"),
        (r"C:\3.jpg", "; 2 images have that name: write paths relative to train/"),
        (r"C:\data\9.jpg", "; no image is called '9.jpg': write paths relative to train/"),
        ("C:\\", "; no image is called 'C:': write paths relative to train/"),
    ],
)
def test_what_is_there_of_a_path(tmp_path, name, said):
    files = ["train/1.jpg", "train/sub/2.jpg", "train/a/3.jpg", "train/b/3.jpg"]
    message = Images(tmp_path, files).outside(name, ["train"])
    assert message.startswith(f"{name!r} {LEADS}{said}")


def test_a_relative_path_is_said_to_leave(tmp_path):
    assert Images(tmp_path, []).outside("../x.jpg", [""]) == "'../x.jpg' leaves data.root"


def test_a_very_long_path_keeps_its_end(tmp_path):
    message = Images(tmp_path, ["a.jpg"]).outside("C:\\" + "x" * 999 + "\\a.jpg", [""])
    assert message.startswith("'...xxx")
    assert message.endswith("'a.jpg' is there: write that")


@pytest.mark.parametrize("folder", ["C:\\data\\", "/home/me/data/"])
def test_coco_and_csv_name_the_end_that_is_there(make, img, ann, folder):
    make.image("train/1.jpg")
    make.coco("train.json", [img(1, f"{folder}1.jpg")], [ann(1, 1)])
    found, empty = said(COCOReader(make.root))
    assert empty[2] == "none of 1 images is found"
    end = f"{LEADS}; its end '1.jpg' is there: write that"
    assert found == ("path-outside-root", "image id 1", f"file_name {folder + '1.jpg'!r} {end}")
    make.text("train.csv", f"image,label\n{folder}1.jpg,cat\n")
    found, empty = said(CSVReader(make.root))
    assert empty[2] == "none of 1 images is found"
    assert found == ("path-outside-root", "line 2", f"{folder + '1.jpg'!r} {end}")


@pytest.mark.parametrize("base", ["C:\\sets\\pets\\", "/home/me/pets/"])
def test_yolo_names_the_end_that_is_there(make, base):
    make.image("images/train/1.jpg")
    make.text("labels/train/1.txt", "0 .5 .5 .2 .2")
    place = f"{base}images"
    make.text("data.yaml", f"train: '{place}'\nnames: [cat]\n")
    (found, *_) = said(YOLOReader(make.root))
    assert (found[0], found[2]) == (
        "path-outside-root",
        f"`train: {place}` leaves data.root; its end 'images' is there: write that",
    )
    make.text("data.yaml", f"path: '{base}'\ntrain: pets/images\nnames: [cat]\n")
    (found, *_) = said(YOLOReader(make.root))
    assert found[2] == (
        "`train: pets/images` does not exist below data.root; its end 'images' is there: write that"
    )
    make.text("data.yaml", "train: train.txt\nnames: [cat]\n")
    make.text("train.txt", f"{base}images/train/1.jpg\n{base}images/train/9.jpg\n")
    ours, gone, *_ = said(YOLOReader(make.root))
    assert ours[2].endswith(f"{LEADS}; its end 'images/train/1.jpg' is there: write that")
    assert gone[2].endswith("; no image is called '9.jpg': write paths relative to data.root")


def test_lists_of_names(make):
    make.image("JPEGImages/1.jpg", "images/1.jpg")
    make.voc("Annotations/1.xml", ("cat", 1, 1, 4, 4), extra="<filename>C:\\a\\1.jpg</filename>")
    make.text("ImageSets/Main/train.txt", "C:\\a\\1.jpg\n1\n")
    make.mask("masks/1.png", [0, 1])
    make.text("lists/train.txt", "C:\\a\\1.jpg\n1\n")
    message = "'C:\\\\a\\\\1.jpg' leaves data.root: an absolute path; write the name alone, as 0001"
    for reader in (VOCReader(make.root), MasksReader(make.root, lists="lists")):
        assert said(reader) == [("path-outside-root", "line 1", message)]
