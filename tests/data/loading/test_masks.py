"""Polygons and RLE to masks and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from cvtrain.data.masks import (
    decode_rle,
    from_mask,
    mask_box,
    part_to_rle,
    plain_rle,
    resize_part,
    rle_areas,
    rle_ious,
    rle_part,
    rles_from_masks,
    rles_of,
    semantic_mask,
    semantic_table,
    to_mask,
    to_masks,
)
from cvtrain.data.table import CROWD, Blobs, Classes
from cvtrain.errors import DataError


def polygon(*rings):
    return json.dumps([list(r) for r in rings]).encode()


def square(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_polygons_are_filled_and_joined():
    mask = to_mask(polygon(square(2, 3, 8, 7), square(10, 1, 12, 2)), 10, 20)
    assert mask.shape == (10, 20)
    assert mask.sum() == 6 * 4 + 2 * 1
    assert mask[3:7, 2:8].all()
    assert mask[1, 10:12].all()


def test_rle_round_trip():
    mask = np.random.default_rng(0).integers(0, 2, (17, 23)).astype(np.uint8)
    assert np.array_equal(to_mask(from_mask(mask), 17, 23), mask)
    counts = {"size": [2, 3], "counts": [1, 2, 3]}  # uncompressed, column by column
    assert to_mask(json.dumps(counts).encode(), 2, 3).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_an_empty_or_thin_segment_is_an_empty_mask():
    for segment in (b"", b"[]", polygon([1, 1, 5, 5])):
        assert to_mask(segment, 4, 6).sum() == 0
    assert mask_box(np.zeros((4, 6))) == (0, 0, 0, 0)


def test_an_rle_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"size \[4, 6\] in an image of \[6, 4\]"):
        to_mask(from_mask(np.ones((4, 6))), 6, 4)


def test_no_rows_are_no_masks():
    assert to_masks(Blobs(), slice(0, 0), 5, 6).shape == (0, 5, 6)
    assert rles_of(Blobs(), slice(0, 0), 5, 6) == []
    assert rle_areas([]).shape == (0,)


def test_rles_of_a_table_are_plain_whatever_is_stored():
    mask = np.zeros((6, 9), np.uint8)
    mask[1:4, 2:7] = 1
    counts = {"size": [2, 3], "counts": [1, 2, 3]}
    stored = Blobs([from_mask(mask), polygon(square(2, 1, 7, 4)), b""])
    found = rles_of(stored, slice(0, 3), 6, 9)
    assert json.loads(json.dumps(found)) == found
    assert np.array_equal(decode_rle(found[0]), mask)
    assert np.array_equal(decode_rle(found[1]), mask)
    assert rle_areas(found).tolist() == [15, 15, 0]
    plain = rles_of(Blobs([json.dumps(counts).encode()]), slice(0, 1), 2, 3)
    assert decode_rle(plain[0]).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_part_gives_the_rle_of_the_whole(share):
    """Also parts that touch the image's edges, where runs go on in the next column."""
    rng = np.random.default_rng(3)
    for height, width in ((1, 1), (1, 7), (7, 1), (5, 6), (12, 9)):
        for _ in range(20):
            top, left = int(rng.integers(height)), int(rng.integers(width))
            h, w = int(rng.integers(height - top + 1)), int(rng.integers(width - left + 1))
            part = rng.random((h, w)) < share
            whole = np.zeros((height, width), np.uint8)
            whole[top : top + h, left : left + w] = part
            expected = plain_rle(coco.encode(np.asfortranarray(whole)))
            assert part_to_rle(part, top, left, height, width) == expected
            back, top, left = rle_part(expected)
            again = np.zeros_like(whole)
            again[top : top + back.shape[0], left : left + back.shape[1]] = back
            assert np.array_equal(again, whole)
            assert not back.size or (back[[0, -1]].any(1).all() and back[:, [0, -1]].any(0).all())


def test_long_runs_and_runs_of_falling_length_are_read_back():
    y, x = np.mgrid[:1500, :900]
    for mask in (np.hypot(y - 700, x - 450) < 400, (y < 1499) & (x > 2), y + x > 50, x == 3):
        part, top, left = rle_part(rles_from_masks(mask[None])[0])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (top, left) == (rows[0], columns[0])
        assert np.array_equal(part, mask[top : rows[-1] + 1, left : columns[-1] + 1])


@pytest.mark.parametrize("new", [(7, 5), (30, 41), (12, 16), (1, 1), (13, 300)])
def test_a_part_at_another_size_is_the_part_of_the_whole(new):
    whole = np.zeros((12, 16), np.uint8)
    whole[3:9, 5:14] = np.random.default_rng(1).integers(1, 9, (6, 9))
    rows = ((np.arange(new[0]) + 0.5) * 12 / new[0]).astype(int)
    columns = ((np.arange(new[1]) + 0.5) * 16 / new[1]).astype(int)
    expected = whole[np.ix_(rows, columns)]
    part, top, left = resize_part(whole[3:9, 5:14], 3, 5, (12, 16), new)
    got = np.zeros_like(expected)
    got[top : top + part.shape[0], left : left + part.shape[1]] = part
    assert np.array_equal(got, expected)


def test_hundreds_of_masks_are_measured():
    """Of more than 255 at once pycocotools' own area() fails."""
    masks = np.zeros((300, 4, 75), bool)
    for n, mask in enumerate(masks):
        mask.ravel()[: n + 1] = True
    rles = rles_from_masks(masks)
    assert rle_areas(rles).tolist() == list(range(1, 301))
    ious = rle_ious(rles, rles)
    assert ious[299, 149] == ious[149, 299] == pytest.approx(0.5)
    assert (np.diag(ious) == 1).all()


def test_overlaps_of_masks_by_hand():
    masks = np.zeros((4, 4, 10), bool)
    masks[0, :, :5] = True  # 20 pixels
    masks[1, :, 3:7] = True  # 16, of which 8 in the first
    masks[2, :2, :1] = True  # 2, all in the first
    rles = rles_from_masks(masks)
    ious = rle_ious(rles, rles[:2])
    assert ious == pytest.approx(np.array([[1, 8 / 28], [8 / 28, 1], [2 / 20, 0], [0, 0]]))
    crowd = rle_ious(rles, rles[:2], np.array([True, False]))
    assert crowd == pytest.approx(np.array([[1, 8 / 28], [8 / 16, 1], [1, 0], [0, 0]]))
    assert rle_ious([], rles).shape == (0, 4)
    assert rle_ious(rles, []).shape == (4, 0)


def test_semantic_masks_put_small_objects_on_top(files):
    table = files(
        1,
        starts=np.array([0, 3]),
        boxes=np.zeros((3, 4)),
        labels=np.array([0, 2, 1]),
        flags=np.array([0, 0, CROWD], np.uint8),
        areas=np.zeros(3),
        lines=np.zeros(3, np.int64),
        segments=Blobs([polygon(square(5, 5, 9, 9)), polygon(square(2, 2, 20, 20)),
                        polygon(square(25, 0, 32, 5))]),
    )  # fmt: skip
    semantic = semantic_table(table)
    assert semantic.classes == Classes(("background", "a", "b", "c"), (0, 1, 2, 3))
    mask = semantic_mask(semantic, 0)
    assert mask[6, 6] == 1
    assert mask[3, 3] == 3
    assert mask[2, 28] == 255
    assert mask[23, 0] == 0
    assert semantic_table(semantic) is semantic


def test_the_background_does_not_take_an_id_of_the_data_set(files):
    table = files(1, classes=Classes(("cat", "dog"), (1, 7)))
    assert semantic_table(table).classes == Classes(("background", "cat", "dog"), (0, 1, 7))
