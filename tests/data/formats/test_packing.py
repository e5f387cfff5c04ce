"""The packed table takes bytes, not Python objects."""

from __future__ import annotations

import gc
import json
import time

import numpy as np
import pytest

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.packing import Packer, empty_table
from cvtrain.data.table import Classes, Table

CLASSES = Classes.from_names(["a", "b"])


def table_bytes(table: Table) -> int:
    arrays = [table.sizes, table.starts, table.boxes, table.labels, table.flags, table.areas]
    arrays += [table.lines, table.files.buffer, table.files.offsets]
    if table.segments is not None:
        arrays += [table.segments.buffer, table.segments.offsets]
    return sum(array.nbytes for array in arrays)


def test_rows_come_out_as_they_went_in(tmp_path):
    packer = Packer()
    packer.image("a.jpg", 3, 4)
    packer.image("b.jpg")
    assert packer.add((1, 2, 3, 4), 1, 7, flags=2, segment=b"[]") == 0
    assert packer.add((5, 6, 7, 8), 0, 8) == 1
    packer.image("c.jpg")
    table = packer.table(tmp_path, CLASSES, relative=True)
    assert table.relative
    assert table.starts.tolist() == [0, 0, 2, 2]
    assert table.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert table.segments is not None
    assert (table.segments[0], table.segments[1]) == (b"[]", b"")
    assert table.take([2, 1]).boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_an_empty_table_has_all_columns(tmp_path):
    table = empty_table(tmp_path, CLASSES)
    assert len(table) == table.num_annotations == 0
    assert table.starts.tolist() == [0]
    assert table.boxes.shape == (0, 4)
    assert table.sizes.shape == (0, 2)


def test_bytes_an_annotation(tmp_path):
    packer = Packer()
    for i in range(20_000):
        packer.image(f"images/train/{i:012d}.jpg", 480, 640)
        for k in range(10):
            packer.add((k, k, k + 5, k + 5), k % 2, i)
    table = packer.table(tmp_path, CLASSES)
    assert table.num_annotations == 200_000
    assert table_bytes(table) / table.num_annotations < 70


@pytest.mark.slow
def test_a_large_coco_file_packs_fast_and_tight(tmp_path):
    rng = np.random.default_rng(0)
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(20_000)
    ]
    corners = rng.integers(0, 400, (200_000, 4)).tolist()
    annotations = [
        {
            "id": n,
            "image_id": n * 7919 % 20_000,
            "category_id": 1 + n % 2,
            "bbox": box,
            "area": 5.0,
            "iscrowd": 0,
            "segmentation": [[1.5, 2, 30.25, 4, 5, 6, 7, 80.5]],
        }
        for n, box in enumerate(corners, 1)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "train").mkdir()
    for record in images:
        (tmp_path / "train" / record["file_name"]).touch()
    del content, annotations, images
    gc.collect()
    before = len(gc.get_objects())
    start = time.process_time()
    split = COCOReader(tmp_path).read("train")
    seconds = time.process_time() - start
    gc.collect()
    assert split.problems == []
    assert split.table.num_annotations == 200_000
    assert table_bytes(split.table) / 200_000 < 130  # 41 of them the polygon's text
    assert len(gc.get_objects()) - before < 1000  # nothing is kept per image or annotation
    assert seconds < 60
