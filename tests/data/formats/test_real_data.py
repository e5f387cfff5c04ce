"""The readers on small real data sets (CVTRAIN_REAL_DATA)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cvtrain.data.formats.auto import AutoReader


@pytest.mark.parametrize(
    ("folder", "name", "images", "classes"),
    [
        ("raccoon", "voc", {"train": 160, "val": 40}, 1),
        ("cifar10_mini", "folder", {"train": 3000, "val": 1000}, 10),
        ("membrane", "masks", {"train": 24, "val": 6}, 2),
        ("street_mini", "masks", {"train": 70, "val": 20}, 11),
        ("nuclei_mini", "coco", {"train": 90, "val": 30}, 1),
    ],
)
def test_everything_is_read_without_a_problem(real_data, folder, name, images, classes):
    reader = AutoReader(real_data / folder)
    assert reader.name == name
    assert reader.splits() == ["train", "val"]
    for split, count in images.items():
        read = reader.read(split)
        assert (len(read.table), len(read.table.classes)) == (count, classes)
        assert read.problems == []
        assert read.unlisted == []
        assert all((real_data / folder / read.table.files[i]).is_file() for i in range(count))


def test_raccoon_boxes_are_those_of_the_xml(real_data):
    table = AutoReader(real_data / "raccoon").read("train").table
    assert table.files[0] == "JPEGImages/raccoon-1.jpg"
    assert table.boxes[0].tolist() == [81, 88, 522, 408]
    assert table.sizes[0].tolist() == [417, 650]
    assert table.num_annotations == 175


@pytest.mark.parametrize("split", ["train", "val"])
def test_nuclei_are_those_of_pycocotools(real_data, split, capsys):
    root = real_data / "nuclei_mini"
    table = AutoReader(root).read(split).table
    coco = COCO(str(root / f"{split}.json"))
    assert table.classes.ids == (7,)
    assert table.num_annotations == len(coco.anns)
    assert table.segments is not None
    for i in range(0, len(table), 7):
        rows = table.rows(i)
        height, width = table.sizes[i]
        by_id = {ann["id"]: ann for ann in coco.imgToAnns[table.image_id(i)]}
        assert sorted(by_id) == sorted(table.lines[rows].tolist())
        for row in range(rows.start, rows.stop, 11):
            ann = by_id[int(table.lines[row])]
            x, y, w, h = ann["bbox"]
            np.testing.assert_array_equal(table.boxes[row], [x, y, x + w, y + h])
            assert table.areas[row] == ann["area"]
            segment = json.loads(table.segments[row])
            if isinstance(segment, list):
                segment = coco_mask.merge(coco_mask.frPyObjects(segment, int(height), int(width)))
            np.testing.assert_array_equal(coco_mask.decode(segment), coco.annToMask(ann))
