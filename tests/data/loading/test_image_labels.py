"""Classes of whole images: read from labels, objects or tags, counted, drawn by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cvtrain.data.datamodule import DataModule
from cvtrain.data.image_labels import (
    for_task,
    images_per_class,
    main_objects,
    map_tags,
    strata,
    with_labels,
    with_tags,
)
from cvtrain.data.table import CROWD, DIFFICULT, Classes
from cvtrain.errors import DataError, UsageError

TAGS = {"tags": np.array([0, 2, 2, 0, 1, 2]), "tag_starts": np.array([0, 2, 3, 3, 6])}


@pytest.fixture
def tagged(files):
    """Four images of the classes a, b, c: ac, c, none, abc."""
    return files(4, **TAGS)


def sets(table):
    return [table.tags_of(i).tolist() for i in range(len(table))]


def test_tags_follow_their_images(tagged):
    assert sets(tagged) == [[0, 2], [2], [], [0, 1, 2]]
    assert sets(tagged.take([3, 2, 0])) == [[0, 1, 2], [], [0, 2]]
    assert sets(tagged.take([])) == []
    assert tagged.take([2]).tag_starts.tolist() == [0, 0]


def test_tags_of_labels_and_back(files):
    table = with_tags(files(3, image_labels=np.array([2, 0, 2])))
    assert sets(table) == [[2], [0], [2]]
    assert table.image_labels is None
    back = with_labels(table)
    assert back.image_labels.tolist() == [2, 0, 2]
    assert back.tags is None
    assert with_labels(back) is back
    assert with_tags(table) is table


def test_tags_of_objects(files):
    """Each class once, whatever the number of objects; none of those to be ignored."""
    table = files(
        4,
        starts=np.array([0, 3, 3, 5, 6]),
        boxes=np.tile(np.array([[0.0, 0, 5, 5]]), (6, 1)),
        labels=np.array([2, 0, 2, 1, 1, 0]),
        flags=np.array([0, 0, CROWD, DIFFICULT, 0, CROWD], np.uint8),
        areas=np.full(6, np.nan),
        lines=np.zeros(6, np.int64),
    )
    assert sets(with_tags(table)) == [[0, 2], [], [1], []]
    assert sets(for_task(table, "multilabel_classification")) == [[0, 2], [], [1], []]
    assert for_task(table, "detection") is table


def test_shapes_are_the_objects_of_the_scene(shapes):
    table = shapes("multilabel_classification")["train"]
    found = with_tags(table)
    for i in range(len(table)):
        assert found.tags_of(i).tolist() == sorted(set(table.labels[table.rows(i)].tolist()))
    assert max(len(found.tags_of(i)) for i in range(len(table))) > 1


def test_several_or_no_tags_are_no_label(tagged):
    with pytest.raises(DataError, match="use task=multilabel_classification"):
        with_labels(tagged)


def test_counts(tagged, files):
    assert images_per_class(tagged, "multilabel_classification").tolist() == [2, 1, 3]
    single = files(4, image_labels=np.array([2, 2, 0, 2]))
    assert images_per_class(single, "classification").tolist() == [1, 0, 3]
    boxes = np.array([[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 3, 3], [0, 0, 4, 4], [1, 1, 2, 2]], float)
    objects = {
        "starts": np.array([0, 2, 4, 4, 5]),
        "boxes": boxes,
        "labels": np.array([1, 2, 0, 2, 1]),
        "flags": np.array([0, CROWD, 0, 0, 0], np.uint8),
        "areas": np.full(5, np.nan),
        "lines": np.zeros(5, np.int64),
    }
    assert images_per_class(files(4, **objects), "localization").tolist() == [0, 2, 1]
    table = main_objects(files(4, **objects))
    assert np.diff(table.starts).max() == 1
    assert np.bincount(table.labels, minlength=3).tolist() == [0, 2, 1]
    assert main_objects(table) is table
    with pytest.raises(DataError, match="names no class"):
        images_per_class(files(2), "classification")


def test_strata_are_labels_or_the_rarest_tag(tagged, files):
    assert strata(tagged).tolist() == [0, 2, -1, 1]
    assert strata(files(2, image_labels=np.array([2, 0]))).tolist() == [2, 0]
    assert strata(files(2)).tolist() == [0, 0]


def test_some_classes_in_another_order(tagged):
    part = map_tags(tagged, np.array([1, -1, 0]))
    assert sets(part) == [[0, 1], [0], [], [0, 1]]


def module(tables, task, **options):
    settings = {"batch_size": 2, "image_size": 16, "num_workers": 0, **options}
    return DataModule(tables, task, {"transforms": []}, **settings)


def test_targets_hold_1_for_each_class(tagged):
    data = module({"train": tagged, "val": tagged}, "multilabel_classification")
    want = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]])
    for batch in (b for loader in (data.train_dataloader(), data.val_dataloader()) for b in loader):
        for target, info in zip(batch.targets, batch.infos, strict=True):
            assert torch.equal(target.probs, want[info.index])
            assert target.label is None
    assert data.class_counts()[0] == [2, 1, 3]


def test_a_balanced_epoch(files):
    table = files(8, image_labels=np.array([0, 0, 0, 0, 0, 0, 2, 1]))
    tables = {"train": table, "val": table}
    data = module(tables, "classification", sampler="balanced", batch_size=4)
    drawn = [int(t.label) for b in data.train_dataloader() for t in b.targets]
    assert sorted(np.bincount(drawn).tolist()) == [2, 3, 3]
    assert len([i for b in data.val_dataloader() for i in b.infos]) == 8
    for name in ("overfit", "val"):
        data.tables["overfit"] = table
        assert sorted(k[1] for k in data.loader(name).sampler) == list(range(8))


def test_a_row_drawn_again_is_augmented_anew(files):
    table = files(4, image_labels=np.array([0, 0, 0, 1]))
    noise = {"_target_": "albumentations.GaussNoise", "p": 1.0}
    data = DataModule(
        {"train": table}, "classification", {"transforms": [noise]}, image_size=16, num_workers=0
    )
    dataset = data.dataset("train", train=True)
    first, again, once_more = (dataset[key].image for key in ((5, 3), (5, 3, 2), (5, 3, 2)))
    assert not np.array_equal(first, again)
    assert np.array_equal(again, once_more)


def test_samplers_that_do_not_serve(shapes):
    with pytest.raises(UsageError, match="for task=detection leave"):
        module(shapes(), "detection", sampler="balanced")
    with pytest.raises(UsageError, match="choose shuffle or balanced"):
        module(shapes("classification"), "classification", sampler="random")


def test_classes_of_a_table_of_tags(tagged):
    from cvtrain.data.subset import select

    named = replace(tagged, classes=Classes(("a", "b", "c"), (0, 1, 2)))
    chosen = select({"train": named}, "multilabel_classification", classes=["c", "b"])
    assert sets(chosen.tables["train"]) == [[0], [0], [], [0, 1]]
    assert chosen.tables["train"].classes.names == ("c", "b")
