"""Boxes and classes through the gate, on whole columns."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from cvtrain.data.gate import boxes as gate_annotations
from cvtrain.data.gate import report as gate_state
from cvtrain.data.gate.boxes import judge_boxes
from cvtrain.data.table import CROWD, Classes
from cvtrain.errors import DataError

NAN, INF = float("nan"), float("inf")

# box, code, what on_bad=fix makes of it (None: drops it)
WRONG = [
    ([NAN, 1, 9, 9], "box-nan", None),
    ([1, 1, INF, 9], "box-nan", None),
    ([-INF, -INF, INF, INF], "box-nan", None),
    ([25, 5, 5, 30], "box-inverted", [5, 5, 25, 30]),
    ([5, 30, 25, 5], "box-inverted", [5, 5, 25, 30]),
    ([90, 5, 5, 30], "box-inverted", [5, 5, 60, 30]),
    ([90, 5, 70, 30], "box-inverted", None),
    ([25, 5, 5, 5], "box-inverted", None),
    ([5, 5, 5, 30], "box-zero-area", None),
    ([5, 5, 25, 5], "box-zero-area", None),
    ([5, 5, 5 + 1e-9, 30], "box-zero-area", None),
    ([5, 5, 99, 30], "box-outside", [5, 5, 60, 30]),
    ([-20, -20, 25, 30], "box-outside", [0, 0, 25, 30]),
    ([5, 5, 25, 41.5], "box-outside", [5, 5, 25, 40]),
    ([-30, 5, -10, 30], "box-outside", None),
    ([60, 5, 60.5, 30], "box-outside", None),
    ([1e30, 5, 2e30, 30], "box-outside", None),
]


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
@pytest.mark.parametrize(("wrong", "code", "mended"), WRONG)
def test_wrong_box(dataset, apart, wrong, code: str, mended, on_bad: str) -> None:
    dataset.annotation_files = True
    first, last = [1.0, 1.0, 9.0, 9.0], apart(2)[1]
    dataset.add("ä b.png", boxes=[first, wrong, last])
    report = dataset.gate("detection", on_bad=on_bad)
    (problem,) = report.errors
    assert (problem.code, problem.file, problem.where) == (code, "ä b.png.txt", "line 2")
    assert f"{wrong[0]:.6g}" in problem.message
    table = report.tables["train"]
    assert len(table) == 1  # the image stays
    expected = [first, mended, last] if on_bad == "fix" and mended else [first, last]
    assert table.boxes.tolist() == expected
    assert table.starts.tolist() == [0, len(expected)]
    actions = {"error": "", "drop": "annotation dropped"}
    assert problem.action == actions.get(on_bad, "fixed" if mended else "annotation dropped")
    assert bool(report.stopping) == (on_bad == "error")


@pytest.mark.parametrize("excess", [0.02, 0.5, 1.0])
def test_rounding_is_a_note_and_cut(dataset, excess: float) -> None:
    boxes = [[-excess, 5, 25, 30], [5, 5, 60 + excess, 40 + excess / 2], [1, 1, 9, 9]]
    dataset.add("a.png", boxes=boxes)
    report = dataset.gate("detection")
    assert report.errors == []
    (note,) = [p for p in report.notes if p.code == "box-rounding"]
    assert note.message == f"2 boxes leave the image by {excess:.2g} of a pixel at most"
    table = report.tables["train"]
    assert table.boxes.tolist() == [[0, 5, 25, 30], [5, 5, 60, 40], [1, 1, 9, 9]]


def test_float_noise_is_cut_without_a_word(dataset) -> None:
    dataset.add("a.png", boxes=[[-0.005, 5, 25, 40.005]])
    report = dataset.gate("detection")
    assert [p.code for p in report.problems] == ["class-unused"]
    assert report.tables["train"].boxes.tolist() == [[0, 5, 25, 40]]


def test_verdicts_against_one_box_at_a_time() -> None:
    values = [NAN, -30.0, -0.5, 0.0, 5.0, 10.0, 10.5, 99.0]
    boxes = np.array(list(itertools.product(values, repeat=4)))
    verdict, repaired, left, _ = judge_boxes(boxes, np.full((len(boxes), 2), 10.0))
    for box, message, mended, some in zip(boxes.tolist(), verdict, repaired, left):
        x1, y1, x2, y2 = box
        if any(np.isnan(box)):
            expected = gate_annotations.NAN
        elif x2 < x1 or y2 < y1:
            expected = gate_annotations.INVERTED
        elif x1 == x2 or y1 == y2:
            expected = gate_annotations.ZERO
        elif min(box) < -1 or max(box) > 11 or max(x1, y1) >= 10 or min(x2, y2) <= 0:
            expected = gate_annotations.OUTSIDE
        elif min(box) < 0 or max(box) > 10:
            expected = gate_annotations.ROUNDED
        else:
            expected = 0
        assert message == expected, box
        if some:
            assert (mended >= 0).all()
            assert (mended <= 10).all()
            assert (mended[2:] > mended[:2]).all()


def test_relative_boxes_become_pixels(dataset) -> None:
    dataset.relative = True
    dataset.add("a.png", boxes=[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.5, 0.75]])
    report = dataset.gate("detection", on_bad="fix")
    table = report.tables["train"]
    assert table.relative is False
    assert table.boxes.tolist() == [[15, 20, 30, 40], [30, 20, 60, 30]]
    (problem,) = report.errors
    assert problem.message == "box [30, 20, 90, 30] leaves the image of 60 x 40 by 30 pixels"


def test_boxes_of_an_unreadable_image_are_not_called_outside(dataset) -> None:
    dataset.add("a.png", boxes=[[5, 5, 9000, 30]])
    dataset.add("b.png", boxes=[[5, 5, 25, 30]])
    (dataset.root / "a.png").write_bytes(b"")
    assert [p.code for p in dataset.gate("detection").errors] == ["image-empty"]


def test_places_name_what_the_format_counts(dataset, box) -> None:
    wrong = [NAN] * 4
    dataset.add("a.png", boxes=[box, wrong])
    assert dataset.gate().errors[0].where == "annotation id 2"
    dataset.annotation_files = True
    assert dataset.gate().errors[0].where == "line 2"


@pytest.mark.parametrize("label", [-1, 2, 700])
def test_unknown_class(dataset, box, label: int) -> None:
    dataset.add("a.png", boxes=[box, box], labels=[0, label])
    report = dataset.gate("detection", on_bad="fix")
    assert [p.code for p in report.errors] == ["class-unknown"]
    assert str(label) in report.errors[0].message
    assert report.tables["train"].labels.tolist() == [0]


@pytest.mark.parametrize("label", [-1, 2])
def test_unknown_class_of_an_image(dataset, label: int) -> None:
    dataset.kinds = frozenset({"label"})
    dataset.add("a.png", label=0)
    dataset.add("b.png", label=label)
    dataset.add("v.png", split="val", label=1)
    report = dataset.gate("classification", on_bad="drop")
    assert [(p.code, p.file) for p in report.errors] == [("image-class-unknown", "b.png")]
    assert report.tables["train"].image_labels.tolist() == [0]


def test_classes_never_used(dataset, box) -> None:
    dataset.names = ("cat", "dog", "emu", "fox")
    dataset.add("a.png", boxes=[box], labels=[0])
    dataset.add("v.png", split="val", boxes=[box, box], labels=[0, 1])
    message = [p.message for p in dataset.gate().notes if p.code == "class-unused"]
    assert message == [
        "class 'dog' never occurs in train, but in val",
        "class 'emu' never occurs in train or val",
        "class 'fox' never occurs in train or val",
    ]


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_class_tables_that_differ(dataset, box, on_bad: str) -> None:
    dataset.classes = {
        "train": Classes(("cat", "dog"), (3, 9)),
        "val": Classes(("dog", "emu"), (9, 12)),
    }
    dataset.add("a.png", boxes=[box, box], labels=[0, 1])
    dataset.add("v.png", split="val", boxes=[box, box], labels=[0, 1])
    report = dataset.gate("detection", on_bad=on_bad)
    (problem,) = report.errors
    assert (problem.code, problem.split) == ("classes-differ", "val")
    assert problem.message == "val has 'emu', a class that train does not have"
    assert bool(report.stopping) == (on_bad == "error")
    for name, labels in (("train", [0, 1]), ("val", [1, 2])):
        table = report.tables[name]
        assert table.classes == Classes(("cat", "dog", "emu"), (3, 9, 12))
        assert table.labels.tolist() == labels


def test_masks_of_different_classes_cannot_be_united(dataset) -> None:
    from PIL import Image

    dataset.kinds = frozenset({"mask"})
    dataset.classes = {"val": Classes.from_names(["dog", "cat"])}
    for split in ("train", "val"):
        dataset.save(f"m-{split}.png", Image.new("L", (60, 40)))
        dataset.add(f"{split}.png", split=split, mask=f"m-{split}.png")
    with pytest.raises(DataError, match="same classes"):
        dataset.gate(on_bad="fix")


def test_areas_that_are_none(dataset, apart) -> None:
    dataset.add("a.png", boxes=apart(4), areas=[7.5, -3, INF, NAN])
    report = dataset.gate("detection")
    (note,) = [p for p in report.notes if p.code == "area-invalid"]
    assert note.message == "area -3 of 2 objects"
    areas = report.tables["train"].areas
    assert areas[0] == 7.5
    assert np.isnan(areas[1:]).all()


def test_crowds_and_flags_stay(dataset, box) -> None:
    dataset.add("a.png", boxes=[box, [NAN] * 4, box], flags=[0, 0, CROWD])
    assert dataset.gate(on_bad="drop").tables["train"].flags.tolist() == [0, CROWD]


def test_a_million_boxes_make_no_object_each(dataset, box, monkeypatch) -> None:
    """Counted, not timed: what is made in Python follows the problems, not the boxes."""
    count = 1_000_000
    dataset.add("a.png", boxes=[box])
    table = dataset.table("train")
    boxes = np.tile(np.array(box), (count, 1))
    boxes[::250_000] = NAN
    columns = {
        "boxes": boxes,
        "labels": np.zeros(count, np.int64),
        "flags": np.zeros(count, np.uint8),
        "areas": np.full(count, NAN),
        "lines": np.zeros(count, np.int64),
        "starts": np.array([0, count]),
        "sizes": np.array([[40, 60]], np.int32),
    }
    from dataclasses import replace

    state = gate_state.SplitState("train", replace(table, **columns), "drop")
    made: list[str] = []
    real = gate_state.make_problem
    monkeypatch.setattr(
        gate_state, "make_problem", lambda code, *a, **k: made.append(code) or real(code, *a, **k)
    )
    tracemalloc.start()
    gate_annotations.check_labels(state)
    gate_annotations.check_boxes(state)
    allocations = sum(trace.count for trace in tracemalloc.take_snapshot().statistics("filename"))
    tracemalloc.stop()
    assert made == ["box-nan"] * 4
    assert allocations < 2000
    assert state.annotations.sum() == count - 4


def test_classes_that_differ_by_case_alone(dataset, box) -> None:
    dataset.names = ("Cat", "dog", "cat", "CAT", "dog  house", "Dog House", "straße")
    dataset.add("a.png", boxes=[box])
    message = [
        (p.severity, p.message) for p in dataset.gate().problems if p.code == "classes-alike"
    ]
    assert message == [
        ("note", "classes 'Cat', 'cat', 'CAT' differ only by case or spaces"),
        ("note", "classes 'dog house', 'Dog House' differ only by case or spaces"),
    ]
