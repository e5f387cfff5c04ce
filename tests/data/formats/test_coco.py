"""COCO JSON: layouts, packing, segments, and every way in which it goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.coco_objects import unquoted
from cvtrain.data.table import CROWD
from cvtrain.errors import DataError


def test_reads_boxes_labels_areas_and_flags_sorted_by_image(make, img, ann, codes):
    make.image("train/a.png", "train/b ü.png", "train/c.png")
    annotations = [
        ann(11, 7, (1, 2, 3, 4), area=5.5, category_id=90),
        ann(12, 3, (0, 0, 2, 2), iscrowd=1, category_id=17),
        ann(900100002299, 7, (0.5, 0.25, 1, 1), category_id=17),
    ]
    categories = [{"id": 90, "name": "dog"}, {"id": 17, "name": "cat"}]
    images = [img(3, "a.png"), img(7, "b ü.png"), img(9, "c.png", height=None)]
    make.coco("train.json", images, annotations, categories)
    reader = COCOReader(make.root)
    split = reader.read("train")
    table = split.table
    assert codes(split) == []
    assert [table.files[i] for i in range(3)] == ["train/a.png", "train/b ü.png", "train/c.png"]
    assert table.classes.names == ("dog", "cat")
    assert table.classes.ids == (90, 17)
    assert table.ids.tolist() == [3, 7, 9]
    assert table.image_id(1) == 7
    assert table.sizes.tolist() == [[6, 8], [6, 8], [-1, 8]]
    assert table.starts.tolist() == [0, 1, 3, 3]
    assert table.boxes.tolist() == [[0, 0, 2, 2], [1, 2, 4, 6], [0.5, 0.25, 1.5, 1.25]]
    assert table.labels.tolist() == [1, 0, 1]
    assert table.flags.tolist() == [CROWD, 0, 0]
    np.testing.assert_array_equal(table.areas, [np.nan, 5.5, np.nan])
    assert table.lines.tolist() == [12, 11, 900100002299]
    assert table.segments is None
    assert reader.kinds == {"boxes"}
    assert not table.relative


@pytest.mark.parametrize(
    ("train", "val", "folder"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "{}2017"),
        (
            "annotations/instances_train2014.json",
            "annotations/instances_val2014.json",
            "images/{}2014",
        ),
        ("train.json", "val.json", "{}"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", "{}"),
        ("annotations/train.json", "annotations/val.json", "images/{}"),
        ("annotations/train.json", "annotations/val.json", "images"),
        ("annotations/instances_train.json", "annotations/instances_val.json", "{}/images"),
        ("train/annotations.json", "val/annotations.json", "{}/images"),
    ],
)
def test_layouts(make, img, ann, codes, train, val, folder):
    valid = "valid" if val.startswith("valid/") else "val"
    one, two = folder.format("train"), folder.format(valid)
    make.image(f"{one}/a.jpg", f"{two}/b.jpg")
    make.coco(train, [img(1, "a.jpg")], [ann(1, 1)])
    make.coco(val, [img(1, "b.jpg")], [])
    make.json("annotations/captions_train2017.json", {"images": []})
    make.json("annotations/person_keypoints_train2017.json", {"images": []})
    reader = COCOReader(make.root)
    assert reader.splits() == ["train", "val"]
    assert reader.read("train").table.files[0] == f"{one}/a.jpg"
    assert reader.read("val").table.files[0] == f"{two}/b.jpg"
    assert codes(reader.read("train")) == codes(reader.read("val")) == []
    assert COCOReader.detect(make.root) == f"COCO JSON ({train}, {val})"


def test_file_names_with_folders_of_their_own(make, img, codes):
    make.image("train2017/x/a.png", "other/b.png")
    make.coco("train.json", [img(1, "train2017/x/a.png"), img(2, "other\\b.png")], [])
    split = COCOReader(make.root).read("train")
    assert codes(split) == []
    assert [split.table.files[i] for i in range(2)] == ["train2017/x/a.png", "other/b.png"]


def test_one_json_alone_is_train(make, img):
    make.image("images/a.png")
    make.coco("annotations/result.json", [img(1, "a.png")], [])
    make.json("annotations/notes.json", {"by": "me"})
    assert COCOReader(make.root).splits() == ["train"]


def test_given_files_go_first(make, img):
    make.image("pics/a.png")
    make.coco("x/one.json", [img(1, "a.png")], [])
    reader = COCOReader(make.root, val_json="x/one.json", val_images="pics")
    assert reader.splits() == ["val"]
    assert reader.read("val").table.files[0] == "pics/a.png"


def test_several_candidates_are_asked_about(make, img):
    make.coco("annotations/instances_train2014.json", [], [])
    make.coco("annotations/instances_train2017.json", [], [])
    with pytest.raises(DataError, match=r"data\.reader\.train_json="):
        COCOReader(make.root)


@pytest.mark.parametrize("path", ["gone.json", "../set/train.json/..", "/etc/passwd"])
def test_a_given_file_has_to_be_in_the_root(make, path):
    with pytest.raises(DataError, match="val_json"):
        COCOReader(make.root, val_json=path)


def test_no_json_at_all(make):
    with pytest.raises(DataError, match=r"annotations/instances_train\*\.json"):
        COCOReader(make.root)


def test_polygons_and_both_kinds_of_rle(make, img, ann, codes):
    make.image("train/a.png")
    pixels = np.zeros((6, 8), np.uint8)
    pixels[1:3, 2:6] = 1
    encoded = coco_mask.encode(np.asfortranarray(pixels))
    runs, value = [0], 0
    for bit in pixels.flatten(order="F").tolist():
        if bit != value:
            runs.append(0)
            value = bit
        runs[-1] += 1
    polygon = [[0, 0, 4, 0, 4, 4], [5, 5.5, 6, 5, 6, 6]]
    annotations = [
        ann(1, 1, segmentation=polygon),
        ann(2, 1, segmentation={"size": [6, 8], "counts": encoded["counts"].decode()}),
        ann(3, 1, segmentation={"size": [6, 8], "counts": runs}, iscrowd=1),
        ann(4, 1, segmentation=[]),
        ann(5, 1),
    ]
    make.coco("train.json", [img(1, "a.png")], annotations)
    reader = COCOReader(make.root)
    split = reader.read("train")
    assert codes(split) == []
    assert reader.kinds == {"boxes", "segments"}
    segments = split.table.segments
    assert json.loads(segments[0]) == polygon
    assert segments[1] == segments[2]
    rle = json.loads(segments[1])
    np.testing.assert_array_equal(coco_mask.decode(rle), pixels)
    assert segments[3] == segments[4] == b""


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1, 0, 1]], "x, y pairs"),
        ([[0, 0, 1, 0, 1, "b"]], "x, y pairs"),
        ([[0, 0, 1, 0, 1, "1,5"]], "x, y pairs"),
        ([0, 0, 1, 0, 1, None], "lists of lists"),
        ([0, 0, 1, 0, 1], "x, y pairs"),
        ([0, 0, 1, 0, [1], 1], "lists of lists"),
        ([[0, 0, 1, 0, 1, float("nan")]], "not finite"),
        ([[0, 0, 1, 0, 1, 10**400]], "not finite"),
        ("m", "neither polygons nor an RLE"),
        ({"size": [6, 9], "counts": [54]}, "9 x 6"),
        ({"size": [6, 8], "counts": [47]}, "48 pixels"),
        ({"size": [6, 8], "counts": [-1, 49]}, "counts"),
        ({"size": [6, 8], "counts": "`m0~"}, "48 pixels"),
        ({"size": [6, 8], "counts": "ö"}, "48 pixels"),
        ({"size": [6, 8], "counts": None}, "counts"),
        ({"size": ["6", 8], "counts": [48]}, "size"),
        ({"size": 48, "counts": [48]}, "size"),
    ],
)
def test_malformed_segments(make, img, ann, segmentation, message):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(5, 1), ann(6, 1, segmentation=segmentation)])
    split = COCOReader(make.root).read("train")
    problem = split.problems[-1]
    assert problem.code == "segment-malformed"
    assert message in problem.message
    assert (problem.where, problem.image, problem.annotation) == ("annotation id 6", 0, 1)
    assert problem.rejects == "annotation"
    assert split.table.num_annotations == 2
    assert split.table.segments is None or split.table.segments[1] == b""


def test_rings_without_an_inside_are_left_out_and_said(make, img, ann):
    make.image("train/a.png")
    polygons = [[0, 0, 4, 0, 4, 4], [1, 1, 2, 2]]
    make.coco("train.json", [img(1, "a.png")], [ann(1, 1, segmentation=polygons)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.severity) == ("segment-degenerate", "note")
    assert json.loads(split.table.segments[0]) == [polygons[0]]


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        (b'{"images": [],\n "annotations": [,]}', "line 2", "Expecting value"),
        (b'{"images": [\xff]}', "line 1", "not UTF-8"),
        (b'[{"images": []}]', "", "a JSON object is expected, this is a list"),
        (b"", "line 1", "Expecting value"),
        (b"[" * 200_000, "", "nested too deeply"),
        (
            b'{"images": {}, "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "",
            "'images'",
        ),
        (b'{"images": [], "categories": [{"id": 1, "name": "a"}]}', "", "no 'annotations' list"),
        (b'{"images": [], "annotations": []}', "", "no 'categories'"),
        (b'{"images": [], "annotations": [], "categories": {}}', "", "not a list"),
        (b'{"images": [], "annotations": [], "categories": [{"id": "x", "name": "a"}]}', "", "[0]"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": ""}]}', "", "[0]"),
    ],
)
def test_malformed_json_is_one_problem(make, text, where, message):
    make.text("train.json", text)
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where, problem.file) == ("json-malformed", where, "train.json")
    assert message in problem.message
    assert "\n" not in problem.message
    assert len(split.table) == 0


def test_byte_order_mark_is_tolerated(make, img, ann, codes):
    make.image("train/a.png")
    path = make.coco("train.json", [img(1, "a.png")], [ann(1, 1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b", ", b",\r\n"))
    split = COCOReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.num_annotations == 1


@pytest.mark.parametrize(
    "bbox",
    [None, [1, 2, 3], [1, 2, 3, "four"], [1, 2, 3, True], [1, 2, 3, 10**400], {"x": 1}, "1 2 3 4"],
)
def test_an_annotation_without_a_box_keeps_its_row(make, img, ann, bbox):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(8, 1, bbox), ann(9, 1)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("box-malformed", "annotation id 8")
    assert (problem.image, problem.annotation, problem.rejects) == (0, 0, "annotation")
    assert np.isnan(split.table.boxes[0]).all()


@pytest.mark.parametrize("change", [{"iscrowd": 2}, {"iscrowd": "yes"}])
def test_malformed_annotations_have_no_row(make, img, ann, change):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [{**ann(8, 1), **change}, ann(9, 1)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("annotation-malformed", "annotation id 8")
    assert (problem.image, problem.annotation, problem.rejects) == (0, -1, "annotation")
    assert split.table.lines.tolist() == [9]
    assert split.lost.tolist() == [0]


def test_an_area_that_is_none_costs_nothing(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(8, 1, area="big"), ann(9, 1, area=7)])
    split = COCOReader(make.root).read("train")
    assert [(p.code, p.severity) for p in split.problems] == [("area-invalid", "note")]
    np.testing.assert_array_equal(split.table.areas, [np.nan, 7])


def test_numbers_in_quotes_are_read_and_said(make, img, ann):
    """Ids of images and categories on either side, sizes, crowds, areas: one error a key."""
    make.image("train/a.png", "train/b.png")
    images = [img("7", "a.png", width="8"), img("008", "b.png")]
    annotations = [
        ann(1, "7", ("1", "2.5", "3", "3e0")),
        ann("2", 7, area="9", category_id="1", iscrowd="0"),
        ann(3, 8, segmentation=["0", "0", "4", "0", "4", "4"]),
        ann(4, "8", segmentation=[[0, 0, "4", 0, 4, 4]]),
        ann(5, 8, segmentation=[0, 0, 4, 0, 4, 4]),
    ]
    make.coco("train.json", images, annotations, [{"id": "1", "name": "cat"}])
    reader = COCOReader(make.root)
    assert reader.kinds == {"boxes", "segments"}
    split = reader.read("train")
    table = split.table
    assert table.classes.ids == (1,)
    assert table.ids.tolist() == [7, 8]
    assert table.sizes.tolist() == [[6, 8], [6, 8]]
    assert table.starts.tolist() == [0, 2, 5]
    assert table.labels.tolist() == [0] * 5
    assert table.boxes[0].tolist() == [1, 2.5, 4, 5.5]
    assert table.areas[1] == 9
    assert [json.loads(table.segments[i]) for i in (2, 3, 4)] == [[[0, 0, 4, 0, 4, 4]]] * 3
    text = {(p.code, p.message.partition(" is text")[0]) for p in split.problems}
    assert text == {
        ("number-as-text", "a category's `id`"),
        ("number-as-text", "an image's `id`"),
        ("number-as-text", "`width`"),
        ("number-as-text", "an annotation's `id`"),
        ("number-as-text", "`image_id`"),
        ("number-as-text", "`category_id`"),
        ("number-as-text", "`iscrowd`"),
        ("number-as-text", "`area`"),
        ("box-as-text", "bbox is ['1', '2.5', '3', '3e0']"),
        *(
            ("segment-form", message)
            for message in (
                "the polygon is a flat list of text: ['0', '0', '4', '0', '4', '4']",
                "coordinates are text: [[0, 0, '4', 0, 4, 4]]",
                "the polygon is a flat list: [0, 0, 4, 0, 4, 4]",
            )
        ),
    }
    assert any(p.message == '`image_id` is text in 2 records, such as "7"' for p in split.problems)


@pytest.mark.parametrize("text", ["24,5", "0x18", "1_000", "nan", "inf", "٣", "1e999", "", "a7"])
def test_a_text_that_may_mean_two_things_is_no_number(text):
    assert unquoted(text) is text


def test_a_size_of_nothing_is_unknown(make, img):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png", width=0, height=0)], [])
    split = COCOReader(make.root).read("train")
    assert [(p.code, p.severity, p.image) for p in split.problems] == [("size-missing", "note", 0)]
    assert split.table.sizes.tolist() == [[-1, -1]]


def test_geometry_is_left_to_the_gate(make, img, ann, codes):
    make.image("train/a.png")
    boxes = [(float("nan"), 0, 1, 1), (0, 0, -3, 2), (0, 0, 0, 0), (90, 90, 5, 5)]
    make.coco("train.json", [img(1, "a.png")], [ann(i, 1, b) for i, b in enumerate(boxes, 1)])
    split = COCOReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.num_annotations == 4
    assert np.isnan(split.table.boxes[0, 0])
    assert split.table.boxes[1].tolist() == [0, 0, -3, 2]


def test_unknown_category_keeps_its_row(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(1, 1), ann(2, 1, category_id=[5])])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.annotation) == ("class-unknown", 1)
    assert split.table.labels.tolist() == [0, -1]


@pytest.mark.parametrize("image", [5, None, "one", [1], 1.5])
def test_annotation_of_an_image_that_is_not_in_the_json(make, img, ann, image):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(1, image), ann(2, 1)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("image-unknown", "annotation id 1")
    assert split.table.lines.tolist() == [2]


def test_missing_image_stays_in_the_table(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png"), img(2, "gone.png")], [ann(1, 2)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.image, problem.rejects) == ("image-missing", 1, "image")
    assert "train/gone.png" in problem.message
    assert split.table.num_annotations == 1


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "x/../../../set2/a.png"])
def test_paths_that_leave_the_root(make, img, ann, name):
    make.image("train/a.png", "../secret.png")
    make.coco("train.json", [img(1, "a.png"), img(2, name)], [ann(1, 2), ann(2, 1)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("path-outside-root", "image id 2")
    assert len(split.table) == 1
    assert split.table.lines.tolist() == [2]  # the other one went with its image


def test_links_are_followed(make, img, tmp_path, codes):
    make.image("../elsewhere/a.png")
    (make.root / "train").symlink_to(tmp_path / "elsewhere")
    (make.root / "loop").symlink_to(make.root)
    make.coco("train.json", [img(1, "a.png")], [])
    split = COCOReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.files[0] == "train/a.png"


def test_absolute_path_below_the_root_is_fine(make, img, codes):
    make.image("train/a.png")
    make.coco("train.json", [img(1, str(make.root / "train" / "a.png"))], [])
    split = COCOReader(make.root).read("train")
    assert codes(split) == []
    assert split.table.files[0] == "train/a.png"


@pytest.mark.parametrize(
    "change", [{"file_name": None}, {"file_name": ""}, {"file_name": 3}, {"file_name": ["a"]}]
)
def test_image_record_without_a_name_has_no_row(make, img, ann, change):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png"), {**img(2, ""), **change}], [ann(1, 2)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.where) == ("record-malformed", "image id 2")
    assert len(split.table) == 1


@pytest.mark.parametrize(
    "change", [{"width": "wide"}, {"height": 6.5}, {"id": "one"}, {"id": 2**70}]
)
def test_image_record_with_a_bad_value_keeps_its_row(make, img, change):
    make.image("train/a.png")
    make.coco("train.json", [{**img(1, "a.png"), **change}], [])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.image, problem.rejects) == ("record-malformed", 0, "image")


def test_names_that_no_file_can_have(make, img):
    make.image("train/a.png")
    make.text(
        "train.json",
        '{"images": [{"id": 1, "file_name": "\\ud800.png"}, '
        '{"id": 2, "file_name": "a\\u0000.png"}],'
        '"annotations": [], "categories": [{"id": 1, "name": "c\\udfff"}]}',
    )
    split = COCOReader(make.root).read("train")
    assert {p.code for p in split.problems} == {"image-missing"}
    assert split.table.files[1] == "train/a\\0.png"


def test_duplicate_image_ids(make, img, ann):
    make.image("train/a.png", "train/b.png", "train/c.png")
    images = [img(1, "a.png"), img(1, "b.png"), img(2, "c.png"), img(2, "c.png")]
    make.coco("train.json", images, [ann(1, 1), ann(2, 2)])
    split = COCOReader(make.root).read("train")
    found = [(p.code, p.image, p.rejects) for p in split.problems]
    assert found == [
        ("duplicate-image-id", 0, "image"),
        ("duplicate-image-id", 1, "image"),
        ("duplicate-image-id", 2, "nothing"),
    ]
    assert len(split.table) == 3  # every file on disk has its row, once


def test_records_of_one_file_are_joined(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png"), img(2, "./a.png")], [ann(1, 1), ann(2, 2)])
    split = COCOReader(make.root).read("train")
    (problem,) = split.problems
    assert (problem.code, problem.rejects) == ("duplicate-file", "nothing")
    assert split.table.rows(0) == slice(0, 2)


def test_duplicate_annotation_ids(make, img, ann):
    make.image("train/a.png")
    annotations = [
        ann(1, 1),
        ann(1, 1),
        ann(2, 1),
        ann(2, 1, (0, 0, 1, 1)),
        ann(None, 1),
        ann(None, 1),
    ]
    make.coco("train.json", [img(1, "a.png")], annotations)
    split = COCOReader(make.root).read("train")
    found = [(p.code, p.annotation, p.rejects) for p in split.problems]
    assert found == [
        ("duplicate-annotation", 1, "annotation"),
        ("duplicate-annotation-id", 3, "nothing"),
    ]
    assert split.table.num_annotations == 6


def test_one_id_for_all_annotations_is_one_problem(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(1, 1, (i, 0, 1, 1)) for i in range(500)])
    assert len(COCOReader(make.root).read("train").problems) == 1


def test_class_tables_that_differ_become_one(make, img, ann):
    make.image("train/a.png", "val/b.png")
    cat, dog, cow = ({"id": i, "name": n} for i, n in ((1, "cat"), (2, "dog"), (2, "cow")))
    make.coco("train.json", [img(1, "a.png")], [ann(1, 1, category_id=2)], [cat, dog])
    make.coco("val.json", [img(1, "b.png")], [ann(1, 1, category_id=2)], [cow, cat])
    reader = COCOReader(make.root)
    train, val = reader.read("train"), reader.read("val")
    assert train.problems == []
    assert val.problems == []  # whether 'cow' occurs is the gate's to say
    assert val.known == {"cat", "dog"}
    assert train.table.classes == val.table.classes
    assert val.table.classes.names == ("cat", "dog", "cow")
    assert len(set(val.table.classes.ids)) == 3
    assert train.table.labels.tolist() == [1]
    assert val.table.labels.tolist() == [2]


def test_the_same_classes_in_another_order_are_the_same(make, img, ann, codes):
    make.image("train/a.png", "val/b.png")
    cat, dog = {"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}
    make.coco("train.json", [img(1, "a.png")], [], [cat, dog])
    make.coco("val.json", [img(1, "b.png")], [ann(1, 1, category_id=9)], [dog, cat])
    split = COCOReader(make.root).read("val")
    assert codes(split) == []
    assert split.table.labels.tolist() == [1]


def test_a_name_with_another_id_differs(make, img, ann):
    make.image("train/a.png", "val/b.png")
    make.coco("train.json", [img(1, "a.png")], [], [{"id": 5, "name": "cat"}])
    make.coco("val.json", [img(1, "b.png")], [ann(1, 1, category_id=6)], [{"id": 6, "name": "cat"}])
    split = COCOReader(make.root).read("val")
    (problem,) = split.problems
    assert problem.code == "classes-differ"
    assert "'cat' has id 6, in train it has 5" in problem.message
    assert split.table.labels.tolist() == [0]


def test_duplicate_classes(make, img, ann):
    make.image("train/a.png")
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 0, "name": "dog"}]
    annotations = [ann(1, 1, category_id=0), ann(2, 1, category_id=1)]
    make.coco("train.json", [img(1, "a.png")], annotations, categories)
    split = COCOReader(make.root).read("train")
    assert [p.code for p in split.problems] == ["class-duplicate"] * 2
    assert split.table.labels.tolist() == [0, 0]


def test_categories_are_found_without_parsing_and_nested_ones_are_not_taken(make, img, codes):
    make.image("train/a.png", "val/b.png")
    make.coco("train.json", [img(1, "a.png")], [])
    make.json(
        "val.json",
        {
            "info": {"categories": [{"id": 1, "name": "wrong"}]},
            "images": [img(1, "b.png")],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}],
        },
    )
    reader = COCOReader(make.root)
    assert codes(reader.read("train")) == codes(reader.read("val")) == []
    make.json("val.json", {"info": {"categories": [{"id": 1, "name": "wrong"}]}, "images": []})
    split = COCOReader(make.root).read("val")
    assert codes(split) == ["json-malformed"]


def test_large_category_tables_are_found(make, img):
    make.image("train/a.png", "val/a.png")
    categories = [{"id": i, "name": f"{i:0400d}"} for i in range(4000)]
    make.coco("train.json", [img(1, "a.png")], [], categories)
    make.coco("val.json", [img(1, "a.png")], [], categories)
    split = COCOReader(make.root).read("train")
    assert len(split.table.classes) == 4000


def test_test_split_needs_neither_annotations_nor_categories(make, img, ann, codes):
    make.image("train2017/a.png", "test2017/b.png")
    make.coco("annotations/instances_train2017.json", [img(1, "a.png")], [ann(1, 1)])
    make.json("annotations/image_info_test2017.json", {"images": [img(1, "b.png")]})
    make.json("annotations/image_info_test-dev2017.json", {"images": [img(1, "b.png")]})
    reader = COCOReader(make.root)
    split = reader.read("test")
    assert codes(split) == []
    assert len(split.table) == 1
    assert split.table.classes == reader.read("train").table.classes


def test_empty_split(make, codes):
    make.coco("train.json", [], [])
    assert codes(COCOReader(make.root).read("train")) == ["empty-split"]


def test_unlisted_images_are_reported_once(make, img):
    make.image("train/a.png", "train/extra.JPG", "val/b.png", "readme/shot.png")
    make.text("train/notes.txt", "x")
    make.text("train/phone.HEIC", "x")
    make.text("train/._a.png", "x")
    make.coco("train.json", [img(1, "a.png")], [])
    make.coco("val.json", [img(1, "b.png")], [])
    reader = COCOReader(make.root)
    assert reader.read("train").unlisted == ["train/extra.JPG"]
    assert reader.read("val").unlisted == []


def test_reading_an_unknown_split(make):
    make.coco("train.json", [], [])
    with pytest.raises(DataError, match=r"no split 'val'.*there are: train"):
        COCOReader(make.root).read("val")


def test_nothing_is_written(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(1, 1)])
    before = sorted(p for p in Path(make.root).rglob("*"))
    times = [p.stat().st_mtime_ns for p in before]
    COCOReader(make.root).read("train")
    assert sorted(p for p in Path(make.root).rglob("*")) == before
    assert [p.stat().st_mtime_ns for p in before] == times
