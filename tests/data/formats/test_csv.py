"""Labels of whole images in CSV files."""

from __future__ import annotations

import pytest

from cvtrain.data.formats.auto import recognize
from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.errors import DataError


def labels(table):
    """File -> names of its classes."""
    return {
        table.files[i]: [table.classes.names[t] for t in table.tags_of(i)]
        for i in range(len(table))
    }


@pytest.fixture
def said(make):
    """Splits' problems as (code, where, message)."""

    def problems(reader, split="train"):
        return [(p.code, p.where, p.message) for p in reader.read(split).problems]

    return problems


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_image_and_labels_columns(make, codes, end, mark):
    make.image("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/deep/d ü.png", "e.jpg")
    rows = ["Image,Labels", "a.jpg,dog; cat", "b.jpg,", '"c.jpg"," dog  house ;"', "deep/d ü.png,x"]
    make.text("list.csv", mark + end.join(rows) + end)
    reader = CSVReader(make.root)
    split = reader.read("train")
    assert codes(split) == []
    assert split.table.classes.names == ("cat", "dog", "dog house", "x")
    assert labels(split.table) == {
        "images/a.jpg": ["cat", "dog"],
        "images/b.jpg": [],
        "images/c.jpg": ["dog house"],
        "images/deep/d ü.png": ["x"],
    }
    assert split.table.image_lines.tolist() == [2, 3, 4, 5]
    assert split.table.image_id(1) == "images/b.jpg"
    assert split.unlisted == ["e.jpg"]
    assert reader.splits() == ["train"]


def test_quoted_cells_with_line_ends_and_delimiters(make, codes):
    make.image("a, b.jpg", "c.jpg")
    make.text("l.csv", 'file,note,label\n"a, b.jpg","two\nlines, ""both""",cat\n\nc.jpg,,dog\n')
    split = CSVReader(make.root).read("train")
    assert codes(split) == []
    assert labels(split.table) == {"a, b.jpg": ["cat"], "c.jpg": ["dog"]}
    assert split.table.image_lines.tolist() == [2, 5]


@pytest.mark.parametrize(
    "places", [("", ""), ("train/", "valid/"), ("images/train/", "images/valid/")]
)
def test_a_file_a_split(make, codes, places):
    make.image(f"{places[0]}a.jpg", f"{places[1]}b.jpg")
    make.text("train.csv", "image,label\na.jpg,cat\n")
    make.text("valid.csv", "image,label\nb.jpg,dog\n")
    make.text("notes.csv", "x\n1\n")
    reader = CSVReader(make.root)
    assert reader.splits() == ["train", "val"]
    assert labels(reader.read("train").table) == {f"{places[0]}a.jpg": ["cat"]}
    assert labels(reader.read("val").table) == {f"{places[1]}b.jpg": ["dog"]}
    assert reader.read("train").table.classes.names == ("cat", "dog")
    assert codes(reader.read("val")) == codes(reader.read("train")) == []


def test_a_column_of_splits(make, said):
    make.image("a.jpg", "b.jpg", "c.jpg")
    make.text("l.csv", "image,label,split\na.jpg,x,train\nb.jpg,x,Validation\nc.jpg,x,dev\n")
    reader = CSVReader(make.root)
    assert reader.splits() == ["train", "val"]
    message = "split 'dev' is none of train, val, test"
    assert said(reader) == [("record-malformed", "line 4", message)]
    assert said(reader, "val") == []
    make.text("l.csv", "image,label,fold\na.jpg,x,train\nb.jpg,x,test\n")
    assert CSVReader(make.root, split_column="fold").splits() == ["train", "test"]
    assert CSVReader(make.root).splits() == ["train"]


def test_a_column_a_class(make, said):
    make.image("a.jpg", "b.jpg", "c.jpg")
    make.text("l.csv", "image,dog,cat,owl\na.jpg,1,0,0\nb.jpg,1.0,True,\nc.jpg,0,0,0\n")
    reader = CSVReader(make.root)
    split = reader.read("train")
    assert said(reader) == []
    assert split.table.classes.names == ("dog", "cat", "owl")
    assert labels(split.table) == {"a.jpg": ["dog"], "b.jpg": ["dog", "cat"], "c.jpg": []}
    make.text("l.csv", "image,dog,cat,width\na.jpg,1,0,640\nb.jpg,-1,0,480\n")
    with pytest.raises(DataError, match="no column of labels; there are: image, dog, cat, width"):
        CSVReader(make.root)
    reader = CSVReader(make.root, class_columns=["dog", "cat"])
    message = "'-1' in column 'dog' is neither 0 nor 1"
    assert said(reader) == [("record-malformed", "line 3", message)]
    assert labels(reader.read("train").table) == {"a.jpg": ["dog"]}


def test_columns_delimiters_and_separators_of_ones_own(make, codes):
    make.image("pics/a.jpg", "pics/b.jpg")
    make.text("x/l.csv", "name\tkinds\na\tcat|dog\nb.jpg\tdog\n")
    reader = CSVReader(
        make.root,
        file="x/l.csv",
        images="pics",
        image_column="name",
        labels_column="KINDS",
        label_separator="|",
        delimiter="tab",
    )
    split = reader.read("train")
    assert codes(split) == []
    assert labels(split.table) == {"pics/a.jpg": ["cat", "dog"], "pics/b.jpg": ["dog"]}
    whole = CSVReader(
        make.root,
        file="x/l.csv",
        images="pics",
        image_column="name",
        labels_column="kinds",
        label_separator=None,
        delimiter="\\t",
    )
    assert whole.read("train").table.classes.names == ("cat|dog", "dog")


def test_given_names(make, said):
    make.image("a.jpg", "b.jpg")
    make.text("l.csv", "image,label\na.jpg,dog\nb.jpg,dog;cow\n")
    reader = CSVReader(make.root, names=["dog", "cat"])
    message = "label 'cow' is none of the classes dog, cat"
    assert said(reader) == [("class-unknown", "line 3", message)]
    (found,) = reader.read("train").problems
    assert (found.image, found.rejects) == (1, "image")
    assert reader.read("train").table.classes.names == ("dog", "cat")
    with pytest.raises(DataError, match="given twice"):
        CSVReader(make.root, names=["a", "a"])


def test_bad_lines_each_with_its_place(make, said):
    make.image("a.jpg", "b.jpg", "c/a.jpg")
    rows = [
        "image,labels",
        "a.jpg,x",
        "gone.jpg,x",
        "../out.jpg,x",
        "/etc/passwd,x",
        "b.jpg,x,y",
        "b.jpg",
        ",x",
        "b.jpg,x;x",
        "./a.jpg,y",
    ]
    make.text("l.csv", "\n".join(rows))
    reader = CSVReader(make.root)
    assert said(reader) == [
        ("record-malformed", "line 6", "3 cells, the header has 2: b.jpg,x,y"),
        ("record-malformed", "line 7", "1 cell, the header has 2: b.jpg"),
        ("image-missing", "line 3", "there is no image 'gone.jpg'"),
        ("path-outside-root", "line 4", "'../out.jpg' leaves data.root"),
        (
            "path-outside-root",
            "line 5",
            "'/etc/passwd' is an absolute path that does not lead into data.root; no image is "
            "called 'passwd': write paths relative to data.root",
        ),
        ("record-malformed", "line 8", "no image is named"),
        ("label-repeated", "line 9", "label 'x' twice"),
        ("duplicate-file", "line 10", "'a.jpg' is named in line 2 already"),
    ]
    table = reader.read("train").table
    assert labels(table) == {"a.jpg": ["x", "y"], "gone.jpg": ["x"], "b.jpg": ["x"]}
    assert {p.file for p in reader.read("train").problems} == {"l.csv"}


def test_absolute_paths_inside_and_windows_ones(make, codes):
    make.image("pics/a.jpg", "pics/b.jpg")
    make.text("l.csv", f"image,label\n{make.root}/pics/a.jpg,x\npics\\b.jpg,x\n")
    split = CSVReader(make.root).read("train")
    assert codes(split) == []
    assert list(labels(split.table)) == ["pics/a.jpg", "pics/b.jpg"]


def test_labels_that_look_like_several(make, said):
    make.image("a.jpg", "b.jpg")
    make.text("l.csv", 'image,label\na.jpg,"cat,dog"\nb.jpg,dog\n')
    message = (
        "label 'cat,dog' holds ',', and no cell a ';'; say data.reader.label_separator=',' if it "
        "parts labels"
    )
    assert said(CSVReader(make.root)) == [("separator-doubtful", "", message)]
    assert said(CSVReader(make.root, label_separator=",")) == []
    assert said(CSVReader(make.root, label_separator=None)) == []


@pytest.mark.parametrize("joint", [" ", "/", "+"])
def test_classes_that_join_others(make, said, joint):
    make.image("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    rows = [
        "image,label",
        "a.jpg,red",
        "b.jpg,blue",
        f"c.jpg,red{joint}blue",
        "d.jpg,traffic light",
    ]
    make.text("l.csv", "\n".join(rows))
    key = "data.reader.label_separator"
    message = (
        f"label 'red{joint}blue' is a class of its own, and joins others by {joint!r}: blue, red; "
        f"no cell holds a ';'; say {key}='{joint}' if it parts labels, {key}=null if not"
    )
    assert said(CSVReader(make.root)) == [("separator-doubtful", "", message)]
    assert said(CSVReader(make.root, label_separator=joint)) == []
    assert said(CSVReader(make.root, label_separator=None)) == []
    make.text("l.csv", "\n".join([*rows, "a.jpg,red;blue"]))
    assert "separator-doubtful" not in [code for code, *_ in said(CSVReader(make.root))]


@pytest.mark.parametrize("separator", [" ", ",", "|", "/", "_"])
@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (["cat", "dog", "owl", "cat dog", "dog owl", "cat owl"], "labels-joined"),
        (["cat", "dog", "owl", "cat dog", "dog owl cat", "owl dog", "polar fox"], "labels-joined"),
        (["cat dog", "dog owl", "cat owl"], "separator-doubtful"),
        (["polar bear", "grizzly bear", "bear"], ""),
        (["polar bear", "polar fox", "grizzly bear", "sloth bear"], ""),
        (["red car", "blue car", "red truck", "blue truck"], ""),
        (["traffic light", "stop sign", "light rail", "rail traffic"], ""),
        (["black throated blue warbler", "black throated gray warbler", "blue jay"], ""),
    ],
)
def test_labels_joined(make, said, separator, labels, code):
    rows = [f'{i}.jpg,"{name.replace(" ", separator)}"' for i, name in enumerate(labels)]
    make.image(*(f"{i}.jpg" for i in range(len(labels))))
    make.text("train.csv", "\n".join(["image,label", *rows[:-1]]))
    make.text("val.csv", "\n".join(["image,label", *rows[-1:]]))
    found = [(kind, message) for kind, _, message in said(CSVReader(make.root))]
    held = separator in (",", "|") and not code
    assert [kind for kind, _ in found] == [code or "separator-doubtful"] * bool(code or held)
    if code:
        assert f"say data.reader.label_separator='{separator}'" in found[0][1]
    for typed in (separator, None):
        assert said(CSVReader(make.root, label_separator=typed)) == []


def test_columns_of_classes_are_not_joined(make, said):
    make.image("a.jpg", "b.jpg")
    make.text("l.csv", "image,a,b,a b,b a\na.jpg,1,0,0,0\nb.jpg,0,1,0,0\n")
    assert said(CSVReader(make.root)) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name;label\na;b\n", "its header is one column, 'name;label'; say data.reader.delimiter"),
        ("a\tb\n1\t2\n", 'data.reader.delimiter="tab"'),
        ("picture,label\na.jpg,x\n", "no column of images; there are: picture, label"),
        ("image,what\na.jpg,x\n", "no column of labels; there are: image, what"),
        ("image\na.jpg\n", "no column of labels; there are: image"),
        ("image,label,image\n", "line 1: column 'image' is there twice"),
        ("", "the file is empty"),
        (" , \n", "line 1: no column has a name"),
        ('image,label\na.jpg,x\nb.jpg,"x\nc.jpg,x\n', "line 3: not CSV: unexpected end of data"),
        (b"image,label\n\xff,x\n", "line 2: not UTF-8: byte 0xff"),
    ],
)
def test_files_that_are_none(make, content, said):
    make.image("a.jpg")
    make.text("l.csv", content)
    with pytest.raises(DataError) as caught:
        CSVReader(make.root)
    assert said in str(caught.value)
    assert "l.csv" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CSVReader.detect(make.root) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_column": "pic"}, "no column 'pic'; there are: image, label"),
        ({"labels_column": "x"}, "no column 'x'"),
        ({"class_columns": ["label", "y"]}, "no column 'y'"),
        ({"file": "no.csv"}, "data.reader.file=no.csv is not a file below"),
        ({"file": "../l.csv"}, "is not a file below"),
        ({"images": "pics"}, "data.reader.images=pics is no folder below"),
        ({"delimiter": ";;"}, "give one character, or tab"),
        ({"label_separator": ""}, "null: a cell is one label"),
        ({"labels_column": "label", "class_columns": ["a"]}, "give one"),
        ({"names": "cat"}, "is one word; give a list"),
    ],
)
def test_wrong_arguments(make, options, said):
    make.image("a.jpg")
    make.text("l.csv", "image,label\na.jpg,x\n")
    with pytest.raises(DataError) as caught:
        CSVReader(make.root, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_file(make):
    make.image("a.jpg")
    with pytest.raises(DataError, match="no CSV file there; expected CSV: image and labels"):
        CSVReader(make.root)
    for name in ("x.csv", "y.csv"):
        make.text(name, "image,label\na.jpg,x\n")
    with pytest.raises(DataError, match=r"2 CSV files, x\.csv, y\.csv; say data.reader.file=NAME"):
        CSVReader(make.root)
    assert CSVReader(make.root, file="y.csv").read("train").problems == []


def test_no_rows(make, codes):
    make.image("a.jpg")
    make.text("train.csv", "image,label\na.jpg,x\n")
    make.text("val.csv", "image,label\n")
    assert codes(CSVReader(make.root).read("val")) == ["empty-split"]


def test_what_it_annotates(make):
    make.image("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    make.text("l.csv", "image,label\na.jpg,x\nb.jpg,y\nc.jpg,x;y\nd.jpg,x\ne.jpg,y\n")
    assert CSVReader(make.root).kinds == {"tags", "label"}
    make.text("l.csv", "image,label\na.jpg,x\nb.jpg,\nc.jpg,x;y\n")
    assert CSVReader(make.root).kinds == {"tags"}


def test_class_folders_with_a_list_are_two_things(make):
    make.image("cat/a.jpg", "dog/b.jpg")
    make.text("all.csv", "image,label\ncat/a.jpg,cat\ndog/b.jpg,dog\n")
    with pytest.raises(DataError, match="say data=csv or data=folder"):
        recognize(make.root)
