"""YOLO txt: data.yaml in its many forms, lines, and halves of pairs."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from cvtrain.data.formats.yolo import YOLOReader, image_of, label_of
from cvtrain.data.formats.yolo_pose import LongLines
from cvtrain.data.gate.run import run_gate
from cvtrain.errors import DataError

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def plain(make):
    make.image("images/train/a.jpg", "images/val/b.jpg")
    make.text("labels/train/a.txt", "0 0.5 0.5 0.25 0.5\n")
    make.text("labels/val/b.txt", "1 0.5 0.5 1 1\n")
    make.text("data.yaml", YAML)
    return make


def test_reads_boxes_and_polygons(plain, codes):
    lines = "1 0.5 0.5 0.25 0.5\r\n\r\n0 0.1 0.2 0.4 0.2 0.3 0.6\r\n  1\t0.5 0.5 1e-1 1  "
    plain.text("labels/train/a.txt", f"\ufeff{lines}")
    reader = YOLOReader(plain.root)
    split = reader.read("train")
    table = split.table
    assert codes(split) == []
    assert reader.splits() == ["train", "val"]
    assert reader.kinds == {"boxes", "segments"}
    assert table.relative
    assert table.classes.names == ("cat", "dog")
    assert table.labels.tolist() == [1, 0, 1]
    assert table.lines.tolist() == [1, 3, 4]
    np.testing.assert_allclose(
        table.boxes, [[0.375, 0.25, 0.625, 0.75], [0.1, 0.2, 0.4, 0.6], [0.45, 0, 0.55, 1]]
    )
    assert json.loads(table.segments[1]) == [[0.1, 0.2, 0.4, 0.2, 0.3, 0.6]]
    assert table.segments[0] == b""
    assert table.annotation_files[0] == "labels/train/a.txt"
    assert table.sizes.tolist() == [[-1, -1]]
    assert reader.read("val").table.segments is None


def test_boxes_alone(plain):
    assert YOLOReader(plain.root).kinds == {"boxes"}


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\nnc: 2",
        "path: .\ntrain: ./images/train/\nval: [images/val]\nnames:\n  0: cat\n  1: dog\n",
        "path: /home/me/datasets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]",
        "path: ../datasets/pets\ntrain: images/train\nvalid: images/val\nnames: [cat, dog]",
        "path: images\ntrain: train\nval: val\nnames: [cat, dog]\ntest:\n",
        "train: lists/train.txt\nval: images/val\nnames: ['cat', \"dog\"] # two",
        "train: [lists/train.txt]\nval: images/val/b.jpg\nnames: [cat, dog]",
    ],
)
def test_forms_of_the_yaml(plain, codes, yaml):
    plain.text("lists/train.txt", "./../images/train/a.jpg\r\n")
    plain.text("data.yaml", yaml)
    reader = YOLOReader(plain.root)
    assert reader.splits() == ["train", "val"]
    for split in ("train", "val"):
        assert codes(reader.read(split)) == []
        assert reader.read(split).table.num_annotations == 1
    assert reader.read("train").table.classes.names == ("cat", "dog")


def test_absolute_path_of_this_very_folder(plain, codes):
    plain.text("data.yaml", f"path: {plain.root}\ntrain: {plain.root}/images/train\nnames: [cat]")
    split = YOLOReader(plain.root).read("train")
    assert codes(split) == []
    assert split.table.files[0] == "images/train/a.jpg"


def test_names_are_words_whatever_yaml_makes_of_them(plain):
    plain.text("data.yaml", "train: images/train\nnames: [yes, 3, null, 1.50]")
    names = YOLOReader(plain.root).read("train").table.classes.names
    assert names == ("yes", "3", "null", "1.50")


@pytest.mark.parametrize("file", ["pets.yaml", "data.yml", "DATA.YAML"])
def test_other_names_of_the_yaml(plain, file):
    (plain.root / "data.yaml").rename(plain.root / file)
    plain.text("mkdocs.yaml", "site: here")
    assert YOLOReader(plain.root).read("train").table.classes.names == ("cat", "dog")


def test_given_yaml(plain):
    plain.text("more/pets.yaml", YAML.replace("dog", "cow"))
    reader = YOLOReader(plain.root, yaml="more/pets.yaml")
    assert reader.read("train").table.classes.names == ("cat", "cow")
    for wrong in ("gone.yaml", "../x.yaml"):
        with pytest.raises(DataError, match="yaml="):
            YOLOReader(plain.root, yaml=wrong)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/a.jpg", "train/a.txt"),
        ("images/a.jpg", "labels/a.txt"),
        ("a.jpg", "a.txt"),
        ("Train/Images/x/a b ü.JPEG", "Train/Images/x/a b ü.txt"),
    ],
)
def test_layouts_without_a_yaml(make, codes, image, label):
    make.image(image)
    make.text(label, "1 0.5 0.5 1 1")
    make.text("classes.txt", "cat\r\ndog\r\n")
    reader = YOLOReader(make.root)
    split = reader.read("train")
    assert codes(split) == []
    assert split.table.files[0] == image
    assert split.table.labels.tolist() == [1]
    assert "YOLO" in str(YOLOReader.detect(make.root))


def test_images_becomes_labels_once_from_the_end():
    assert label_of("images/x/images/a.b.jpg") == "images/x/labels/a.b.txt"
    assert label_of("x/images.jpg") == "x/images.txt"
    assert image_of("labels/x/labels/a.txt") == "labels/x/images/a"


def test_no_names_anywhere(plain):
    plain.text("data.yaml", "train: images/train\n")
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert problem.code == "yaml-malformed"
    assert "names" in problem.message
    assert YOLOReader(plain.root, names=["a", "b"]).read("train").problems == []


def test_neither_yaml_nor_labels(make):
    make.image("images/train/a.jpg")
    make.text("README.txt", "hello")
    with pytest.raises(DataError, match=r"data\.yaml"):
        YOLOReader(make.root)
    assert YOLOReader.detect(make.root) is None


@pytest.mark.parametrize(
    ("yaml", "where", "message"),
    [
        ("train: images/train\nnames: [cat, dog\nval: x", "line 3", "expected"),
        ("names: [cat]\n\ttrain: x", "line 2", ""),
        (b"names: [caf\xe9]", "line 1", "not UTF-8"),
        ("- a\n- b", "", "expected"),
        ("just words", "", "expected"),
        ("", "", "expected"),
        ("train: images/train\nnames: {0: cat, 2: dog}", "", "not 0, 1, 2"),
        ("train: images/train\nnames: cat", "", "not a list"),
        ("train: images/train\nnames: [cat, [dog]]", "", "not a list"),
        ("train: images/train\nnames: [cat, cat]", "", "'cat' is given twice"),
        ("train: images/train\nnames: [cat, '']", "", "empty name"),
        ("train: images/train\nnames: []", "", "no class names"),
        ("train: images/train\nnc: 3\nnames: [cat, dog]", "", "`nc` is 3"),
        ("[" * 5000, "", ""),
        ("names: &a [*a]\ntrain: images/train", "", ""),
    ],
)
def test_malformed_yaml_is_one_problem(plain, yaml, where, message):
    plain.text("data.yaml", yaml)
    reader = YOLOReader(plain.root)
    (problem,) = reader.read(reader.splits()[0]).problems
    assert (problem.code, problem.file) == ("yaml-malformed", "data.yaml")
    assert problem.where == where or not where
    assert message in problem.message
    assert "\n" not in problem.message


def test_yaml_alias_bomb_stays_small(plain):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 6)]
    plain.text("data.yaml", "\n".join([*lines, "train: images/train", "names: *a5"]))
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert problem.code == "yaml-malformed"
    assert len(problem.message) < 400


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "4 values"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 values"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 values"),
        ("cat 0.5 0.5 0.5 0.5", "not all values are numbers"),
        ("0 0,5 0.5 0.5 0.5", "not all values are numbers"),
        ("0 1_0 0.5 0.5 0.5", "not all values are numbers"),
        ("nan 0.5 0.5 0.5 0.5", "not all values are numbers"),
        ("1.5 0.5 0.5 0.5 0.5", "not a whole number"),
        ("0 0.1 0.1 0.2 nan 0.3 0.3", "not finite"),
    ],
)
def test_malformed_line_loses_itself_only(plain, line, message):
    plain.text("labels/train/a.txt", f"0 0.5 0.5 1 1\n{line}\n1 0.5 0.5 1 1\n")
    split = YOLOReader(plain.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.file, problem.where) == (
        "line-malformed",
        "labels/train/a.txt",
        "line 2",
    )
    assert (problem.image, problem.annotation, problem.rejects) == (0, -1, "annotation")
    assert message in problem.message
    assert split.table.lines.tolist() == [1, 3]


def test_geometry_is_left_to_the_gate(plain, codes):
    plain.text("labels/train/a.txt", "0 nan 0.5 1 1\n0 0.5 0.5 -1 1\n1.0 320 200 90 80\n")
    split = YOLOReader(plain.root).read("train")
    assert codes(split) == []
    assert np.isnan(split.table.boxes[0, 0])
    assert split.table.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("index", ["2", "-1", "99999999999"])
def test_unknown_class_keeps_its_row(plain, index):
    plain.text("labels/train/a.txt", f"{index} 0.5 0.5 1 1\n")
    split = YOLOReader(plain.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where, problem.annotation) == ("class-unknown", "line 1", 0)
    assert "0..1" in problem.message
    assert split.table.labels.tolist() == [-1]


def test_label_file_that_is_not_text_rejects_its_image(plain):
    plain.text("labels/train/a.txt", b"0 0.5 0.5 1 1\n\x80\x81\n")
    split = YOLOReader(plain.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where, problem.rejects) == ("label-malformed", "line 2", "image")
    assert len(split.table) == 1


def test_label_that_is_a_folder(plain):
    (plain.root / "labels/train/a.txt").unlink()
    (plain.root / "labels/train/a.txt").mkdir()
    split = YOLOReader(plain.root).read("train")
    (problem,) = split.problems
    assert problem.code == "label-malformed"
    assert "cannot be read: Is a directory" in problem.message


def test_paths_that_no_file_can_have(plain):
    plain.text("train.txt", f"{'x' * 5000}.jpg\na\0.jpg\nimages/train/a.jpg\n")
    yaml = f"path: {'x' * 5000}\ntrain: train.txt\nval: {'y' * 5000}\nnames: [cat, dog]"
    plain.text("data.yaml", yaml)
    reader = YOLOReader(plain.root)
    assert [p.code for p in reader.read("train").problems] == [
        "image-missing",
        "image-missing",
        "image-without-label",
    ]
    assert [p.code for p in reader.read("val").problems] == ["place-missing", "empty-split"]


def test_images_without_label_file_are_background_and_noted(plain):
    plain.image("images/train/c.jpg", "images/train/d.jpg")
    plain.text("labels/train/d.txt", "")
    split = YOLOReader(plain.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.severity) == ("image-without-label", "note")
    assert "1 of 3 images" in problem.message
    assert len(split.table) == 3
    assert [split.table.annotation_files[i] for i in range(3)] == [
        "labels/train/a.txt",
        "",
        "labels/train/d.txt",
    ]


def test_no_label_file_at_all_is_an_error(plain):
    (plain.root / "labels/train/a.txt").unlink()
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert (problem.code, problem.severity) == ("labels-missing", "error")
    assert "labels/train/a.txt" in problem.message


def test_label_without_image(plain):
    plain.text("labels/train/z.txt", "0 0.5 0.5 1 1")
    plain.text("labels/val/y.txt", "")
    plain.text("labels/other/x.txt", "")
    plain.text("labels/classes.txt", "cat")
    reader = YOLOReader(plain.root)
    assert [(p.code, p.file) for p in reader.read("train").problems] == [
        ("label-without-image", "labels/other/x.txt"),
        ("label-without-image", "labels/train/z.txt"),
    ]
    assert [p.file for p in reader.read("val").problems] == ["labels/val/y.txt"]


def test_beside_images_only_labels_count_as_labels(make):
    make.image("train/a.jpg")
    make.text("train/a.txt", "0 0.5 0.5 1 1")
    make.text("train/b.txt", "")
    make.text("train/README.txt", "hello")
    make.text("train/classes.txt", "cat")
    make.text("notes.txt", "hello")
    make.text("data.yaml", "train: train\nnames: [cat]")
    problems = YOLOReader(make.root).read("train").problems
    assert [(p.code, p.file) for p in problems] == [("label-without-image", "train/b.txt")]


def test_lists_name_missing_repeated_and_outside_images(plain):
    plain.image("../secret.jpg")
    plain.text(
        "train.txt",
        "images/train/a.jpg\n./images/train/a.jpg\nimages/train/gone.jpg\n../secret.jpg\n"
        "/etc/secret.jpg\nwhat is this\nimages\\val\\b.jpg\n",
    )
    plain.text("data.yaml", "train: train.txt\nnames: [cat, dog]")
    split = YOLOReader(plain.root).read("train")
    found = [(p.code, p.where) for p in split.problems if p.file == "train.txt"]
    assert found == [
        ("duplicate-file", "line 2"),
        ("image-missing", "line 3"),
        ("path-outside-root", "line 4"),
        ("path-outside-root", "line 5"),
        ("line-malformed", "line 6"),
    ]
    assert [split.table.files[i] for i in range(3)] == [
        "images/train/a.jpg",
        "images/train/gone.jpg",
        "images/val/b.jpg",
    ]


def test_list_that_is_not_text(plain):
    plain.text("train.txt", b"\xff\xff")
    plain.text("data.yaml", "train: train.txt\nnames: [cat, dog]")
    codes = [p.code for p in YOLOReader(plain.root).read("train").problems]
    assert codes == ["list-malformed", "empty-split"]


def test_split_that_leaves_the_root(plain):
    plain.image("../other/a.jpg")
    plain.text("data.yaml", "train: ../other\nval: /etc\nnames: [cat]")
    reader = YOLOReader(plain.root)
    for split in ("train", "val"):
        codes = [p.code for p in reader.read(split).problems]
        assert codes == ["path-outside-root", "empty-split"]
    assert len(reader.read("train").table) == 0


def test_export_that_points_one_folder_too_high_is_mended(make):
    make.image("train/images/a.jpg")
    make.text("train/labels/a.txt", "0 0.5 0.5 1 1")
    make.text("data.yaml", "train: ../train/images\nnames: [cat]")
    split = YOLOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.severity) == ("path-fixed", "note")
    assert split.table.num_annotations == 1


def test_places_that_are_not_there(plain):
    plain.text("data.yaml", "train: images/train\nval: images/valid\ntest: t.txt\nnames: [cat]")
    reader = YOLOReader(plain.root)
    assert reader.splits() == ["train", "val"]
    assert [(p.code, p.severity) for p in reader.read("train").problems] == [
        ("test-missing", "note")
    ]
    assert [p.code for p in reader.read("val").problems] == ["place-missing", "empty-split"]


def test_only_a_test_split_and_not_even_that(plain):
    plain.text("data.yaml", "test: images/test\nnames: [cat]")
    reader = YOLOReader(plain.root)
    assert reader.splits() == ["test"]
    assert [p.code for p in reader.read("test").problems] == ["place-missing", "empty-split"]


def test_split_of_a_strange_type(plain):
    plain.text("data.yaml", "train: {a: b}\nval: images/val\nnames: [cat, dog]")
    codes = [p.code for p in YOLOReader(plain.root).read("train").problems]
    assert codes == ["yaml-malformed", "empty-split"]


def test_two_images_for_one_label_file(plain):
    plain.image("images/train/a.png")
    split = YOLOReader(plain.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.image, problem.rejects) == ("image-ambiguous", 1, "image")


def test_empty_split_and_unlisted_images(plain, codes):
    (plain.root / "images/val/b.jpg").unlink()
    plain.image("images/extra/e.jpg", "cover.png")
    reader = YOLOReader(plain.root)
    assert codes(reader.read("val")) == ["empty-split", "label-without-image"]
    assert reader.read("train").unlisted == ["cover.png", "images/extra/e.jpg"]


@pytest.mark.parametrize("keys", [(0, 1), ("1", "0"), (1, 0)])
def test_names_by_index(plain, keys):
    names = dict(zip(keys, ("a", "b") if keys == (0, 1) else ("b", "a"), strict=True))
    reader = YOLOReader(plain.root, names=names)
    assert reader.read("train").table.classes.names == ("a", "b")


@pytest.mark.parametrize("names", [{0: "a", 2: "b"}, {"cat": 0, "dog": 1}, "cat"])
def test_names_that_are_no_list(plain, names):
    with pytest.raises(DataError, match=r"data\.reader\.names"):
        YOLOReader(plain.root, names=names)


def test_export_without_the_test_folder_that_it_names(make):
    """What Roboflow hands out where there is no test split."""
    for split in ("train", "valid"):
        make.image(f"{split}/images/a.jpg")
        make.text(f"{split}/labels/a.txt", "0 0.5 0.5 1 1")
    lines = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    make.text("data.yaml", f"{lines}\nnc: 1\nnames: ['cat']\n")
    reader = YOLOReader(make.root)
    assert reader.splits() == ["train", "val"]
    found = [p for split in reader.splits() for p in reader.read(split).problems]
    assert {p.severity for p in found} == {"note"}
    assert sorted(p.code for p in found) == ["path-fixed", "path-fixed", "test-missing"]


def test_split_without_a_place_says_so(plain):
    plain.text("data.yaml", "train: images/nowhere\nval: images/val\nnames: [cat]")
    problem = YOLOReader(plain.root).read("train").problems[-1]
    assert (problem.code, problem.message) == ("empty-split", "none of its entries can be read")


def test_yaml_aliases_are_not_written_out(plain):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for above, name in pairwise("abcdefghijkl"):
        lines.append(f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]")
    plain.text("data.yaml", "\n".join([*lines, "names: *l", "train: *l"]))
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert problem.code == "yaml-malformed"
    assert len(problem.message) < 120


BACKSLASHES = [
    "train: images\\train\nval: images\\val\nnames: [cat, dog]\n",
    "path: .\\\ntrain: .\\images\\train\nval: [images\\val]\nnames: [cat, dog]\n",
    "path: images\\\ntrain: train\nval: val\nnames: [cat, dog]\n",
]


@pytest.mark.parametrize("yaml", BACKSLASHES)
def test_paths_as_windows_writes_them(plain, yaml):
    plain.text("data.yaml", yaml)
    reader = YOLOReader(plain.root)
    for split in ("train", "val"):
        read = reader.read(split)
        assert read.table.num_annotations == 1
        (note,) = read.problems
        assert (note.code, note.severity) == ("path-separator", "note")
        assert f"images/{split} is read" in note.message


def test_windows_paths_that_lead_nowhere_or_out(plain):
    plain.text("data.yaml", "train: ..\\images\\train\nval: images\\gone\nnames: [cat, dog]\n")
    reader = YOLOReader(plain.root)
    found = [(p.code, p.severity) for s in reader.splits() for p in reader.read(s).problems]
    assert found[0] == ("path-fixed", "note")
    assert ("place-missing", "error") in found


POSE = "train: images/train\nval: images/val\nnames: [cat, dog]\nkpt_shape: [{}]\n"


@pytest.mark.parametrize("shape", ["2, 2", "3, 3", "17, 2", "17, 3"])
def test_keypoints_are_left_out_and_said(plain, shape):
    plain.text("data.yaml", POSE.format(shape))
    points, numbers = (int(v) for v in shape.split(","))
    keypoints = " ".join(["0.45 0.5", "0.45 0.5 2"][numbers - 2] for _ in range(points))
    plain.text("labels/train/a.txt", f"1 0.5 0.5 0.2 0.4 {keypoints}\n0 0.5 0.5 0.1 0.1\n")
    reader = YOLOReader(plain.root)
    split = reader.read("train")
    (note,) = split.problems
    assert (note.code, note.severity) == ("keypoints-ignored", "note")
    assert note.message == f"`kpt_shape`: the {points * numbers} numbers of keypoints on each " + (
        "line are ignored"
    )
    np.testing.assert_allclose(split.table.boxes, [[0.4, 0.3, 0.6, 0.7], [0.45, 0.45, 0.55, 0.55]])
    assert reader.kinds == {"boxes"}
    assert split.table.segments is None


def test_a_line_of_another_number_of_keypoints(plain):
    plain.text("data.yaml", POSE.format("2, 2"))
    plain.text("labels/train/a.txt", "1 0.5 0.5 0.2 0.4 0.5 0.5\n")
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert (problem.code, problem.where) == ("line-malformed", "line 1")
    assert "7 values, not `class x y w h` and 4 of keypoints (`kpt_shape`)" in problem.message


@pytest.mark.parametrize("shape", ["17", "17, 4", "x, 2", "0, 2", "-1, 2"])
def test_a_kpt_shape_that_is_none(plain, shape):
    plain.text("data.yaml", POSE.format(shape))
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert problem.code == "yaml-malformed"
    assert "not [points, 2 or 3]" in problem.message


def pose_lines(points: int, numbers: int, size: tuple[float, float], lines: int = 12) -> list[str]:
    """Lines of a box and keypoints in it; a tenth of the keypoints is not labeled."""
    draws = np.random.default_rng(3)
    found = []
    for _ in range(lines):
        extent = draws.uniform(*size, 2)
        center = draws.uniform(extent / 2, 1 - extent / 2)
        keypoints = draws.uniform(-0.5, 0.5, (points, 2)) * extent + center
        keypoints[draws.random(points) < 0.1] = 0
        if numbers == 3:
            seen = np.where(keypoints[:, :1] > 0, draws.integers(1, 3, (points, 1)), 0)
            keypoints = np.concatenate([keypoints, seen], 1)
        found.append(" ".join(f"{v:.6g}" for v in (0, *center, *extent, *keypoints.ravel())))
    return found


@pytest.mark.parametrize("size", [(0.05, 0.15), (0.1, 0.4), (0.4, 0.95)])
@pytest.mark.parametrize("points", [2, 3, 4, 8, 17])
@pytest.mark.parametrize("numbers", [2, 3])
def test_keypoints_that_no_yaml_speaks_of(plain, size, points, numbers):
    lines = [*pose_lines(points, numbers, size), "1 0.5 0.5 0.1 0.1"]
    plain.text("labels/train/a.txt", "\n".join(lines))
    problem, *others = YOLOReader(plain.root).read("train").problems
    assert (problem.code, problem.file, problem.where) == (
        "keypoints-unsaid",
        "labels/train/a.txt",
        "line 1",
    )
    assert "in 12 of 12 the box (values 2 to 5) holds all points" in problem.message
    assert problem.message.endswith(f"add `kpt_shape: [{points}, {numbers}]` to data.yaml")
    assert {p.code for p in others} <= {"line-malformed"}  # an odd count of numbers
    plain.text("data.yaml", f"{YAML}kpt_shape: [{points}, {numbers}]\n")
    split = YOLOReader(plain.root).read("train")
    assert [p.code for p in split.problems] == ["keypoints-ignored"]
    assert split.table.num_annotations == 13


def test_keypoints_stop_the_run_whatever_on_bad_says(plain):
    plain.text("labels/train/a.txt", "\n".join(pose_lines(4, 3, (0.1, 0.3))))
    options = {"progress": False, "workers": 1, "strict": False, "on_bad": "fix"}
    report = run_gate(YOLOReader(plain.root), "detection", **options)
    assert "keypoints-unsaid" in [p.code for p in report.stopping]
    report = run_gate(YOLOReader(plain.root), "detection", check_boxes=False, **options)
    assert "keypoints-unsaid" not in [p.code for p in report.problems]


@pytest.mark.parametrize("one", ["0 0.5 0.5 0.2 0.2 0.45 0.5 2 0.55 0.5 1 0.5 0.6 2 0.5 0.4 2"])
def test_a_single_line_with_seen_and_hidden_points(plain, one):
    plain.text("labels/train/a.txt", one)
    (problem,) = YOLOReader(plain.root).read("train").problems
    assert "`kpt_shape: [4, 3]`" in problem.message


def ring(kind: str, points: int, draws: np.random.Generator) -> np.ndarray:
    """``(points, 2)`` vertices of a polygon one unit large."""
    if kind == "rectangle":
        return np.roll([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], draws.integers(4), 0)
    if kind == "oriented":
        turn = draws.uniform(0, 2 * np.pi)
        flat = ring("rectangle", 4, draws) * (1, 0.3)
        return flat @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    angle = (np.arange(points) + draws.uniform()) * 2 * np.pi / points
    if kind == "convex":
        angle = np.sort(draws.uniform(0, 2 * np.pi, points))
    radius = 0.4 + 0.1 * np.sin(3 * angle) if kind == "outline" else 0.5
    return np.stack([np.cos(angle), np.sin(angle)], 1) * np.reshape(radius, (-1, 1))


POLYGONS = [("rectangle", 4), ("oriented", 4), *(("convex", n) for n in (3, 4, 5, 8))]
POLYGONS += [*(("regular", n) for n in (3, 4, 5, 6, 9)), ("outline", 14), ("outline", 40)]


@pytest.mark.parametrize(("kind", "points"), POLYGONS)
@pytest.mark.parametrize("closed", [False, True])
def test_polygons_of_equal_length_are_polygons(kind, points, closed):
    for seed in range(60):
        draws = np.random.default_rng(seed)
        size = [(0.02, 0.08), (0.05, 0.3), (0.3, 0.9)][seed % 3]
        place = [(0.1, 0.6), (0.4, 0.6), (0, 1)][seed // 3 % 3]
        lines = LongLines()
        for number in range([1, 3, 8, 30][seed // 9 % 4]):
            extent = draws.uniform(*size, 2)
            low, high = np.maximum(extent / 2, place[0]), np.minimum(1 - extent / 2, place[1])
            center = draws.uniform(low, np.maximum(low, high))
            vertices = ring(kind, points, draws)[:: 1 - 2 * (seed % 2)] * extent + center
            vertices = np.concatenate([vertices, vertices[:closed]]).clip(0, 1)
            values = " ".join(f"{v:.6g}" for v in vertices.ravel())
            lines.add(f"0 {values}", "a.txt", number + 1, polygon=True)
        assert lines.pose() is None, seed


def test_oriented_boxes_are_said(plain):
    corners = "0 0.5 0.2 0.7 0.4 0.5 0.6 0.3 0.4"
    plain.text("labels/train/a.txt", f"{corners}\n{corners.replace('0.2', '0.25')}")
    split = YOLOReader(plain.root).read("train")
    (note,) = split.problems
    assert (note.code, note.severity) == ("boxes-oriented", "note")
    assert note.message == "all 2 lines have four corners: oriented boxes"
    assert split.table.boxes[0].tolist() == [0.3, 0.2, 0.7, 0.6]
    plain.text("labels/train/a.txt", f"{corners}\n0 0.1 0.1 0.2 0.1 0.15 0.2")
    assert YOLOReader(plain.root).read("train").problems == []  # polygons, one of four corners
