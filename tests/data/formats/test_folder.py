"""Class folders."""

from __future__ import annotations

import pytest

from cvtrain.data.formats.folder import FolderReader
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
    assert codes(split) == codes(reader.read("val")) == []
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
    (problem,) = reader.read("val").problems
    assert (problem.code, problem.file) == ("classes-differ", "val")
    assert "lacks 'dog'; adds 'cow'" in problem.message
    assert reader.read("val").table.classes == reader.read("train").table.classes
    assert reader.read("val").table.image_labels.tolist() == [0, 1]


def test_an_empty_class_folder_is_a_class(make, codes):
    make.image("train/cat/a.jpg", "train/dog/a.jpg", "val/cat/b.jpg")
    (make.root / "val/dog").mkdir()
    assert codes(FolderReader(make.root).read("val")) == []


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
