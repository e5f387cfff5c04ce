"""Splits: drawn where there is no val, empty ones, those asked for, and what a task needs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.gate.run import run_gate
from cvtrain.data.gate.splits import draw_val
from cvtrain.errors import DataError, UsageError


def names(table) -> list[str]:
    return [table.files[i] for i in range(len(table))]


@pytest.fixture
def folder(dataset):
    """30 cats, 10 dogs, one emu, and no val split."""
    dataset.kinds = frozenset({"label"})
    dataset.names = ("cat", "dog", "emu")
    for label, count in enumerate((30, 10, 1)):
        for i in range(count):
            dataset.add(f"{dataset.names[label]}/{i}.png", label=label, image=dataset.pixels(8, 8))
    return dataset


def split(dataset, **options):
    return run_gate(dataset, "classification", progress=False, workers=1, **options)


def test_val_is_drawn_by_class(folder) -> None:
    report = split(folder, val_fraction=0.2)
    train, val = report.tables["train"], report.tables["val"]
    assert np.bincount(train.image_labels).tolist() == [24, 8, 1]
    assert np.bincount(val.image_labels).tolist() == [6, 2]
    assert sorted(names(train) + names(val)) == sorted(names(folder.table("train")))
    assert train.classes == val.classes
    (note,) = [p for p in report.notes if p.code == "no-val-split"]
    assert note.message.startswith("no val split: 8 of 41 training images are kept for validation")
    assert (report.images, report.used, report.rejected) == (41, 41, 0)
    assert (report.counts["train"].used, report.counts["val"].used) == (33, 8)


def test_val_follows_the_seed_and_not_the_order(folder) -> None:
    first = names(split(folder, seed=3).tables["val"])
    assert names(split(folder, seed=4).tables["val"]) != first
    folder.rows["train"].reverse()
    assert sorted(names(split(folder, seed=3).tables["val"])) == sorted(first)


def test_val_hardly_moves_when_an_image_comes(folder) -> None:
    before = set(names(split(folder).tables["val"]))
    folder.add("cat/new.png", label=0, image=folder.pixels(8, 8))
    after = set(names(split(folder).tables["val"]))
    assert len(before - after) <= 1


def test_copies_stay_on_one_side(dataset) -> None:
    dataset.kinds = frozenset({"label"})
    for i in range(12):
        dataset.add(f"{i}.png", label=0, image=dataset.pixels(8, 8))
        dataset.add(f"copy of {i}.bmp", label=0, image=Image.open(dataset.root / f"{i}.png"))
    for seed in range(5):
        report = split(dataset, seed=seed, val_fraction=0.3)
        val = set(names(report.tables["val"]))
        assert len(val) == 6  # 7.2 rounded, whole pairs
        assert {f"copy of {n}"[:-3] + "bmp" for n in val if "copy" not in n} <= val
        assert not [p for p in report.notes if p.code == "leak"]


def test_boxes_go_with_their_images(dataset) -> None:
    for i in range(10):
        dataset.add(f"{i}.png", boxes=[[i, 0, i + 5, 9 + 3 * k] for k in range(i % 3 + 1)])
    report = run_gate(dataset, "detection", progress=False, workers=1)
    for table in report.tables.values():
        for i in range(len(table)):
            wanted = int(table.files[i][0])
            assert table.boxes[table.rows(i), 0].tolist() == [wanted] * (wanted % 3 + 1)
    total = sum(count.annotations for count in report.counts.values())
    assert total == dataset.table("train").num_annotations


def test_images_left_out_are_not_drawn(folder) -> None:
    (folder.root / "cat/3.png").write_bytes(b"")
    report = split(folder, on_bad="drop")
    everything = names(report.tables["train"]) + names(report.tables["val"])
    assert len(everything) == 40
    assert "cat/3.png" not in everything
    assert (report.images, report.used, report.rejected) == (41, 40, 1)
    assert report.counts["train"].rejected == 1


def test_eval_and_train_see_the_same_val(folder) -> None:
    whole = split(folder).tables
    only = split(folder, splits=["val"]).tables
    assert list(only) == ["val"]
    assert names(only["val"]) == names(whole["val"])
    rest = split(folder, splits=["train"]).tables
    assert names(rest["train"]) == names(whole["train"])


def test_a_val_split_of_their_own_is_left_alone(folder) -> None:
    folder.add("val/x.png", split="val", label=2, image=folder.pixels(8, 8))
    report = split(folder)
    assert names(report.tables["val"]) == ["val/x.png"]
    assert len(report.tables["train"]) == 41
    assert "no-val-split" not in {p.code for p in report.problems}


def test_only_splits_asked_for_are_read(folder) -> None:
    for name in ("val", "test"):
        folder.add(f"{name}.png", split=name, label=0, image=folder.pixels(8, 8))
    folder.reads.clear()
    report = split(folder, splits=["test"])
    assert folder.reads == ["test"]
    assert (list(report.tables), report.images) == (["test"], 1)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), "much", None])
def test_fraction_out_of_range(folder, fraction) -> None:
    with pytest.raises(UsageError, match="val_fraction"):
        split(folder, val_fraction=fraction)


def test_fraction_is_not_read_where_there_is_a_val_split(folder) -> None:
    folder.add("v.png", split="val", label=0)
    assert len(split(folder, val_fraction=7).tables["val"]) == 1


def test_one_image_cannot_be_split(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    with pytest.raises(DataError, match=r"1 different image cannot be split"):
        run_gate(dataset, "detection", progress=False)


@pytest.mark.parametrize("on_bad", ["error", "drop"])
def test_what_is_wrong_is_said_where_it_leaves_too_few_images(dataset, box, on_bad: str) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box])
    (dataset.root / "b.png").unlink()
    report = run_gate(dataset, "detection", progress=False, strict=False, on_bad=on_bad)
    (lost, split_error) = report.errors
    assert lost.file == "b.png"
    assert split_error.code == "val-not-drawn"
    assert split_error.message == (
        "1 different image cannot be split into train and val; add images, or a val split "
        "(1 of 2 images dropped)"
    )
    assert split_error in report.stopping
    with pytest.raises(DataError) as caught:
        run_gate(dataset, "detection", progress=False, on_bad=on_bad)
    assert "cannot be split" in str(caught.value)
    assert ("b.png" in str(caught.value)) == (on_bad == "error")


def test_two_images_can(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box])
    tables = run_gate(dataset, "detection", progress=False, val_fraction=0.01).tables
    assert (len(tables["train"]), len(tables["val"])) == (1, 1)


def test_one_image_a_class_still_gives_a_val(dataset) -> None:
    dataset.names = tuple("abcd")
    for i in range(4):
        dataset.add(f"{i}.png", label=i)
    train, val = draw_val(dataset.table("train"), None, 0.25, 0)
    assert (len(train), len(val)) == (3, 1)


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_empty_splits_stop_whatever_on_bad(dataset, box, on_bad: str) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.rows["val"] = []
    report = dataset.gate("detection", on_bad=on_bad)
    assert [(p.code, p.split, p.message) for p in report.stopping] == [
        ("empty-split", "val", "val has no image that can be used")
    ]
    with pytest.raises(DataError, match="empty-split"):
        dataset.gate("detection", on_bad=on_bad, strict=True)


def test_split_of_bad_images_alone_is_empty(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    (dataset.root / "v.png").write_bytes(b"")
    report = dataset.gate("detection", on_bad="drop")
    assert [p.message for p in report.stopping] == ["val has no image of 1 that can be used"]


def test_no_train_split(dataset, box) -> None:
    dataset.add("v.png", split="val", boxes=[box])
    report = dataset.gate("detection")
    assert [p.code for p in report.stopping] == ["no-train-split"]
    assert dataset.gate("detection", splits=["val"]).errors == []


def test_split_that_is_not_there(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    with pytest.raises(DataError, match=r"no test split in .*; it has train, val"):
        run_gate(dataset, "detection", progress=False, splits=["test"])


@pytest.mark.parametrize(
    ("task", "kinds", "serves"),
    [
        ("classification", {"boxes"}, "multilabel_classification|localization|detection"),
        ("classification", {"tags"}, "multilabel_classification"),
        ("multilabel_classification", {"mask"}, "semantic_segmentation"),
        ("detection", {"label"}, "classification|multilabel_classification"),
        ("localization", {"mask"}, "semantic_segmentation"),
        ("instance_segmentation", {"boxes"}, "multilabel_classification|localization|detection"),
        ("semantic_segmentation", {"boxes"}, "multilabel_classification|localization|detection"),
    ],
)
def test_task_that_the_data_do_not_serve(dataset, box, task, kinds, serves) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.kinds = frozenset(kinds)
    with pytest.raises(DataError) as caught:
        run_gate(dataset, task, progress=False)
    assert str(caught.value).endswith(f"use task={serves}")
    assert dataset.reads == []  # refused before any data is read


@pytest.mark.parametrize(
    ("task", "kinds"),
    [
        ("semantic_segmentation", {"boxes", "segments"}),
        ("instance_segmentation", {"boxes", "segments"}),
        ("detection", {"boxes", "segments"}),
    ],
)
def test_segments_serve(dataset, box, task, kinds) -> None:
    dataset.kinds = frozenset(kinds)
    for split_name in ("train", "val"):
        segment = b"[[5,5,25,5,25,30]]"
        dataset.add(f"{split_name}.png", split=split_name, boxes=[box], segments=[segment])
    assert dataset.gate(task, strict=True).used == 2


def test_unknown_task_and_on_bad(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    with pytest.raises(UsageError, match="task=pose"):
        run_gate(dataset, "pose", progress=False)
    with pytest.raises(UsageError, match=r"data\.on_bad=ignore"):
        run_gate(dataset, "detection", progress=False, on_bad="ignore")


def test_drawn_data_pass_without_files() -> None:
    from cvtrain.data.shapes import ShapesReader

    reader = ShapesReader(num_train=12, num_val=5, num_test=0, scene_size=64)
    for task in (None, "classification", "localization", "detection", "instance_segmentation"):
        report = run_gate(reader, task, progress=False)
        assert (report.images, report.used, report.problems) == (17, 17, [])
        assert len(report.tables["train"]) == 12
