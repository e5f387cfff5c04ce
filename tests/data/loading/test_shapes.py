"""Drawn scenes: what is annotated is what is seen; the same bytes everywhere."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

from cvtrain.data.masks import mask_box, to_mask, to_masks
from cvtrain.data.shapes import NAMES, ShapesReader, draw_mask
from cvtrain.errors import UsageError

PINNED = "6c58a586e1a828dcff944fb0abcfcb84ade904738bb079e64e87ce787d339018"


def digest() -> str:
    table = ShapesReader(num_train=6, num_val=2, scene_size=[64, 96]).read("train").table
    found = hashlib.sha256(table.boxes.tobytes() + table.segments.buffer.tobytes())
    for i in (5, 0, 3, 1, 2, 4):
        found.update(table.generator(table.files[i]).tobytes())
    return found.hexdigest()


def read(split="train", **options):
    settings = {"num_train": 60, "num_val": 20, "num_test": 0, "scene_size": 64, **options}
    return ShapesReader(**settings).read(split).table


def test_annotations_are_what_is_seen():
    table = read()
    assert table.classes.names == NAMES
    assert len(table) == 60
    for i in range(len(table)):
        rows = table.rows(i)
        masks = to_masks(table.segments, rows, 64, 64)
        assert masks.sum(axis=0).max() <= 1  # visible parts do not overlap
        for k, row in enumerate(range(rows.start, rows.stop)):
            assert mask_box(masks[k]) == tuple(table.boxes[row])
            assert masks[k].sum() == table.areas[row]
        seen = table.areas[rows]
        assert table.image_labels[i] == table.labels[rows][np.argmax(seen)]


def test_sides_and_counts_are_those_asked_for():
    table = read(num_train=300, min_objects=1, max_objects=3, scene_size=[100, 140])
    sides = np.concatenate(
        [table.boxes[:, 2] - table.boxes[:, 0], table.boxes[:, 3] - table.boxes[:, 1]]
    )
    assert sides.min() >= 20
    assert sides.max() <= 60
    assert sides.min() < 24
    assert sides.max() > 56
    counts = np.diff(table.starts)
    assert set(counts) == {1, 2, 3}
    assert np.bincount(counts)[1:].min() > 60
    assert np.bincount(table.labels, minlength=4).min() > 90


def test_objects_overlap_but_stay_in_view():
    reader = ShapesReader(num_train=120, num_val=0, num_test=0, scene_size=64, min_visible=0.5)
    table = reader.read("train").table
    covered = 0
    drawer = table.generator
    for row in range(table.num_annotations):
        whole = draw_mask(drawer.objects[row], 64, 64).sum()
        assert table.areas[row] >= 0.5 * whole
        covered += table.areas[row] < whole
    assert covered > 20


def test_every_object_stands_off_from_what_is_around_it():
    table = read(max_objects=1, num_train=40)
    for i in range(len(table)):
        image = table.generator(table.files[i]).astype(int)
        mask = to_mask(table.segments[i], 64, 64).astype(bool)
        x0, y0, x1, y1 = table.boxes[i].astype(int)
        around = np.zeros_like(mask)
        around[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = True
        gap = np.abs(image[mask].mean(axis=0) - image[around & ~mask].mean(axis=0)).sum()
        assert gap > 40


def test_the_same_bytes_everywhere():
    # Pinned: another platform or version that draws something else must be noticed.
    assert digest() == PINNED
    np.random.seed(5)  # noqa: NPY002 (the global one, on purpose)
    assert digest() == PINNED


def test_splits_and_seeds_differ_and_selections_keep_their_images():
    table, val, other = read(), read("val"), read(seed=1)
    first = table.generator(table.files[0])
    assert not np.array_equal(first, val.generator(val.files[0]))
    assert not np.array_equal(first, other.generator(other.files[0]))
    part = table.take([7, 0])
    assert np.array_equal(part.generator(part.files[1]), first)
    again = pickle.loads(pickle.dumps(part))
    assert np.array_equal(again.generator(again.files[1]), first)


def test_more_scenes_keep_the_first_ones():
    few, many = read(num_train=10), read(num_train=30)
    assert np.array_equal(few.boxes, many.take(range(10)).boxes)


@pytest.mark.parametrize("task", ["classification", "localization"])
def test_image_tasks_get_one_object_unless_told_otherwise(task):
    assert set(np.diff(read(task=task).starts)) == {1}
    assert set(np.diff(read(task=task, max_objects=2).starts)) == {1, 2}


def test_empty_scenes_and_gray_ones():
    table = read(min_objects=0, num_train=40)
    assert 0 in np.diff(table.starts)
    assert table.image_labels is None
    gray = read(channels=1)
    assert gray.generator(gray.files[0]).shape == (64, 64, 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_train": -1}, "data.num_train=-1"),
        ({"num_val": "many"}, "data.num_val=many"),
        ({"max_objects": 0}, "data.max_objects=0"),
        ({"min_objects": 4, "max_objects": 3}, "data.max_objects=3"),
        ({"min_size": 0.7, "max_size": 0.6}, "data.min_size=0.7"),
        ({"max_size": 1.2}, "data.max_size=1.2"),
        ({"min_visible": 0}, "data.min_visible=0"),
        ({"scene_size": 8}, "data.scene_size=8"),
        ({"scene_size": [64]}, "data.scene_size="),
        ({"channels": 4}, "data.channels=4"),
        ({"seed": -1}, "data.scene_seed=-1"),
        ({"min_objects": 0, "task": "classification"}, "data.min_objects=0"),
        ({"min_size": 0.01, "max_size": 0.02}, "too small to draw"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, named):
    with pytest.raises(UsageError) as caught:
        ShapesReader(**options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_objects_than_fit_are_refused():
    with pytest.raises(UsageError, match=r"data.max_objects=40: 40 objects"):
        read(min_objects=40, max_objects=40, min_size=0.5)
