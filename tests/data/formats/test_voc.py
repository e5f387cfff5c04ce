"""Pascal VOC: layouts, lists, flags, one-based coordinates, and what goes wrong in XML."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.table import DIFFICULT
from cvtrain.errors import DataError

BOX = ("cat", 1, 2, 5, 6)


@pytest.fixture
def devkit(make):
    """a and b in train, c in val; base may be a folder below the root."""

    def build(base=""):
        for name in "abc":
            make.image(f"{base}JPEGImages/{name}.jpg")
        make.voc(f"{base}Annotations/a.xml", ("dog", 1, 2, 5, 6, 1), ("cat", 1.5, 1, 8, 6))
        make.voc(f"{base}Annotations/b.xml")
        make.voc(f"{base}Annotations/c.xml", ("ape", 1, 1, 2, 2))
        make.text(f"{base}ImageSets/Main/train.txt", "a\r\nb\r\n\r\n")
        make.text(f"{base}ImageSets/Main/val.txt", "\ufeffc")
        make.text(f"{base}ImageSets/Main/cat_train.txt", "a  1\nb -1\n")
        return make

    return build


@pytest.mark.parametrize("base", ["", "VOC2007/", "VOCdevkit/VOC2007/"])
def test_reads_lists_boxes_and_flags(devkit, codes, base):
    reader = VOCReader(devkit(base).root)
    assert reader.splits() == ["train", "val"]
    assert reader.kinds == {"boxes"}
    split = reader.read("train")
    table = split.table
    assert codes(split) == []
    assert table.classes.names == ("ape", "cat", "dog")  # of all splits, sorted
    assert [table.files[i] for i in range(2)] == [f"{base}JPEGImages/{n}.jpg" for n in "ab"]
    assert table.annotation_files[1] == f"{base}Annotations/b.xml"
    assert table.image_id(0) == f"{base}JPEGImages/a.jpg"
    assert table.sizes.tolist() == [[6, 8], [6, 8]]
    assert table.starts.tolist() == [0, 2, 2]
    assert table.boxes.tolist() == [[1, 2, 5, 6], [1.5, 1, 8, 6]]
    assert table.labels.tolist() == [2, 1]
    assert table.flags.tolist() == [DIFFICULT, 0]
    assert table.lines.tolist() == [1, 2]
    assert reader.read("val").table.labels.tolist() == [0]


def test_one_based_moves_the_first_corner_only(devkit):
    table = VOCReader(devkit().root, one_based=True).read("train").table
    assert table.boxes.tolist() == [[0, 1, 5, 6], [0.5, 0, 8, 6]]


def test_given_names_set_the_order_and_others_are_unknown(devkit):
    split = VOCReader(devkit().root, names=["dog", "ape"]).read("train")
    assert split.table.classes.names == ("dog", "ape")
    assert split.table.labels.tolist() == [0, -1]
    (problem,) = split.problems
    assert (problem.code, problem.where, problem.annotation) == ("class-unknown", "object 2", 1)
    assert "'cat'" in problem.message


def test_given_names_have_to_be_unique(devkit):
    with pytest.raises(DataError, match="'cat' is given twice"):
        VOCReader(devkit().root, names=["cat", "cat"])


def test_trainval_alone_is_train(make):
    make.image("JPEGImages/a.jpg", "JPEGImages/b.jpg")
    make.voc("Annotations/a.xml", BOX)
    make.voc("Annotations/b.xml", BOX)
    make.text("ImageSets/Main/trainval.txt", "a\n")
    make.text("ImageSets/Main/test.txt", "b\n")
    assert VOCReader(make.root).splits() == ["train", "test"]
    both = VOCReader(make.root, train_list="trainval", val_list="test", test_list="none")
    assert both.splits() == ["train", "val"]
    assert both.read("val").table.files[0] == "JPEGImages/b.jpg"


def test_several_years_are_asked_about(devkit):
    devkit("VOCdevkit/VOC2007/")
    make = devkit("VOCdevkit/VOC2012/")
    with pytest.raises(DataError, match="VOCdevkit/VOC2007, VOCdevkit/VOC2012"):
        VOCReader(make.root)
    assert VOCReader(make.root, folder="VOCdevkit/VOC2012").splits() == ["train", "val"]
    with pytest.raises(DataError, match="no VOC annotations"):
        VOCReader(make.root, folder="../elsewhere")


@pytest.mark.parametrize(
    ("folder", "splits"),
    [("train", ["train"]), ("", ["train"]), ("valid", ["val"]), ("Annotations", ["train"])],
)
def test_folders_without_lists(make, codes, folder, splits):
    base = f"{folder}/" if folder else ""
    images = "images/" if folder == "Annotations" else base
    make.image(f"{images}ä b.PNG")
    make.voc(f"{base}ä b.xml", BOX)
    reader = VOCReader(make.root)
    assert reader.splits() == splits
    split = reader.read(splits[0])
    assert codes(split) == []
    assert split.table.files[0] == f"{images}ä b.PNG"
    assert "Pascal VOC" in str(VOCReader.detect(make.root))


def test_no_xml_at_all(make):
    make.image("JPEGImages/a.jpg")
    with pytest.raises(DataError, match="Annotations"):
        VOCReader(make.root)
    assert VOCReader.detect(make.root) is None


def test_image_of_another_name_is_found_by_filename(make, codes):
    make.image("JPEGImages/IMG 7.jpg")
    make.voc("Annotations/a.xml", BOX, extra="<filename>IMG 7.jpg</filename>")
    split = VOCReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.files[0] == "JPEGImages/IMG 7.jpg"


def test_filename_does_not_take_the_image_of_another_xml(make):
    make.image("JPEGImages/b.jpg", "JPEGImages/c.jpg")
    make.voc("Annotations/a.xml", BOX, extra="<filename>b.jpg</filename>")
    make.voc("Annotations/b.xml", BOX)
    make.voc("Annotations/x.xml", BOX, extra="<filename>c.jpg</filename>")
    make.voc("Annotations/y.xml", BOX, extra="<filename>c.jpg</filename>")
    split = VOCReader(make.root).read("train")
    assert [split.table.annotation_files[i] for i in range(2)] == [
        "Annotations/b.xml",
        "Annotations/x.xml",
    ]
    assert [(p.code, p.file) for p in split.problems] == [
        ("label-without-image", "Annotations/a.xml"),
        ("label-without-image", "Annotations/y.xml"),
    ]


def test_own_name_goes_before_filename(make, codes):
    make.image("JPEGImages/a.jpg", "JPEGImages/b.jpg")
    make.voc("Annotations/a.xml", BOX, extra="<filename>b.jpg</filename>")
    make.voc("Annotations/b.xml", BOX, extra="<filename>gone.jpg</filename>")
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.severity) == ("filename-differs", "note")
    assert split.table.files[0] == "JPEGImages/a.jpg"


def test_filename_settles_which_image_is_meant(make, codes):
    make.image("JPEGImages/a.jpg", "JPEGImages/a.png", "JPEGImages/b.jpg", "JPEGImages/b.png")
    make.voc("Annotations/a.xml", BOX, extra="<filename>a.png</filename>")
    make.voc("Annotations/b.xml", BOX)
    reader = VOCReader(make.root)
    split = reader.read("train")
    (problem,) = split.problems
    assert (problem.code, problem.image, problem.rejects) == ("image-ambiguous", 1, "image")
    assert split.table.files[0] == "JPEGImages/a.png"
    assert split.unlisted == ["JPEGImages/a.jpg", "JPEGImages/b.png"]


def test_path_that_does_not_exist_is_ignored_and_one_outside_is_not(make, tmp_path):
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"x")
    make.image(*(f"JPEGImages/{name}.jpg" for name in "abcd"))
    make.voc("Annotations/a.xml", BOX, extra="<path>/Users/me/Desktop/a.jpg</path>")
    make.voc("Annotations/d.xml", BOX, extra=f"<path>/{'x' * 5000}</path>")
    make.voc("Annotations/b.xml", BOX, extra=f"<path>{outside}</path>")
    make.voc("Annotations/c.xml", BOX, extra=f"<path>{make.root}/JPEGImages/c.jpg</path>")
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.file) == ("path-outside-root", "Annotations/b.xml")
    assert problem.rejects == "nothing"


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/secret.jpg", "..\\..\\secret.jpg"])
def test_filename_that_leaves_the_root(make, name):
    make.image("JPEGImages/a.jpg", "../secret.jpg")
    make.voc("Annotations/a.xml", BOX, extra=f"<filename>{name}</filename>")
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.image, problem.rejects) == ("path-outside-root", 0, "image")
    assert split.table.files[0] == "JPEGImages/a.jpg"


def test_list_line_that_leaves_the_root(devkit):
    make = devkit()
    make.image("../secret.jpg")
    make.text("ImageSets/Main/train.txt", "a\n../../secret\nb\na.jpg\n")
    split = VOCReader(make.root).read("train")
    found = [(p.code, p.file, p.where) for p in split.problems]
    assert found == [
        ("path-outside-root", "ImageSets/Main/train.txt", "line 2"),
        ("duplicate-file", "ImageSets/Main/train.txt", "line 4"),
    ]
    assert len(split.table) == 2


def test_list_that_is_not_text(devkit):
    make = devkit()
    make.text("ImageSets/Main/train.txt", b"a\n\xff\xfe\n")
    split = VOCReader(make.root).read("train")
    assert [(p.code, p.where) for p in split.problems] == [
        ("list-malformed", "line 2"),
        ("empty-split", ""),
    ]


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        ("<annotation>\n<object>\n</annotation>", "xml-malformed", "line 3"),
        ("", "xml-malformed", "line 1"),
        (b"<annotation><a>\xff\xfe</a></annotation>", "xml-malformed", "line 1"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "xml-malformed", "line 1"),
        ("<html></html>", "xml-malformed", ""),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "xml-entities", "line 1"),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
            "xml-entities",
            "line 1",
        ),
    ],
)
def test_malformed_xml_rejects_its_image(devkit, content, code, where):
    make = devkit()
    make.text("Annotations/a.xml", content)
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.file, problem.where) == (code, "Annotations/a.xml", where)
    assert (problem.image, problem.rejects) == (0, "image")
    assert "\n" not in problem.message
    assert len(split.table) == 2


def test_entity_bomb_is_one_problem_and_does_not_blow_up(devkit):
    make = devkit()
    levels = "".join(
        f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha" * 10}">' for i in range(12)
    )
    make.text("Annotations/a.xml", f"<!DOCTYPE x [{levels}]><annotation>&e11;</annotation>")
    split = VOCReader(make.root).read("train")
    assert [p.code for p in split.problems] == ["xml-entities"]


def test_entities_are_named_with_their_line_and_source(devkit):
    make = devkit()
    make.text("Annotations/a.xml", '<!DOCTYPE a [\n<!ENTITY b SYSTEM "file:///x">\n]><a>&b;</a>')
    (problem,) = VOCReader(make.root).read("train").problems
    assert problem.message == "defines the entity 'b' from 'file:///x'"
    assert problem.where == "line 2"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8-sig"])
def test_encodings_xml_declares(devkit, codes, encoding):
    make = devkit()
    declared = "utf-8" if encoding == "utf-8-sig" else encoding
    text = (
        f'<?xml version="1.0" encoding="{declared}"?>\r\n'
        "<annotation><object><name>bär</name><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    make.text("Annotations/a.xml", text.encode(encoding))
    split = VOCReader(make.root).read("train")
    assert codes(split) == []
    assert "bär" in split.table.classes.names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<bndbox/>", "no <name>"),
        (
            "<name>cat</name><difficult>maybe</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
            "<xmax>2</xmax><ymax>2</ymax></bndbox>",
            "'maybe', not 0 or 1",
        ),
    ],
)
def test_malformed_object_has_no_row(devkit, content, message):
    make = devkit()
    good = (
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        "</bndbox></object>"
    )
    make.text("Annotations/a.xml", f"<annotation><object>{content}</object>{good}</annotation>")
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("annotation-malformed", "object 1")
    assert (problem.image, problem.annotation, problem.rejects) == (0, -1, "annotation")
    assert message in problem.message
    assert split.table.lines.tolist() == [2]
    cat = split.table.classes.names.index("cat")
    assert split.lost.tolist() == [cat if "cat" in content else -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no <bndbox>"),
        ("<part><bndbox><xmin>1</xmin></bndbox></part>", "no <bndbox>"),
        ("<bndbox><xmin>1</xmin></bndbox>", "<ymin>"),
        (
            "<bndbox><xmin>1</xmin><ymin>x</ymin><xmax>1</xmax><ymax>1</ymax></bndbox>",
            "'x', not a number",
        ),
    ],
)
def test_an_object_without_a_box_keeps_its_row(devkit, content, message):
    make = devkit()
    content = f"<annotation><object><name>cat</name>{content}</object></annotation>"
    make.text("Annotations/a.xml", content)
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("box-malformed", "object 1")
    assert (problem.image, problem.annotation, problem.rejects) == (0, 0, "annotation")
    assert message in problem.message
    assert np.isnan(split.table.boxes[0]).all()
    assert split.table.classes.names[split.table.labels[0]] == "cat"


def test_geometry_is_left_to_the_gate(devkit, codes):
    make = devkit()
    make.voc(
        "Annotations/a.xml", ("cat", "nan", 2, 1, 1), ("cat", 5, 5, 1, 1), ("cat", -9, 0, 99, 0)
    )
    split = VOCReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.boxes[1:].tolist() == [[5, 5, 1, 1], [-9, 0, 99, 0]]


@pytest.mark.parametrize("size", ["<size><width>x</width><height>6</height></size>"])
def test_malformed_size(devkit, size):
    make = devkit()
    make.voc("Annotations/a.xml", BOX, size=size)
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.rejects) == ("record-malformed", "image")
    assert split.table.sizes[0].tolist() == [6, -1]


def test_a_size_that_is_not_given_is_unknown(devkit, codes):
    make = devkit()
    make.voc("Annotations/a.xml", BOX, size="<segmented>0</segmented>")
    split = VOCReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.sizes[0].tolist() == [-1, -1]


@pytest.mark.parametrize("height", ["0", "6"])
def test_a_size_of_nothing_is_unknown(devkit, height):
    make = devkit()
    size = f"<size><width>0</width><height>{height}</height><depth>3</depth></size>"
    make.voc("Annotations/a.xml", BOX, size=size)
    split = VOCReader(make.root).read("train")
    (note,) = split.problems
    assert (note.code, note.severity, note.image) == ("size-missing", "note", 0)
    assert split.table.sizes[0].tolist() == [int(height) or -1, -1]


def test_listed_image_without_xml(devkit):
    make = devkit()
    (make.root / "Annotations/b.xml").unlink()
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where, problem.image) == ("annotation-missing", "line 2", 1)
    assert split.table.annotation_files[1] == ""


def test_listed_image_that_is_not_there(devkit):
    make = devkit()
    (make.root / "JPEGImages/b.jpg").unlink()
    split = VOCReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.file) == ("image-missing", "ImageSets/Main/train.txt")
    assert (problem.where, problem.image) == ("line 2", 1)


def test_xml_without_image_that_no_list_names(devkit):
    make = devkit()
    make.voc("Annotations/orphan.xml", BOX)
    reader = VOCReader(make.root)
    (problem,) = reader.read("train").problems
    assert (problem.code, problem.file) == ("label-without-image", "Annotations/orphan.xml")
    assert reader.read("val").problems == []


def test_without_lists_halves_of_pairs_are_errors(make):
    make.image("train/a.jpg", "train/b.jpg")
    make.voc("train/a.xml", BOX)
    make.voc("train/c.xml", BOX)
    split = VOCReader(make.root).read("train")
    assert {(p.code, p.file) for p in split.problems} == {
        ("annotation-missing", "train/b.jpg"),
        ("label-without-image", "train/c.xml"),
    }
    assert len(split.table) == 2


def test_unlisted_images(devkit):
    make = devkit()
    make.image("JPEGImages/new.jpg")
    make.voc("Annotations/new.xml", BOX)
    reader = VOCReader(make.root)
    assert reader.read("train").unlisted == ["JPEGImages/new.jpg"]
    assert reader.read("train").problems == []


def test_empty_list_and_no_objects(devkit, make, codes):
    make = devkit()
    make.text("ImageSets/Main/val.txt", "\n")
    assert codes(VOCReader(make.root).read("val")) == ["empty-split"]
    make.voc("Annotations/a.xml")
    make.voc("Annotations/c.xml")
    assert codes(VOCReader(make.root).read("train")) == ["classes-missing"]
