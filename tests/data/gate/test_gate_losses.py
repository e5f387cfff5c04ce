"""Splits without labels, or without most of them, stop whatever ``on_bad`` says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.masks import MasksReader
from cvtrain.data.gate.run import run_gate
from cvtrain.data.table import CROWD, DIFFICULT
from cvtrain.errors import DataError

NAN = [float("nan")] * 4


def stopping(dataset, task="detection", on_bad="drop", **options) -> list[tuple[str, str]]:
    report = dataset.gate(task, on_bad=on_bad, **{"allow_empty": False, **options})
    return [(p.code, p.message) for p in report.stopping]


@pytest.mark.parametrize("on_bad", ["fix", "drop"])
def test_more_than_half_of_the_objects_lost(dataset, apart, on_bad: str) -> None:
    dataset.add("a.png", boxes=[*apart(2), NAN, NAN])
    dataset.add("v.png", split="val", boxes=apart(1))
    assert stopping(dataset, on_bad=on_bad) == []  # half of them are left
    dataset.add("b.png", boxes=[NAN])
    lost = [("labels-lost", "train lost 3 of 5 objects: box-nan 3")]
    assert stopping(dataset, on_bad=on_bad) == lost
    assert stopping(dataset, on_bad=on_bad, allow_empty=True) == []
    with pytest.raises(DataError, match=r"on_bad=\w+ cannot fix that.*\n.*data\.allow_empty=true"):
        dataset.gate("detection", on_bad=on_bad, allow_empty=False, strict=True)
    codes = {p.code for p in dataset.gate("detection", allow_empty=False).errors}
    assert codes == {"box-nan"}  # on_bad=error: what is left is not known yet


def test_copies_are_not_lost(dataset, apart) -> None:
    dataset.add("a.png", boxes=apart(2) * 3)
    dataset.add("v.png", split="val", boxes=apart(1) * 4)
    assert stopping(dataset) == []
    assert len(dataset.gate("detection", on_bad="drop").tables["val"].boxes) == 1


def test_objects_of_images_that_are_left_out_are_lost(dataset, apart) -> None:
    for name in ("a.png", "b.png"):
        dataset.add(name, boxes=apart(2 if name == "a.png" else 1))
    (dataset.root / "a.png").write_bytes(b"")
    dataset.add("v.png", split="val", boxes=apart(1))
    assert stopping(dataset) == [("labels-lost", "train lost 2 of 3 objects: image-empty 1")]


@pytest.mark.parametrize("task", [None, "detection", "localization", "multilabel_classification"])
@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_a_split_without_any_object(dataset, apart, task: str | None, on_bad: str) -> None:
    dataset.add("a.png", boxes=apart(1))
    dataset.add("v.png", split="val")
    found = stopping(dataset, task, on_bad)
    if task == "localization":  # the image goes, then the split has none
        assert found[-1] == ("empty-split", "val has no image of 1 that can be used")
    else:
        assert found == [("labels-none", "val has no object")]


def test_crowds_and_difficult_objects_are_no_objects_to_score(dataset, apart) -> None:
    dataset.add("a.png", boxes=apart(1))
    dataset.add("v.png", split="val", boxes=apart(2), flags=[CROWD, DIFFICULT])
    message = [("labels-none", "val has no object but crowds and difficult ones")]
    assert stopping(dataset) == message


def test_only_the_chosen_classes_count(dataset, apart) -> None:
    dataset.add("a.png", boxes=[*apart(3), NAN, NAN], labels=[1, 1, 1, 0, 0])
    dataset.add("b.png", boxes=apart(1), labels=[0])
    dataset.add("v.png", split="val", boxes=apart(1), labels=[0])
    assert stopping(dataset) == []
    lost = ("labels-lost", "train lost 2 of 3 objects: box-nan 2")
    assert stopping(dataset, classes=["cat"]) == [lost]
    none = ("labels-none", "val has no object of the classes in data.classes")
    assert stopping(dataset, classes=["dog"]) == [none]
    assert stopping(dataset, classes=["cow"]) == []  # `select` says that there is none


def test_test_may_be_without_labels_unless_it_is_asked_for(dataset, apart) -> None:
    dataset.add("a.png", boxes=apart(1))
    dataset.add("v.png", split="val", boxes=apart(1))
    dataset.add("t.png", split="test")
    assert stopping(dataset) == []
    assert stopping(dataset, splits=["test"]) == [("labels-none", "test has no object")]


def test_images_of_a_class(dataset) -> None:
    dataset.kinds = frozenset({"label"})
    for k in range(5):
        dataset.add(f"{k}.png", label=k % 2)
    dataset.add("v.png", split="val", label=0)
    for k in range(3):
        assert stopping(dataset, "classification") == []
        (dataset.root / f"{k}.png").write_bytes(b"")
    lost = [("labels-lost", "train lost 3 of 5 images: image-empty 3")]
    assert stopping(dataset, "classification") == lost
    assert stopping(dataset, None) == lost


def test_val_drawn_from_train_has_objects_where_two_images_have(dataset, apart) -> None:
    for k in range(12):
        dataset.add(f"{k}.png", boxes=apart(1) if k in (3, 8) else [])
    for seed in range(6):
        report = run_gate(dataset, "detection", progress=False, seed=seed, workers=1)
        assert [t.num_annotations for t in report.tables.values()] == [1, 1]
        assert [len(t) for t in report.tables.values()] == [10, 2]


def test_one_image_with_objects_cannot_be_on_both_sides(dataset, apart) -> None:
    for k in range(6):
        dataset.add(f"{k}.png", boxes=apart(2) if k == 3 else [])
    with pytest.raises(DataError, match="has no object: val is drawn from train"):
        run_gate(dataset, "detection", progress=False, workers=1)
    assert run_gate(dataset, "detection", progress=False, workers=1, allow_empty=True).used == 6


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0, 0], [0, 1], "in all 2 masks of train every pixel that has a class is 'background'"),
        ([0, 255], [0, 1], "the other 9,600 are 255, void: masks of 0 and 255 have two classes"),
        ([0, 1], [0, 255], "in all 2 masks of val every pixel that has a class is 'background'"),
        ([0, 1], [0, 0], ""),  # a note: classes-absent
        ([0, 1], [1, 255], ""),
        ([1, 2], [0, 2], ""),
    ],
)
def test_masks_that_hold_nothing_but_one_class(tmp_path, train, val, message) -> None:
    for split, values in (("train", train), ("val", val)):
        for k in range(2):
            for folder, pixels in (
                ("images", np.full((80, 120, 3), 40 * k, np.uint8)),
                ("masks", np.repeat(np.array(values, np.uint8), 60)[None].repeat(80, 0)),
            ):
                path = tmp_path / folder / split / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (tmp_path / "classes.txt").write_text("background\nroad\ncar\n")
    report = run_gate(MasksReader(tmp_path), "semantic_segmentation", strict=False, progress=False)
    found = [p.message for p in report.stopping if p.code == "labels-none"]
    assert (len(found), message in "".join(found)) == (bool(message), True)
    allowed = run_gate(
        MasksReader(tmp_path), "semantic_segmentation", progress=False, allow_empty=True
    )
    assert allowed.stopping == []
