"""data.classes and data.train_per_class: what is kept, in which order, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cvtrain.data.datamodule import build_datamodule
from cvtrain.data.subset import Selection, select
from cvtrain.data.table import Blobs, Classes, Strings, Table
from cvtrain.errors import DataError, UsageError

Files = Callable[..., Table]


def folder(count: int = 30, names: tuple[str, ...] = ("a", "b", "c"), first: int = 0) -> Table:
    """Images that take turns in their classes; no files behind them."""
    return Table(
        root="/nowhere",
        classes=Classes(names, tuple(range(10, 10 + len(names)))),
        files=Strings(f"{first + i:03d}.png" for i in range(count)),
        sizes=np.full((count, 2), 8, np.int32),
        starts=np.zeros(count + 1, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        flags=np.zeros(0, np.uint8),
        areas=np.zeros(0),
        lines=np.zeros(0, np.int64),
        image_labels=np.arange(count) % len(names),
    )


def boxed() -> Table:
    """Three images: a cat and a dog; a dog; nothing."""
    return Table(
        root="/nowhere",
        classes=Classes(("cat", "cow", "dog"), (3, 5, 8)),
        files=Strings(["0.png", "1.png", "2.png"]),
        sizes=np.full((3, 2), 8, np.int32),
        starts=np.array([0, 2, 3, 3]),
        boxes=np.arange(12.0).reshape(3, 4),
        labels=np.array([0, 2, 2]),
        flags=np.zeros(3, np.uint8),
        areas=np.full(3, np.nan),
        lines=np.arange(3),
        segments=Blobs([b"a", b"b", b"c"]),
    )


def selected(tables: dict[str, Table], task: str | None = None, **keys: Any) -> Selection:
    selection = select(tables, task, **keys)
    assert selection is not None
    return selection


def kept(table: Table) -> list[str]:
    return [table.files[i] for i in range(len(table))]


def test_nothing_asked_for_changes_nothing() -> None:
    assert select({"train": folder()}, "classification") is None


def test_classification_leaves_out_images_of_other_classes() -> None:
    tables = {"train": folder(), "val": folder(9)}
    chosen = selected(tables, "classification", classes=["c", "a"])
    assert chosen.classes == Classes(("c", "a"), (12, 10))
    train = chosen.tables["train"]
    assert train.classes == chosen.classes
    assert len(train) == 20
    assert kept(train)[:4] == ["000.png", "002.png", "003.png", "005.png"]
    assert train.image_labels is not None
    assert train.image_labels[:4].tolist() == [1, 0, 1, 0], "by the names in the order typed"
    message = "data.classes: 26 of 39 images kept (train 20, val 6), 2 of 3 classes"
    assert chosen.lines == [message]
    assert [chosen.counts["val"][key] for key in ("images", "of_images")] == [6, 9]
    assert len(tables["train"]) == 30, "the gate's tables stay"


def test_detection_leaves_out_objects_and_keeps_images() -> None:
    chosen = selected({"train": boxed()}, "detection", classes=["dog", "cow"])
    table = chosen.tables["train"]
    assert kept(table) == ["0.png", "1.png", "2.png"]
    assert table.labels.tolist() == [0, 0]
    assert table.starts.tolist() == [0, 1, 2, 2]
    assert table.boxes.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert table.segments is not None
    assert [table.segments[i] for i in range(2)] == [b"b", b"c"]
    assert table.classes.ids == (8, 5), "the data set's own ids stay with their names"
    assert chosen.lines == [
        "data.classes: 3 of 3 images kept (train 3), 2 of 3 objects, 2 of 3 classes"
    ]


def test_localization_leaves_out_images_that_have_no_object_left() -> None:
    chosen = selected({"train": boxed()}, "localization", classes=["cat"])
    assert kept(chosen.tables["train"]) == ["0.png"]
    assert "1 of 3 images kept" in chosen.lines[0]


def test_pixels_of_other_classes_are_void(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    mask = np.array([[0, 1, 2, 255]] * 4, np.uint8)
    for split in ("train", "val"):
        for kind, content in (("images", image), ("masks", mask)):
            (tmp_path / kind / split).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / kind / split / "0.png"), content)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    node = {"_target_": "cvtrain.data.formats.masks.MasksReader", "root": str(tmp_path)}
    module, report = build(node, "semantic_segmentation", classes=["car", "sky"], image_size=4)
    assert module.classes.names == ("car", "sky")
    target = module.dataset("val")[0].target
    assert target.mask is not None
    assert target.mask[0].tolist() == [1, 255, 0, 255]
    assert report.summary_lines()[-1] == "data.classes: pixels of the other classes are void"


def build(reader: dict[str, Any], task: str, **data: Any) -> tuple[Any, Any]:
    node = {"name": "x", "reader": reader, "on_bad": "error", "val_fraction": 0.2, "channels": 3}
    node |= {"batch_size": 4, "resize": "stretch", "num_workers": 0, "cache": "none"}
    node |= {"image_size": 32, **data}
    return build_datamodule({"data": node, "augment": None}, task, seed=3, progress=False)


def test_drawn_scenes_keep_to_their_class() -> None:
    node = {"_target_": "cvtrain.data.shapes.ShapesReader", "task": "classification"}
    node |= {"num_train": 40, "num_val": 40, "num_test": 0, "scene_size": 32}
    whole, _ = build(node, "classification")
    part, report = build(node, "classification", classes=["star", "circle"], train_per_class=3)
    assert part.classes.names == ("star", "circle")
    assert len(part.dataset("train")) == 6
    names = {
        row: whole.classes.names[int(whole.dataset("val")[row].target.label)] for row in range(40)
    }
    for sample in part.dataset("val"):
        row = int(Path(sample.info.file_name).stem)
        assert part.classes.names[int(sample.target.label)] == names[row]
        assert (sample.image == whole.dataset("val")[row].image).all()
    assert len(part.dataset("val")) == sum(n in ("star", "circle") for n in names.values())
    counts = report.to_json()["selection"]["splits"]
    assert (counts["train"]["images"], counts["train"]["of_images"]) == (6, 40)


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    tables = {"train": folder(90), "val": folder(9)}
    draws = {}
    for seed in (0, 1):
        for number in (3, 10, 20):
            chosen = selected(tables, "classification", train_per_class=number, seed=seed)
            table = chosen.tables["train"]
            assert table.image_labels is not None
            assert np.bincount(table.image_labels).tolist() == [number] * 3
            assert len(chosen.tables["val"]) == 9
            draws[seed, number] = set(kept(table))
        assert draws[seed, 3] < draws[seed, 10] < draws[seed, 20]
    assert draws[0, 10] != draws[1, 10]
    fewer = selected(tables, "classification", classes=["c", "b"], train_per_class=10)
    assert set(kept(fewer.tables["train"])) < draws[0, 10], "other classes change nothing"
    assert chosen.lines == ["data.train_per_class=20: 60 of 90 training images, drawn by seed=1"]


def test_a_class_with_too_few_images_is_named() -> None:
    table = folder(9, names=("few", "many"))
    chosen = selected({"train": table}, "classification", train_per_class=5)
    assert len(chosen.tables["train"]) == 9
    assert chosen.lines == [
        "data.train_per_class=5: many has 4 training images; all are used",
        "data.train_per_class=5: 9 of 9 training images, drawn by seed=0",
    ]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["a", "d"], "data.classes: the data set has no class d; it has a, b, c"),
        (["horses"], "data.classes: the data set has no class horses; did you mean horse?"),
    ],
)
def test_an_unknown_class_is_one_line(classes: list[str], said: str) -> None:
    names = ("horse", "b") if classes == ["horses"] else ("a", "b", "c")
    with pytest.raises(UsageError) as caught:
        select({"train": folder(names=names)}, None, classes=classes)
    assert str(caught.value) == said


def test_a_split_without_any_is_an_error_or_left_out() -> None:
    other = folder(4, names=("a", "b", "c")).take([0, 3])
    with pytest.raises(DataError, match=r"data.classes: val has no image of b; choose others"):
        select({"train": folder(), "val": other}, "classification", classes=["b"])
    chosen = selected({"train": folder(), "test": other}, "classification", classes=["b"])
    assert list(chosen.tables) == ["train"]
    assert chosen.lines[-1] == "data.classes: test has no image of b; it is dropped"
    assert chosen.counts["test"]["images"] == 0


def test_other_tasks_have_no_images_of_a_class() -> None:
    with pytest.raises(UsageError, match=r"data.train_per_class=2 .* task=classification"):
        select({"train": boxed()}, "detection", train_per_class=2)


def test_numbers_name_classes_too() -> None:
    chosen = selected({"train": folder(names=("1", "2", "3"))}, None, classes=[3, "1"])
    assert chosen.classes.names == ("3", "1")
