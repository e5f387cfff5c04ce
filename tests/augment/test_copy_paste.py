"""Objects of another image, laid over this one's."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.augment.copy_paste import copy_paste
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import HIDDEN, Scene


def make(boxes, level, labels, ignore=None, dtype=np.uint8):
    image = np.full((40, 50, 3), level, dtype)
    masks = np.zeros((len(boxes), 40, 50), np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        masks[k, y0:y1, x0:x1] = 1
        image[y0:y1, x0:x1] = level + 20 + k
    points = [[[(x0 + x1) / 2, (y0 + y1) / 2, 2.0]] for x0, y0, x1, y1 in boxes]
    return Scene(
        image=image,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        ignore=np.zeros(len(boxes), bool) if ignore is None else np.array(ignore),
        areas=masks.sum(axis=(1, 2)).astype(np.float64),
        masks=Masks.of(masks),
        keypoints=np.array(points).reshape(-1, 1, 3),
    )


def test_covered_objects_shrink_or_go():
    below = make([(0, 0, 20, 20), (30, 30, 40, 40), (5, 5, 9, 9)], 50, [1, 2, 3])
    above = make([(2, 2, 12, 22)], 150, [7])
    out = copy_paste(below, above, np.random.default_rng(0), min_visibility=0.1)
    assert out.labels.tolist() == [1, 2, 7]  # the third lies wholly below
    assert (out.image[2:22, 2:12] == 170).all()
    assert not (out.masks[0] & out.masks[2]).any()
    assert out.masks[0].sum() == out.areas[0] == 400 - 10 * 18
    assert out.areas[2] == 200
    assert out.boxes.tolist() == [[0, 0, 20, 20], [30, 30, 40, 40], [2, 2, 12, 22]]
    assert out.keypoints[:, 0, 2].tolist() == [HIDDEN, 2.0, 2.0]
    assert (below.image[2:22, 2:12] != 170).all()  # the given scene is left alone


def test_a_box_is_cut_to_what_is_seen():
    out = copy_paste(
        make([(0, 0, 20, 20)], 50, [1]), make([(0, 0, 15, 30)], 150, [7]), np.random.default_rng(0)
    )
    assert out.boxes[0].tolist() == [15, 0, 20, 20]


@pytest.mark.parametrize(("least", "left"), [(0.2, [1, 7]), (0.3, [7])])
def test_too_little_in_view_is_dropped(least, left):
    below, above = make([(0, 0, 20, 20)], 50, [1]), make([(0, 0, 15, 30)], 150, [7])
    out = copy_paste(below, above, np.random.default_rng(0), min_visibility=least)
    assert out.labels.tolist() == left
    assert len(out.boxes) == len(out.masks) == len(out.keypoints) == len(left)


def test_a_random_subset_at_least_one_and_no_crowd():
    boxes = [(2 + 8 * k, 2, 8 + 8 * k, 8) for k in range(5)]
    above = make(boxes, 150, range(5), ignore=[False] * 4 + [True])
    counts = []
    for seed in range(30):
        out = copy_paste(make([], 50, []), above, np.random.default_rng(seed))
        assert 4 not in out.labels
        counts.append(len(out.labels))
    assert min(counts) == 1
    assert max(counts) == 4
    crowd = make([(0, 0, 9, 9)], 150, [0], ignore=[True])
    assert copy_paste(above, crowd, np.random.default_rng(0)) is above


def test_the_same_generator_the_same_image_and_depths_may_differ():
    below, above = (
        make([(0, 0, 9, 9)], 50, [1]),
        make([(20, 20, 30, 30)], 20_000, [2], None, np.uint16),
    )
    one, two = (copy_paste(below, above, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one.image, two.image)
    assert one.image.dtype == np.uint16
    assert one.image[39, 49, 0] == 50 * 257
    assert one.image[25, 25, 0] == 20_020
