"""Class folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.auto import AutoReader, recognize
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.masks import MasksReader
from cvtrain.errors import DataError


def test_reads_labels_of_splits(make, codes):
    make.image("train/dog/a.jpg", "train/cat/x/b ü.PNG", "val/cat/c.jpg", "val/dog/d.webp")
    make.text("train/dog/Thumbs.db", "x")
    make.text("train/dog/.hidden.jpg", "x")
    reader = FolderReader(make.root)
    assert reader.splits() == ["train", "val"]
    assert reader.kinds == {"label"}
    split = reader.read("train")
    table = split.table
    assert (codes(split), codes(reader.read("val"))) == (["folders-inside"], [])
    assert table.classes.names == ("cat", "dog")
    assert [table.files[i] for i in range(2)] == ["train/cat/x/b ü.PNG", "train/dog/a.jpg"]
    assert table.image_labels.tolist() == [0, 1]
    assert table.num_annotations == 0
    assert table.starts.tolist() == [0, 0, 0]
    assert table.image_id(1) == "train/dog/a.jpg"
    assert split.unlisted == []


@pytest.mark.parametrize("names", [("Train", "Valid"), ("training", "validation")])
def test_other_names_of_the_splits(make, names):
    for name in names:
        make.image(f"{name}/a/1.jpg", f"{name}/b/1.jpg")
    reader = FolderReader(make.root)
    assert reader.splits() == ["train", "val"]
    assert reader.read("val").table.files[0] == f"{names[1]}/a/1.jpg"


def test_one_level_is_train(make, codes):
    make.image("cat/a.jpg", "train/t.jpg", "cover.jpg")
    make.text("docs/readme.md", "x")
    reader = FolderReader(make.root)
    split = reader.read("train")
    assert reader.splits() == ["train"]
    assert split.table.classes.names == ("cat", "train")  # a railway is no split
    assert split.unlisted == ["cover.jpg"]
    assert codes(split) == []


def test_given_names(make):
    make.image("train/dog/a.jpg", "train/cat/b.jpg", "train/cow/c.jpg")
    split = FolderReader(make.root, names=["dog", "cat"]).read("train")
    assert split.table.image_labels.tolist() == [1, -1, 0]
    (problem,) = split.problems
    assert (problem.code, problem.image, problem.rejects) == ("class-unknown", 1, "image")
    with pytest.raises(DataError, match="given twice"):
        FolderReader(make.root, names=["a", "a"])


def test_class_folders_that_differ(make):
    make.image("train/cat/a.jpg", "train/dog/a.jpg", "val/cat/b.jpg", "val/cow/b.jpg")
    reader = FolderReader(make.root)
    assert reader.read("train").problems == []
    assert reader.read("val").problems == []  # the gate compares what occurs
    assert reader.read("val").known == {"cat", "dog"}
    assert reader.read("val").table.classes == reader.read("train").table.classes
    assert reader.read("val").table.image_labels.tolist() == [0, 1]


def test_an_empty_class_folder_is_a_class(make, codes):
    make.image("train/cat/a.jpg", "train/dog/a.jpg", "val/cat/b.jpg")
    (make.root / "val/dog").mkdir()
    assert codes(FolderReader(make.root).read("val")) == []
    (make.root / "val/cow").mkdir()
    assert FolderReader(make.root).read("val").table.classes.names == ("cat", "dog")
    (make.root / "train/emu").mkdir()
    assert FolderReader(make.root).read("val").table.classes.names == ("cat", "dog", "emu")


def test_empty_split_and_images_outside_class_folders(make, codes):
    make.image("train/cat/a.jpg", "train/loose.jpg", "extra/e.jpg")
    (make.root / "val/cat").mkdir(parents=True)
    reader = FolderReader(make.root)
    assert codes(reader.read("val")) == ["empty-split"]
    assert reader.read("train").unlisted == ["extra/e.jpg", "train/loose.jpg"]


def test_no_folders(make):
    make.image("a.jpg")
    with pytest.raises(DataError, match="train/CLASS"):
        FolderReader(make.root)


def test_linked_class_folder(make, tmp_path, codes):
    make.image("../far/a.jpg", "train/cat/b.jpg")
    (make.root / "train/dog").symlink_to(tmp_path / "far")
    split = FolderReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.files[1] == "train/dog/a.jpg"


def fill(make, folder, names, few=False):
    """Images of 16 x 12 with random pixels, or masks of two colors."""
    draws = np.random.default_rng(len(folder))
    (make.root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = draws.integers(0, 2 if few else 256, (12, 16, 3), np.uint8)
        image = Image.fromarray(pixels[..., 0] * 255 if few else pixels)
        image.save(make.root / folder / name)


NAMES = ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    ("images", "others", "suffix", "said"),
    [
        ("image", "mask", "", "data=masks"),
        ("train", "train_masks", "_mask", "data=masks"),
        ("train_images", "train_masks", "", "data=masks"),
        ("train/image", "train/mask", "", "data=masks"),
        ("img", "label", "", "data.reader.images=img data.reader.masks=label"),
        ("photos", "drawn", "", "data.reader.images=photos data.reader.masks=drawn"),
        ("train/photos", "train/drawn", "", "data.reader.images=photos data.reader.masks=drawn"),
        ("photos", "drawn", "_seg", "data.reader.images=photos data.reader.masks=drawn"),
        ("cats", "labels", "_x", "the folder labels/ is not a class by its name"),
    ],
)
def test_images_and_masks_are_no_classes(make, images, others, suffix, said):
    fill(make, images, NAMES)
    fill(make, others, [n.replace(".", f"{suffix}.") for n in NAMES], few=suffix != "_seg")
    with pytest.raises(DataError) as error:
        FolderReader(make.root)
    assert said in str(error.value)
    if "data.reader.images" in said:
        with pytest.raises(DataError, match="not classes"):
            recognize(make.root)
        options = dict(w.removeprefix("data.reader.").split("=") for w in said.split())
        assert len(MasksReader(make.root, **options).read("train").table) == 3
    elif "data=masks" in said:
        reader = AutoReader(make.root)
        assert reader.name == "masks"
        table = reader.read("train").table
        assert len(table) == 3
        assert all(table.masks[k] for k in range(3))


@pytest.mark.parametrize(
    ("classes", "few"),
    [
        (("cat", "dog"), False),  # Cat/1.png, Dog/1.png: numbered anew
        (("zero", "one"), True),  # glyphs in two colors
        (("mask", "no_mask"), False),
        (("with_mask", "without_mask"), False),
        (("person", "train"), False),
    ],
)
def test_equal_names_alone_are_no_masks(make, classes, few):
    for name in classes:
        fill(make, name, NAMES, few=few)
    assert FolderReader(make.root).read("train").table.classes.names == tuple(sorted(classes))
    assert recognize(make.root)[0] == "folder"


def test_named_classes_may_have_any_names(make):
    fill(make, "images", NAMES)
    fill(make, "masks", NAMES, few=True)
    reader = FolderReader(make.root, names=["masks", "images"])
    assert reader.read("train").table.classes.names == ("masks", "images")


# Folders inside of class folders -----------------------------------------------------------------

ANIMALS = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")


def below(folder, names=ANIMALS):
    return [f"{folder}/{name}" for name in names]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            below("animals"),
            "3 images lie deeper than the class folder: in animals/ cat 2, dog 1: say data.root=",
        ),
        (
            below("train/animals") + below("val/animals"),
            "in train/animals/ cat 2, dog 1: move train/animals/* to train/, or say data.root=",
        ),
        (below("pets/train") + below("pets/val"), "in pets/ train 3, val 3: say data.root="),
        (
            below("cat", ["train/1.jpg", "val/2.jpg"]) + below("dog", ["train/1.jpg", "val/2.jpg"]),
            "splits inside of classes; move cat/train/* to train/cat/, and so on",
        ),
    ],
)
def test_classes_one_level_deeper(make, images, said):
    make.image(*images)
    first, *_ = FolderReader(make.root).read("train").problems
    assert (first.code, first.severity) == ("folders-nested", "error")
    assert said in first.message
    if "say data.root=" in first.message:
        root = first.message.partition("data.root=")[2]
        assert root.startswith(make.root.as_posix())
        assert not FolderReader(root).read("train").problems
        assert len(FolderReader(root).read("train").table.classes) == 2
    names = FolderReader(make.root).read("train").table.classes.names
    problems = FolderReader(make.root, names=names).read("train").problems
    assert [p.code for p in problems] == ["folders-inside"]


@pytest.mark.parametrize(
    "images",
    [
        ["cat/s1/1.jpg", "cat/s2/2.jpg", "dog/s1/1.jpg", "dog/s2/2.jpg"],
        ["animals/cat/1.jpg", "animals/dog/1.jpg", "cars/vw/1.jpg"],
        ["cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg"],
        ["cat/1.jpg", "cat/more/2.jpg"],
        ["cat/train/1.jpg", "cat/2.jpg", "dog/test/1.jpg"],
        ["train/cat/s1/1.jpg", "train/dog/1.jpg", "val/cat/s1/1.jpg", "val/cat/s2/1.jpg"],
    ],
)
def test_folders_per_session_are_a_note(make, images):
    make.image(*images)
    reader = FolderReader(make.root)
    for split in reader.splits():
        (note,) = reader.read(split).problems
        assert (note.code, note.severity) == ("folders-inside", "note")
        assert "deeper than the class folder: in " in note.message


def test_auto_names_the_folder_above_the_classes(make):
    make.image(*below("animals"))
    with pytest.raises(DataError, match=r"cat 2, dog 1: say data\.root=.*/animals$"):
        recognize(make.root)
